"""Adapts packed rows to models of any architecture, so that each text of a row is read as if it were alone."""

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from ..models.configuration_tfm import TfmConfig
from .head_table import head_of_class


Mask = Literal["all", "by layer"] | None

# The names of BERT and of ALBERT.
_SENTENCE_LABELS = ("next_sentence_label", "sentence_order_label")
_SENTENCE_LOGITS = ("seq_relationship_logits", "sop_logits")

# Errors that a model may raise for unsupported masks or positions.
_UNSUPPORTED = (
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass
class PackedRows:
    """
    Mask and positions with which a model separates the texts of a packed row.

    Models of this package and most causal LMs recognize the beginning of a text by its position. Encoders of
    transformers need a mask, some models count positions from the padding id on, and some return the mean loss of a
    batch, whatever `num_items_in_batch` is.

    Args:
        first_position: position of the first token of a text.
        mask: None for no mask, "all" for the same mask in all layers, "by layer" if some layers attend to a window.
        window: size of this window, in tokens to each side.
        is_causal: whether the mask hides later tokens.
        is_additive: whether attention adds its mask to the scores, as eager attention does, in place of a boolean mask.
        supports_packing: whether the model separates texts, given mask and positions.
        loss_is_token_sum: whether the loss is divided by `num_items_in_batch`.
    """

    first_position: int = 0
    mask: Mask = None
    window: int = 0
    is_causal: bool = False
    is_additive: bool = False
    supports_packing: bool = True
    loss_is_token_sum: bool = True

    @classmethod
    def of(cls, model: PreTrainedModel) -> "PackedRows":
        """Determine the needs of a model from outputs for two short texts, alone and in one row."""
        if isinstance(model.config, TfmConfig):
            return cls(is_additive=model.config._attn_implementation == "eager")
        with _as_if_trained(model):
            return cls._by_trial(model)

    @classmethod
    def _by_trial(cls, model: PreTrainedModel) -> "PackedRows":
        padding, length = model.config.get_text_config().pad_token_id or 0, 8
        ids = torch.randint(1, model.get_input_embeddings().weight.shape[0], (1, 2 * length), device=model.device)
        ids[ids == padding] = 1 + (padding == 1)
        both = {"input_ids": ids, "position_ids": torch.arange(2 * length, device=model.device)[None] % length}
        alone = model(input_ids=ids[:, length:])[0]
        tolerance = (1e-3 if alone.dtype == torch.float32 else 2e-2) * alone.abs().max()
        window = getattr(model.config, "sliding_window", None) or 0
        masks: list[tuple[Mask, bool]] = [(None, False)]
        masks += [
            (mask, additive) for mask in (("by layer", "all") if window else ("all",)) for additive in (False, True)
        ]
        is_causal = head_of_class(type(model).__name__).auto_class == "AutoModelForCausalLM"
        is_sum = is_loss_token_sum(model, {**both, **_labels(model, both)})
        for mask, is_additive in masks:
            for first_position in (0, padding + 1):
                rows = cls(first_position, mask, window, is_causal, is_additive, loss_is_token_sum=is_sum)
                with contextlib.suppress(*_UNSUPPORTED):
                    if (model(**rows.fit(both))[0][:, length:] - alone).abs().max() <= tolerance:
                        return rows
        return cls(supports_packing=False, loss_is_token_sum=is_sum)

    def fit(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return the inputs of a batch with the mask and the positions that the model needs."""
        position_ids = inputs.get("position_ids")
        if position_ids is None or not (self.mask or self.first_position or self.is_additive):
            return inputs
        fitted = {**inputs, "position_ids": position_ids + self.first_position}
        if self.mask and inputs.get("attention_mask") is None:
            text = (position_ids == 0).cumsum(1)
            columns = torch.arange(position_ids.shape[1], device=position_ids.device)
            distance = columns[:, None] - columns
            full = (text[:, :, None] == text[:, None]) & (distance >= 0 if self.is_causal else True)
            fitted["attention_mask"] = full[:, None]
            if self.mask == "by layer":
                local = full & (distance.abs() <= self.window)
                fitted["attention_mask"] = {"full_attention": full[:, None], "sliding_attention": local[:, None]}
        if self.is_additive and "attention_mask" in fitted:
            fitted["attention_mask"] = _as_addend(fitted["attention_mask"])
        return fitted


def takes_causal_mask(model: PreTrainedModel) -> bool:
    """
    Return whether a causal mask within each text works: tested on two texts in a row.

    No output may depend on later tokens or on the other text.
    """
    rows = replace(PackedRows.of(model), mask="all", is_causal=True)
    with _as_if_trained(model), contextlib.suppress(*_UNSUPPORTED):
        ids = torch.arange(1, 17, device=model.device)[None] % model.get_input_embeddings().weight.shape[0]
        changed_ids = torch.cat([ids[:, :8].flip(1), ids[:, 8:12], ids[:, 12:].flip(1)], dim=1)
        inputs = rows.fit({"input_ids": ids, "position_ids": torch.arange(16, device=model.device)[None] % 8})
        outputs, changed = (model(**{**inputs, "input_ids": each})[0][:, 8:12] for each in (ids, changed_ids))
        return torch.allclose(outputs, changed, rtol=0, atol=1e-5 * float(outputs.abs().max()))
    return False


@contextlib.contextmanager
def _as_if_trained(model: PreTrainedModel) -> Iterator[None]:
    """Evaluate the model inside the block, with random weights for zeros: an identity layer would hide differences."""
    zeros = [parameter for parameter in model.parameters() if parameter.ndim > 1 and not parameter.any()]
    was_training = model.training
    try:
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            for parameter in zeros:
                parameter.normal_(std=0.3)
            model.eval()
            yield
    finally:
        with torch.no_grad():
            for parameter in zeros:
                parameter.zero_()
        model.train(was_training)


def _as_addend(mask: Any) -> Any:
    """Return a prepared boolean mask as numbers to add to attention scores; any other mask as it is."""
    if isinstance(mask, Mapping):
        return {layer_type: _as_addend(each) for layer_type, each in mask.items()}
    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool or mask.ndim != 4:
        return mask
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, torch.finfo(torch.float32).min)


def sentence_label(model: PreTrainedModel) -> str | None:
    """Return the name of the model's label for the relation of two segments; None if it has no such label."""
    parameters = inspect.signature(model.forward).parameters
    return next((name for name in _SENTENCE_LABELS if name in parameters), None)


def sentence_loss(inputs: dict[str, torch.Tensor], outputs: Mapping[str, torch.Tensor]) -> torch.Tensor | float:
    """Return the part of a loss for the relation of two segments, a mean over rows; 0 if there is none."""
    label = next((inputs[name] for name in _SENTENCE_LABELS if name in inputs), None)
    logits = next((outputs[name] for name in _SENTENCE_LOGITS if name in outputs), None)
    if label is None or logits is None:
        return 0.0
    return torch.nn.functional.cross_entropy(logits.view(-1, 2), label.view(-1))


def is_loss_token_sum(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> bool:
    """Return whether the loss on `inputs` with labels is divided by `num_items_in_batch`, so that parts add up."""
    with contextlib.suppress(*_UNSUPPORTED):
        losses = [model(**inputs, num_items_in_batch=count).loss for count in (1, 1000)]
        return not torch.isclose(*losses)
    return True  # without this argument, Trainer averages over batches


def _labels(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the texts without their first tokens as labels, and a label for the relation of two segments."""
    labels = {"labels": inputs["input_ids"].masked_fill(inputs["position_ids"] == 0, -100)}
    if (name := sentence_label(model)) is not None:
        labels[name] = torch.zeros(1, dtype=torch.long, device=model.device)
    return labels
