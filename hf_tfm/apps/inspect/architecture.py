"""The architecture of a saved model: shape, parameters by part, costs; and pictures of attention and embeddings."""

import math
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from ...core.errors import InputError
from ...core.inference import unwrap_adapter
from ...core.limits import refuse_unknown_tokens
from .training_cost import attended_tokens


ATTENTION_FILE, NEIGHBOURS_FILE = "attention.png", "embedding_neighbours.png"
EXAMPLE = "Once upon a time there was an old king who had three sons."

# Parts by the names of modules in the families; the first that fits.
_PARTS = (
    ("norms", re.compile(r"norm|\bln_", re.IGNORECASE)),
    ("embeddings", re.compile(r"embed(?!_values)|\bw[tp]e\b")),
    ("attention", re.compile(r"attn|attention|[qkvo]_proj|Wqkv|embed_values")),
    ("feed-forward", re.compile(r"mlp|intermediate|\.output\.|ffn|fc\d|_proj\b|experts")),
)
_ORDER = ("embeddings", "attention", "feed-forward", "norms")
_SHOWN_KEYS = {
    "hidden_size": "width", "num_hidden_layers": "blocks", "num_attention_heads": "heads",
    "num_key_value_heads": "key-value heads", "head_dim": "width of a head", "intermediate_size": "feed-forward width",
    "hidden_act": "activation", "gated_mlp": "gated feed-forward", "norm_type": "norm", "norm_position": "norm's place",
    "qk_norm": "QK-norm", "attention_gate": "gates on heads", "value_residual": "embeddings in values",
    "position_embedding_type": "positions", "max_position_embeddings": "longest sequence",
    "sliding_window": "sliding window", "vocab_size": "vocabulary", "type_vocab_size": "segments",
    "tie_word_embeddings": "tied embeddings", "dtype": "stored as",
}  # fmt: skip


@dataclass(frozen=True)
class Inspection:
    """
    Result of `inspect_model`.

    Attributes:
        shape: readable names of the architecture's fields, with their values.
        parameters: numbers of parameters by part; tied matrices count once.
        memory: bytes by purpose.
        flops: floating-point operations per token by computation, at a context of `length` tokens.
    """

    model_class: str
    shape: dict[str, Any]
    parameters: dict[str, int]
    memory: dict[str, int]
    flops: dict[str, int]
    length: int

    def __str__(self) -> str:
        total = sum(self.parameters.values())
        lines = [self.model_class, "", "architecture"]
        lines += [f"  {name:24} {value}" for name, value in self.shape.items()]
        lines += ["", f"parameters  {total:,}"]
        lines += [f"  {name:24} {count:>15,}  {count / total:6.1%}" for name, count in self.parameters.items()]
        lines += ["", "memory"]
        lines += [f"  {name:24} {_number(size, ('B', 'kB', 'MB', 'GB')):>15}" for name, size in self.memory.items()]
        lines += ["", f"operations for a token, {self.length:,} tokens of context"]
        lines += [
            f"  {name:24} {_number(count, ('', 'thousand', 'million', 'billion')):>15}"
            for name, count in self.flops.items()
        ]
        return "\n".join(lines)


def inspect_model(model: PreTrainedModel, length: int | None = None) -> Inspection:
    """
    Return shape and costs of a model of any family.

    Operations are twice the number of weights that a token is multiplied with, plus attention's 4 · width · context in
    each block (scores and sums); training needs three times as many (Kaplan et al. 2020,
    https://huggingface.co/papers/2001.08361).

    Args:
        length: context in tokens; by default the model's maximum.
    """
    model = unwrap_adapter(model)
    config = model.config.get_text_config()
    length = length or min(getattr(config, "max_position_embeddings", None) or 1024, 1 << 17)
    parameters: dict[str, int] = defaultdict(int)
    prefix = "" if model.base_model is model else model.base_model_prefix
    inside = {name for name, _ in model.base_model.named_parameters(prefix=prefix)}
    for name, weight in model.named_parameters():
        part = next((part for part, pattern in _PARTS if pattern.search(name)), "other")
        parameters[part if name in inside or part == "embeddings" else "head"] += weight.numel()

    ordered = {part: parameters[part] for part in (*_ORDER, "head", "other") if parameters.get(part)}

    total = sum(parameters.values())
    memory = {
        "weights, fp32": 4 * total,
        "weights, bf16": 2 * total,
        "weights, 8 bits": total,
        "training with AdamW": 16 * total,  # fp32 weights, gradients and two moments, without activations
    }
    blocks, heads = config.num_hidden_layers, config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    if model.can_generate():
        cached = 2 * 2 * blocks * head_dim * (getattr(config, "num_key_value_heads", None) or heads)
        kept = sum(attended_tokens(config, layer, length) for layer in range(blocks))
        memory |= {"cache of a token, bf16": cached, f"cache of {length:,} tokens": cached // blocks * kept}

    multiplied = sum(module.weight.numel() for module in model.modules() if isinstance(module, (nn.Linear, Conv1D)))
    attended = 4 * heads * head_dim * sum(attended_tokens(config, layer, length) for layer in range(blocks))
    forward = 2 * multiplied + attended
    flops = {"forward": forward, "of these attention": attended, "training step": 3 * forward}
    return Inspection(type(model).__name__, _shape(config), ordered, memory, flops, length)


def _shape(config: Any) -> dict[str, Any]:
    shape = {shown: getattr(config, name, None) for name, shown in _SHOWN_KEYS.items()}
    kinds = getattr(config, "layer_types", None)
    if kinds and len(set(kinds)) > 1:
        shape["layers"] = ", ".join(f"{kinds.count(kind)} {kind.split('_')[0]}" for kind in sorted(set(kinds)))
    shown = {name: "yes" if value is True else "no" if value is False else value for name, value in shape.items()}
    return {name: value for name, value in shown.items() if value is not None}


def draw_attention(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, path: Path) -> None:
    """
    Draw the attention weights of heads: a row for each of at most eight blocks, a column for each of eight heads.

    Args:
        model: opened with `attn_implementation="eager"`; others return no weights.

    Raises:
        InputError: the model returns no attention weights, is an encoder-decoder, or lacks embeddings for the tokens.
    """
    if model.config.is_encoder_decoder:
        raise InputError(f"{type(model).__name__}: pictures are drawn of one encoder or decoder; try `hf-tfm demo`")
    inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=48)
    refuse_unknown_tokens(model, inputs["input_ids"])
    with torch.inference_mode():
        attentions = model(**inputs, output_attentions=True).attentions
    if not attentions or attentions[0] is None:
        raise InputError(f"{type(model).__name__} returns no attention weights, so there is no picture of them")
    tokens = [tokenizer.decode([number]) or "·" for number in inputs["input_ids"][0].tolist()]
    blocks = spread(len(attentions), 8)
    heads = spread(attentions[0].shape[1], 8)
    figure, axes = _figure(len(blocks), len(heads), 2.2 if len(tokens) <= 24 else 3.0)
    for row, block in enumerate(blocks):
        for column, head in enumerate(heads):
            panel = axes[row][column]
            panel.imshow(attentions[block][0, head].float().numpy(), cmap="magma", vmin=0)
            panel.set_title(f"block {block + 1}, head {head + 1}", fontsize=7)
            ticks = range(len(tokens))
            panel.set_yticks(ticks, tokens if column == 0 else [], fontsize=4)
            panel.set_xticks(ticks, tokens if row == len(blocks) - 1 else [], fontsize=4, rotation=90)
    figure.supxlabel("attended token", fontsize=9)
    figure.supylabel("token", fontsize=9)
    save_figure(figure, path)


def nearest_tokens(model: PreTrainedModel, token_ids: list[int]) -> list[list[tuple[int, float]]]:
    """Return for each token the eight other tokens whose embeddings have the highest cosine with its own."""
    embeddings = F.normalize(model.get_input_embeddings().weight.detach().float(), dim=-1)
    cosines = embeddings[token_ids] @ embeddings.T
    cosines[torch.arange(len(token_ids)), token_ids] = -torch.inf
    top = cosines.topk(min(8, cosines.shape[1] - 1))
    return [list(zip(ids, values)) for ids, values in zip(top.indices.tolist(), top.values.tolist())]


def draw_neighbours(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, path: Path) -> None:
    """Draw the nearest embeddings of at most twelve different tokens of the text."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = list(dict.fromkeys(ids))[:12]
    if not ids:
        raise InputError("the text for the pictures has no tokens; give another --text")
    columns = 4
    figure, axes = _figure(-(-len(ids) // columns), columns, 2.4)
    panels = [panel for row in axes for panel in row]
    for panel, token, near in zip(panels, ids, nearest_tokens(model, ids)):
        names = [repr(tokenizer.decode([number]))[1:-1] for number, _ in near]
        panel.barh(range(len(near)), [cosine for _, cosine in near], color="tab:blue")
        panel.set_yticks(range(len(near)), names, fontsize=7)
        panel.invert_yaxis()
        panel.set_xlim(0, 1)
        panel.tick_params(axis="x", labelsize=6)
        panel.set_title(repr(tokenizer.decode([token]))[1:-1], fontsize=9)
    for panel in panels[len(ids) :]:
        panel.axis("off")
    figure.supxlabel("cosine of the embeddings", fontsize=9)
    save_figure(figure, path)


def spread(count: int, most: int) -> list[int]:
    """Return at most `most` evenly spaced numbers of `range(count)`, with the first and the last."""
    if count <= most:
        return list(range(count))
    return [round(number * (count - 1) / (most - 1)) for number in range(most)]


def _figure(rows: int, columns: int, inches: float) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt.subplots(rows, columns, figsize=(inches * columns, inches * rows), layout="constrained", squeeze=False)


def save_figure(figure: Any, path: Path) -> None:
    """Save and close a Matplotlib figure; the folder is created."""
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(figure)


def _number(number: float, units: tuple[str, ...]) -> str:
    """Return a number with the unit, each a thousand times the one before, in which it is below 1000."""
    place = min(int(math.log10(number) // 3), len(units) - 1) if number else 0
    return f"{number / 1000**place:,.{1 if place else 0}f} {units[place]}".rstrip()
