"""The loss over tokens that several tasks have, for Trainer's `compute_loss_func`."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F


LossFunction = Callable[..., torch.Tensor]


def token_loss(smoothing: float = 0.0) -> LossFunction:
    """Return a `compute_loss_func` for Trainer: the mean over all labels but -100 of all accumulated batches."""

    def compute(
        outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        logits = outputs["logits"].float().flatten(0, 1)
        loss = F.cross_entropy(logits, labels.flatten(), reduction="sum", label_smoothing=smoothing)
        return loss / ((labels != -100).sum() if num_items_in_batch is None else num_items_in_batch)

    return compute
