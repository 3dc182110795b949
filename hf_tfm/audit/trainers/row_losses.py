"""The loss of single rows, where the model or the loss is the user's: padding must not change it."""

from collections.abc import Sequence
from typing import Any

import torch

from ...core.inference import unwrap_adapter
from ..report import Report
from .accumulation import are_equal, has_stock_loss
from .batches import FEW_LAYERS
from .subject import HALF_TOLERANCE, TrainerSubject, length_of


LOSS_TOLERANCE = 1e-5  # relative, in full precision; means over padding change losses of new models little


def check_padded_loss(subject: TrainerSubject, report: Report) -> None:
    """
    P201: the loss of a row is the same with padding beside it and without.

    Heads and losses of users pool the body's outputs; a mean over padding is seen in the loss only.
    """
    is_stock = has_stock_loss(subject) and subject.base is unwrap_adapter(subject.model)
    if subject.kind not in ("classification", "unknown") or is_stock or "P201" in report.codes:
        return
    pair = padded_and_alone(subject, subject.short_features)
    if pair is None:
        return
    with subject.few_layers(FEW_LAYERS), torch.no_grad():
        padded, again, alone = [float(subject.loss(batch).mean()) for batch in (pair[0], *pair)]
    if padded != again:
        report.cannot_see("padding in the loss: the loss of the same row differs each time")
        return
    limit = HALF_TOLERANCE if subject.tolerance == HALF_TOLERANCE else LOSS_TOLERANCE
    if abs(padded - alone) > limit * max(1.0, abs(alone)):
        report.add(
            "P201", f"the loss of a row is {padded:.5f} with padding, and {alone:.5f} without", "the shortest row"
        )


def padded_and_alone(subject: TrainerSubject, features: Sequence[Any]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Returns the shortest of some records as a row of their batch, and as a batch without padding; None if equal."""
    if len(features) < 2:
        return None
    whole = subject.collate(features)
    ids, rows = whole.get("input_ids"), len(features)
    place = min(range(rows), key=lambda number: length_of(features[number]))
    alone = subject.collate([features[place]])
    tensors = all(isinstance(value, torch.Tensor) and value.dim() and len(value) == rows for value in whole.values())
    if not tensors or ids is None or ids.dim() != 2 or not are_equal(whole, subject.collate(features)):
        return None
    if alone["input_ids"].shape[1] == ids.shape[1]:
        return None
    labels = whole.get("labels")
    if labels is not None and labels.shape == ids.shape:
        return None  # losses of tokens may divide by the length of the batch, which is another finding
    return {name: value[place : place + 1] for name, value in whole.items()}, alone
