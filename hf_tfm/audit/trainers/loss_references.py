"""The cross-entropy of a model's logits, averaged in the ways that losses are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from .probe import computing
from .subject import IGNORED, TrainerSubject


@dataclass(frozen=True)
class TokenLosses:
    """
    Cross-entropies of the trained labels, one entry for each row.

    Attributes:
        shifts: By the number of places that labels are shifted before they are compared: lists of losses by row.
        tokens: Number of tokens without padding.
        places: Number of tokens with padding.
        labels: Number of labels that are not ignored.
    """

    shifts: dict[int, list[torch.Tensor]]
    tokens: int
    places: int
    labels: int


def token_losses(subject: TrainerSubject, batch: Mapping[str, Any]) -> TokenLosses | None:
    """Returns the cross-entropies of a batch by the model's own logits; None if it has none for each label."""
    labels = batch["labels"]
    ignored = ("shift_labels", "num_items_in_batch") + (() if subject.kind == "seq2seq" else ("labels",))
    inputs = {name: value for name, value in batch.items() if name not in ignored}
    with computing(subject):
        outputs = subject.model(**inputs)
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else None
    if logits is None or logits.dim() != 3 or logits.shape[:2] != labels.shape:
        return None
    smoothing = getattr(subject.args, "label_smoothing_factor", 0.0)
    shifts: dict[int, list[torch.Tensor]] = {}
    for shift in (0, 1, 2):
        shifts[shift] = []
        for row, values in zip(logits, labels):
            target = values[shift:]
            trained = target != IGNORED
            chosen = row[: len(target)][trained].float()
            shifts[shift].append(F.cross_entropy(chosen, target[trained], reduction="none", label_smoothing=smoothing))
    mask = batch.get("attention_mask")
    tokens = int(mask.sum()) if isinstance(mask, torch.Tensor) and mask.shape == labels.shape else labels.numel()
    return TokenLosses(shifts, tokens, labels.numel(), int((labels != IGNORED).sum()))


def matching_reference(
    value: float, losses: TokenLosses, accumulation: int, shift: int, is_known: bool
) -> tuple[str, str | None]:
    """
    Returns what a loss is, in words, and how right that is.

    The second value is "right", a level of a finding, "none" or "twice" where labels are shifted so, or None if the
    loss is no mean known here.

    Args:
        shift: Number of places that labels are shifted by.
        is_known: Whether that was seen, and no other number is tried.
    """
    rows = [row for row in losses.shifts[shift] if len(row)]
    if not rows:
        return "", None
    every = torch.cat(rows)
    total, mean = float(every.sum()), float(every.mean())
    # Some stock losses also count the first label of a row, which nothing predicts.
    if is_close(value, mean) or is_close(value, total / losses.labels):
        return "the mean over trained tokens", "right"
    usual = [
        (float(torch.stack([row.mean() for row in rows]).mean()), "the mean of the rows' means", "note"),
        (total / losses.tokens, "divided by all tokens instead of the trained ones", "warning"),
        (total / losses.places, "divided by all places of the batch, padding included", "warning"),
        ((total / (losses.places - len(rows))), "divided by all places of the batch, padding included", "warning"),
        (total / len(losses.shifts[0]), "divided by the number of rows", "warning"),
        (total, "the sum over tokens, divided by nothing", "warning"),
    ]
    if accumulation > 1:
        steps = f"{accumulation} accumulation steps"
        usual.append((mean / accumulation, f"already divided by the {steps}, and the trainer divides again", "warning"))
        usual.append((mean * accumulation, f"multiplied by the {steps}", "warning"))
    for other in () if is_known else (0, 1, 2):
        if other != shift and (moved := [row for row in losses.shifts[other] if len(row)]):
            words = {0: "of outputs and labels at the same place", 1: "of labels shifted", 2: "of labels shifted twice"}
            usual.append(
                (float(torch.cat(moved).mean()), f"the mean {words[other]}", "none" if other < shift else "twice")
            )
    return next(((name, level) for reference, name, level in usual if is_close(value, reference)), ("", None))


def is_close(value: float, reference: float) -> bool:
    """Whether two losses are equal but for rounding, also in half precision."""
    return abs(value - reference) <= 5e-3 * abs(reference)
