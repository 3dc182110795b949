"""
How far imported models are from transformers' own, as a table in markdown: `python tests/helpers/parity_table.py`.

Small models with random weights in float32, one per family and head; each figure is the largest absolute difference of
the outputs at tokens that are not padding. A dash stands where the native model has no such case: no cache without a
language model's head; with absolute positions both get `position_ids` (native models count padding on the left, these
do not); a pooler that reads the first column means nothing where that is padding.
"""

from typing import NamedTuple

import torch
import transformers
from transformers import PreTrainedModel

from hf_tfm.artifacts.compare import outputs_of
from hf_tfm.artifacts.families import FAMILIES, Family
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
# One shape for each family in which its peculiarities matter on a dozen tokens: windows shorter than the text, two
# RoPE bases, heads wider than the model is.
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
    """Largest absolute difference in each case, None where the native model has no such case."""

    family: str
    head: str
    unpadded: float
    right: float
    left: float | None
    cached: float | None


def native_model(family: str, head: str = "Model", seed: int = 0, **fields) -> PreTrainedModel:
    """A small native model in evaluation mode with weights large enough for any mistake to show."""
    config = getattr(transformers, f"{FAMILIES[family].classes}Config")(**{**SHAPES[family], **fields})
    torch.manual_seed(seed)
    model = FAMILIES[family].native_class(head)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            gain = parameter.ndim == 1 and name.endswith("weight")
            parameter.normal_(1.0 if gain else 0.0, 0.2)
    return model


def padded_inputs(head: str, side: str | None, positions: bool = False) -> dict[str, torch.Tensor]:
    """Random tokens `(2, LENGTH)`, or `(1, 2, LENGTH)` as choices; the second row `PADDING` tokens short."""
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
    """Largest absolute difference over all outputs, at real tokens where there is one output for each."""
    expected, found = outputs_of(native, **inputs), outputs_of(model, **inputs)
    assert expected.keys() == found.keys()
    mask = inputs["attention_mask"].bool()
    worst = 0.0
    for name, value in expected.items():
        assert value.isfinite().all() and value.std() > 0.005, f"{name} of {type(native).__name__} says nothing"
        error = (value - found[name]).abs()
        worst = max(worst, (error[mask] if error.shape[: mask.ndim] == mask.shape else error).max().item())
    return worst


def cached_difference(native: PreTrainedModel, model: PreTrainedModel) -> float:
    """Largest difference of the logits when a prefix and then single tokens go through each model's cache."""
    ids = padded_inputs("CausalLM", None)["input_ids"]
    worst, caches = 0.0, {native: None, model: None}
    for step in (ids[:, :6], *ids[:, 6:].split(1, dim=1)):
        logits = []
        for each in (native, model):
            with torch.no_grad():
                outputs = each(input_ids=step, past_key_values=caches[each], use_cache=True)
            caches[each] = outputs.past_key_values
            logits.append(outputs.logits)
        worst = max(worst, (logits[0] - logits[1]).abs().max().item())
    return worst


def has_left_padding(family: Family, head: str) -> bool:
    """Whether the native model means anything with padding on the left."""
    pooled = ("Model", "PreTraining", "NextSentencePrediction", "SequenceClassification", "MultipleChoice")
    return not (family.title == "BERT" and head in pooled)


def parity_row(name: str, head: str) -> Row:
    """One line of the table."""
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
    """Every family and head."""
    return [parity_row(name, head) for name, family in FAMILIES.items() for head in family.heads]


def markdown(rows: list[Row]) -> str:
    """The table as README shows it."""
    lines = ["| family | head | no padding | right padding | left padding | cached |", "|---|---|---|---|---|---|"]
    for row in rows:
        figures = ["–" if value is None else f"{value:.1e}" for value in row[2:]]
        lines.append(f"| {' | '.join([row.family, row.head, *figures])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    print(markdown(parity_table()))
