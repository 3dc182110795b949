"""Losses between a student's outputs and its teacher's, and how the latter are padded to a batch."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn import functional as F


# The logit of what a row does not have though others of its batch do: more tokens, more options.
ABSENT = -torch.inf

SoftLoss = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]


def pad_logits(rows: Sequence[np.ndarray]) -> torch.Tensor:
    """Return logits `(outputs, classes)` of rows as one tensor, filled up with [`ABSENT`] on the right."""
    shape = np.max([row.shape for row in rows], axis=0)
    batch = torch.full((len(rows), *shape), ABSENT)
    for place, row in zip(batch, rows):
        place[: row.shape[0], : row.shape[1]] = torch.tensor(row)
    return batch


def count_outputs(target: torch.Tensor) -> torch.Tensor:
    """Return the number of outputs that a batch of logits `(batch, outputs, classes)` has, without absent ones."""
    return target.isfinite().any(-1).sum()


def token_mask(attention_mask: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """
    Return which tokens `(rows, length)` hidden states are compared at: all but padding.

    Args:
        attention_mask: `(batch, length)`, or `(batch, options, length)` with other options repeated for absent ones.
        target: logits of the teacher with [`ABSENT`] ones.
    """
    if attention_mask.dim() == 2:
        return attention_mask.bool()
    return (attention_mask.bool() & target.isfinite()[:, 0, :, None]).flatten(0, 1)


def class_loss(logits: torch.Tensor, target: torch.Tensor, temperature: float) -> torch.Tensor:
    """
    Return the Kullback-Leibler divergence from the teacher's classes, summed, times the temperature squared.

    Hinton et al. 2015, "Distilling the knowledge in a neural network", arXiv:1503.02531.

    Args:
        logits: of the student, `(batch, outputs, classes)`.
        target: the same of the teacher, with [`ABSENT`] ones.
        temperature: divisor of both.
    """
    has_output = target.isfinite().any(-1)
    logits, target = logits[has_output] / temperature, target[has_output] / temperature
    is_absent = ~target.isfinite()
    log_target = target.log_softmax(-1)
    difference = log_target - logits.masked_fill(is_absent, ABSENT).log_softmax(-1)
    return temperature**2 * (log_target.exp() * difference.masked_fill(is_absent, 0.0)).sum()


def label_loss(logits: torch.Tensor, target: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the binary cross-entropy with the teacher's probability of each label, summed; see [`class_loss`]."""
    probabilities = (target / temperature).sigmoid()
    return temperature**2 * F.binary_cross_entropy_with_logits(logits / temperature, probabilities, reduction="sum")


def number_loss(logits: torch.Tensor, target: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the squared distance from the teacher's numbers, summed; they have no temperature."""
    return F.mse_loss(logits, target, reduction="sum")


def state_loss(states: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the squared distance of hidden states `(tokens, width)` as shares of the teacher's squares, summed."""
    return (((states - target) ** 2).sum(-1) / (target**2).sum(-1)).sum()
