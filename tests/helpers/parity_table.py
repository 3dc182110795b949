"""
Writes the parity table (`make parity`): `python tests/helpers/parity_table.py training/benchmarks/parity.md`.

The table compares transformers' models with the models imported from them: small models with random float32 weights,
one for each family and head. Each figure is the largest absolute difference of the outputs at tokens that are not
padding. A dash marks a case that the native model does not support: only causal LMs have a cache, and a pooler that
reads the first column is meaningless where that column is padding. Models with absolute positions get `position_ids`,
because native models count the padding on the left.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import torch
import transformers
from transformers import PreTrainedModel

from hf_tfm.artifacts.compare import outputs_of
from hf_tfm.artifacts.native_families import FAMILIES, Family
from hf_tfm.convert.native import import_model


PAD, VOCAB_SIZE, LENGTH, PADDING = 0, 64, 14, 5

_SIZES = dict(
    vocab_size=VOCAB_SIZE,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=40,
    pad_token_id=PAD,
    bos_token_id=1,
    eos_token_id=2,
)
_GROUPED = dict(_SIZES, num_key_value_heads=2)
# Each family's peculiarities matter within a dozen tokens: windows shorter than the text, two RoPE bases, and heads
# whose total width exceeds the hidden size.
SHAPES = {
    "gpt2": dict(vocab_size=VOCAB_SIZE, n_embd=32, n_layer=3, n_head=4, n_positions=40, n_inner=48,
                 pad_token_id=PAD, bos_token_id=1, eos_token_id=2),
    "llama": dict(_GROUPED, attention_bias=True, mlp_bias=True),
    "qwen3": dict(_GROUPED, head_dim=16, tie_word_embeddings=True, use_sliding_window=True, sliding_window=4,
                  max_window_layers=1),
    "mistral": dict(_GROUPED, sliding_window=4),
    "bert": _SIZES,
    "modernbert": dict(_SIZES, cls_token_id=1, sep_token_id=2, local_attention=6, classifier_pooling="mean"),
}  # fmt: skip


class Row(NamedTuple):
    """Largest absolute difference in each case; None for an unsupported case."""

    family: str
    head: str
    unpadded: float
    right: float
    left: float | None
    cached: float | None


def native_model(family: str, head: str = "Model", seed: int = 0, **fields) -> PreTrainedModel:
    """Returns a small native model in evaluation mode, with weights large enough for any mistake to show."""
    config = getattr(transformers, f"{FAMILIES[family].classes}Config")(**{**SHAPES[family], **fields})
    torch.manual_seed(seed)
    model = FAMILIES[family].native_class(head)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            gain = parameter.ndim == 1 and name.endswith("weight")
            parameter.normal_(1.0 if gain else 0.0, 0.2)
    return model


def padded_inputs(head: str, side: str | None, positions: bool = False) -> dict[str, torch.Tensor]:
    """Returns random tokens `(2, LENGTH)`, or `(1, 2, LENGTH)` as choices; `PADDING` columns of row 2 are padding."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCAB_SIZE, (2, LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    if side is not None:
        columns = slice(LENGTH - PADDING, None) if side == "right" else slice(PADDING)
        ids[1, columns], mask[1, columns] = PAD, 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    if positions:
        inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    if head == "MultipleChoice":
        inputs = {name: value.unsqueeze(0) for name, value in inputs.items()}
    return inputs


def difference(native: PreTrainedModel, model: PreTrainedModel, **inputs) -> float:
    """Returns the largest absolute difference of all outputs; outputs per token are compared at real tokens only."""
    expected, imported = outputs_of(native, **inputs), outputs_of(model, **inputs)
    assert expected.keys() == imported.keys()
    mask = inputs["attention_mask"].bool()
    largest = 0.0
    for name, value in expected.items():
        assert value.isfinite().all() and value.std() > 0.005, f"{name} of {type(native).__name__} is not informative"
        error = (value - imported[name]).abs()
        largest = max(largest, (error[mask] if error.shape[: mask.ndim] == mask.shape else error).max().item())
    return largest


def cached_difference(native: PreTrainedModel, model: PreTrainedModel) -> float:
    """Returns the largest difference of the logits when a prefix and then single tokens use each model's cache."""
    ids = padded_inputs("CausalLM", None)["input_ids"]
    largest, caches = 0.0, {native: None, model: None}
    for step in (ids[:, :6], *ids[:, 6:].split(1, dim=1)):
        logits = []
        for each in (native, model):
            with torch.no_grad():
                outputs = each(input_ids=step, past_key_values=caches[each], use_cache=True)
            caches[each] = outputs.past_key_values
            logits.append(outputs.logits)
        largest = max(largest, (logits[0] - logits[1]).abs().max().item())
    return largest


def has_left_padding(family: Family, head: str) -> bool:
    """Returns whether the native model supports padding on the left."""
    pooled = ("Model", "PreTraining", "NextSentencePrediction", "SequenceClassification", "MultipleChoice")
    return not (family.title == "BERT" and head in pooled)


def parity_row(name: str, head: str) -> Row:
    """Returns the row of one family and head."""
    family = FAMILIES[name]
    native = native_model(name, head)
    model = import_model(native)
    absolute = name in ("gpt2", "bert")
    return Row(
        family.title,
        head,
        difference(native, model, **padded_inputs(head, None)),
        difference(native, model, **padded_inputs(head, "right")),
        difference(native, model, **padded_inputs(head, "left", positions=absolute))
        if has_left_padding(family, head)
        else None,
        cached_difference(native, model) if head == "CausalLM" else None,
    )


def parity_table() -> list[Row]:
    """Returns a row for every family and head."""
    return [parity_row(name, head) for name, family in FAMILIES.items() for head in family.heads]


def markdown(rows: list[Row]) -> str:
    """Formats rows as a Markdown table."""
    lines = ["| family | head | no padding | right padding | left padding | cached |", "|---|---|---|---|---|---|"]
    for row in rows:
        figures = ["–" if value is None else f"{value:.1e}" for value in row[2:]]
        lines.append(f"| {' | '.join([row.family, row.head, *figures])} |")
    return "\n".join(lines)


PAGE = """# Parity with the native classes

Largest absolute difference between the outputs of transformers' own model and of the model imported from it: float32,
small models with random weights, transformers {version} (`make parity` writes this page; `tests/convert/test_native.py`
holds the bounds). Export returns the identical tensors. A dash marks a case that the native class does not support.

{table}
"""


if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    Path(sys.argv[1]).write_text(
        PAGE.format(version=transformers.__version__, table=markdown(parity_table())), encoding="utf-8"
    )
