"""What a model of any architecture needs to read the texts of a packed row as it would read each alone."""

import contextlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from ..models.configuration_tfm import TfmConfig
from .card_text import task_of


Mask = Literal["all", "by layer"] | None

# BERT's names, and ALBERT's.
_SENTENCE_LABELS = ("next_sentence_label", "sentence_order_label")
_SENTENCE_LOGITS = ("seq_relationship_logits", "sop_logits")

# What a model raises that has no use for a mask of this form, or for positions.
_UNFIT = (
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
    What a model needs to read the texts of a packed row as it would read each alone. Ours and most causal LMs see by
    the positions where a text begins. transformers' encoders do not, some models count positions from behind the
    padding's id, and some give the mean loss of a batch whatever number of tokens the whole step has.

    Args:
        first_position: of a text.
        mask: what says which tokens see one another: None for nothing, "all" for one mask, "by layer" for two, where
            some layers see a window.
        window: tokens that these see to either side.
        is_causal: whether a mask hides what comes later.
        apart: whether texts are kept apart, with the mask.
        adds_up: whether the loss heeds `num_items_in_batch`.
    """

    first_position: int = 0
    mask: Mask = None
    window: int = 0
    is_causal: bool = False
    apart: bool = True
    adds_up: bool = True

    @classmethod
    @torch.no_grad()
    def of(cls, model: PreTrainedModel) -> "PackedRows":
        """Found out by two short texts, each alone and both in a row. The model stays as it is."""
        if isinstance(model.config, TfmConfig):
            return cls()
        zeros = [parameter for parameter in model.parameters() if parameter.ndim > 1 and not parameter.any()]
        was_training = model.training
        try:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                for parameter in zeros:  # a layer that starts as the identity would show nothing
                    parameter.normal_(std=0.3)
                return cls._found_by_trial(model.eval())
        finally:
            for parameter in zeros:
                parameter.zero_()
            model.train(was_training)

    @classmethod
    def _found_by_trial(cls, model: PreTrainedModel) -> "PackedRows":
        padding, length = model.config.get_text_config().pad_token_id or 0, 8
        ids = torch.randint(1, model.get_input_embeddings().weight.shape[0], (1, 2 * length), device=model.device)
        ids[ids == padding] = 1 + (padding == 1)
        both = {"input_ids": ids, "position_ids": torch.arange(2 * length, device=model.device)[None] % length}
        alone = model(input_ids=ids[:, length:])[0]
        near = (1e-3 if alone.dtype == torch.float32 else 2e-2) * alone.abs().max()
        window = getattr(model.config, "sliding_window", None) or 0
        masks: tuple[Mask, ...] = (None, "by layer", "all") if window else (None, "all")
        is_causal = task_of(type(model).__name__)[0] == "AutoModelForCausalLM"
        adds_up = loss_adds_up(model, {**both, **_labels(model, both)})
        for mask in masks:
            for first_position in (0, padding + 1):
                rows = cls(first_position, mask, window, is_causal, adds_up=adds_up)
                with contextlib.suppress(*_UNFIT):
                    if (model(**rows.fit(both))[0][:, length:] - alone).abs().max() <= near:
                        return rows
        return cls(apart=False, adds_up=adds_up)

    def fit(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs of a batch with the mask and the positions that the model wants."""
        position_ids = inputs.get("position_ids")
        if position_ids is None or not (self.mask or self.first_position):
            return inputs
        fitted = {**inputs, "position_ids": position_ids + self.first_position}
        if self.mask and inputs.get("attention_mask") is None:
            text = (position_ids == 0).cumsum(1)
            columns = torch.arange(position_ids.shape[1], device=position_ids.device)
            distance = columns[:, None] - columns
            seen = (text[:, :, None] == text[:, None]) & (distance >= 0 if self.is_causal else True)
            fitted["attention_mask"] = seen[:, None]
            if self.mask == "by layer":
                near = seen & (distance.abs() <= self.window)
                fitted["attention_mask"] = {"full_attention": seen[:, None], "sliding_attention": near[:, None]}
        return fitted


def sentence_label(model: PreTrainedModel) -> str | None:
    """What a model that is told how two segments belong together calls that label: BERT's name, or ALBERT's."""
    taken = inspect.signature(model.forward).parameters
    return next((name for name in _SENTENCE_LABELS if name in taken), None)


def sentence_loss(inputs: dict[str, torch.Tensor], outputs: Mapping[str, torch.Tensor]) -> torch.Tensor | float:
    """What a loss has in it for how two segments belong together, the mean over the rows; 0 if nothing."""
    label = next((inputs[name] for name in _SENTENCE_LABELS if name in inputs), None)
    logits = next((outputs[name] for name in _SENTENCE_LOGITS if name in outputs), None)
    if label is None or logits is None:
        return 0.0
    return torch.nn.functional.cross_entropy(logits.view(-1, 2), label.view(-1))


def loss_adds_up(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> bool:
    """Whether the loss on `inputs`, labels among them, heeds `num_items_in_batch`, so that those of parts add up."""
    with contextlib.suppress(*_UNFIT):
        one, other = (model(**inputs, num_items_in_batch=n).loss for n in (1, 1000))
        return not torch.isclose(one, other)
    return True  # a loss that takes no such number is averaged by Trainer


def _labels(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The texts themselves but for their first tokens, and a label for how two segments belong together."""
    labels = {"labels": inputs["input_ids"].masked_fill(inputs["position_ids"] == 0, -100)}
    if (name := sentence_label(model)) is not None:
        labels[name] = torch.zeros(1, dtype=torch.long, device=model.device)
    return labels
