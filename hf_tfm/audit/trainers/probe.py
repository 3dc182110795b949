"""Catches what a trainer's loss gives to the model, and computes parts of it again: other neighbours, alone, cut."""

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from .subject import TrainerSubject, WithoutDropout


_CACHES = ("cache", "past_key_values")
# Arguments that describe a whole batch: a document alone is computed without them.
_OF_BATCH = (
    "attention_mask",
    "position_ids",
    "cu_seq_lens_q",
    "cu_seq_lens_k",
    "max_length_q",
    "max_length_k",
    "seq_idx",
    "labels",
    "shift_labels",
    "num_items_in_batch",
    "cache_position",
    *_CACHES,
)
_OUTPUTS = ("sentence_embedding", "scores", "last_hidden_state", "logits", "start_logits")


class _Caught(Exception):
    """Ends a forward once its inputs are known."""


@dataclass(frozen=True)
class Call:
    """
    One forward of a module inside of a trainer's loss.

    Attributes:
        module: The model's body, or the whole model where its own outputs are compared.
        inputs: Arguments by name.
        is_dictionary: Whether the module takes them as one dictionary, as models of sentence-transformers do.
    """

    module: nn.Module
    inputs: dict[str, Any]
    is_dictionary: bool = False

    @property
    def ids(self) -> torch.Tensor:
        """Tokens of shape (rows, length)."""
        return self.inputs["input_ids"]

    def compute(self) -> torch.Tensor:
        """Returns outputs of shape (rows, length, size), or (rows, size) if the module gives one for each row."""
        outputs = self.module(dict(self.inputs)) if self.is_dictionary else self.module(**self.inputs)
        return first_vectors(outputs, len(self.ids))

    def alone(self, row: int, places: Sequence[int]) -> "Call":
        """
        Returns the call for some tokens of one row, without padding, neighbours or given positions.

        A prepared mask that hides later tokens, as an encoder has it that predicts next tokens, hides them here too.
        """
        rows, length = self.ids.shape
        chosen = torch.as_tensor(list(places), device=self.ids.device)
        is_pair = "decoder_input_ids" in self.inputs or is_encoder_decoder(self.module)
        inputs: dict[str, Any] = {}
        for name, value in self.inputs.items():
            if name in _OF_BATCH and not (is_pair and name == "labels"):
                continue
            if not isinstance(value, torch.Tensor):
                inputs[name] = value
            elif value.shape[:2] == (rows, length) and not name.startswith("decoder") and name != "labels":
                inputs[name] = value[row : row + 1, chosen]
            else:
                inputs[name] = value[row : row + 1] if value.dim() and len(value) == rows else value
        mask = self.inputs.get("attention_mask")
        if isinstance(mask, torch.Tensor) and mask.dim() == 4:
            part = mask[row % len(mask)][None, :, chosen][..., chosen]
            visible = part if part.dtype == torch.bool else part == 0
            if torch.equal(visible, torch.ones_like(visible).tril()):
                inputs["attention_mask"] = part
        if self.is_dictionary:
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        return replace(self, inputs=inputs)

    def with_ids(self, ids: torch.Tensor) -> "Call":
        """Returns the call with other tokens."""
        return replace(self, inputs=self.inputs | {"input_ids": ids})


def is_encoder_decoder(module: nn.Module) -> bool:
    """Whether a model has an encoder and a decoder."""
    return bool(getattr(getattr(module, "config", None), "is_encoder_decoder", False))


def first_vectors(outputs: Any, rows: int) -> torch.Tensor:
    """Returns the vectors of a model's outputs: by its name, or the first tensor with this number of rows."""
    if isinstance(outputs, torch.Tensor):
        return outputs
    if isinstance(outputs, Mapping):
        if name := next((name for name in _OUTPUTS if isinstance(outputs.get(name), torch.Tensor)), None):
            vectors = outputs[name]
            return vectors if vectors.dim() > 1 else vectors[:, None]
        outputs = list(outputs.values())
    return next(
        value
        for value in outputs
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() > 1 and len(value) == rows
    )


def body_of(model: nn.Module) -> nn.Module:
    """Returns the part of a model of transformers that ends before its head; the model itself if it has none."""
    return getattr(model, "base_model", model)


def catch_call(subject: TrainerSubject, batch: Mapping[str, Any], module: nn.Module) -> Call | None:
    """
    Returns the first call of a module inside of the trainer's own loss of a batch.

    The loss ends there, so that nothing behind the module costs time. None if the loss does not call the module with
    `input_ids` of shape (rows, length), or if it gives a cache.
    """
    calls: list[Call] = []

    def catch(called: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if len(args) == 1 and isinstance(args[0], Mapping):
            calls.append(Call(called, dict(args[0]), is_dictionary=True))
            raise _Caught
        inputs = dict(inspect.signature(called.forward).bind_partial(*args, **kwargs).arguments)
        for parameter in inspect.signature(called.forward).parameters.values():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                inputs.update(inputs.pop(parameter.name, {}))
        calls.append(Call(called, {name: value for name, value in inputs.items() if value is not None}))
        raise _Caught

    handle: RemovableHandle = module.register_forward_pre_hook(catch, with_kwargs=True, prepend=True)
    try:
        with torch.no_grad(), contextlib.suppress(_Caught):
            subject.loss(batch, train=True)
    finally:
        handle.remove()
    if not calls:
        return None
    if any(name in calls[0].inputs for name in _CACHES):
        return None  # learned prefixes, which belong to no row
    ids = calls[0].inputs.get("input_ids")
    return calls[0] if isinstance(ids, torch.Tensor) and ids.dim() == 2 else None


@contextlib.contextmanager
def computing(subject: TrainerSubject) -> Iterator[None]:
    """Compute as a training step does, with its precision and in its mode, but without dropout or gradients."""
    subject.trainer.model.train()
    with torch.no_grad(), WithoutDropout(), subject.trainer.compute_loss_context_manager():
        yield
