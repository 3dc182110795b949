"""Learning-rate schedules as pure functions of the step."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from ..core.errors import InputError


def schedule(
    name: str,
    total_steps: int,
    *,
    warmup: float = 0.05,
    decay: float = 0.5,
    final: float = 0.02,
) -> Callable[[int], float]:
    """
    Return the factor on every learning rate as a function of the step.

    Args:
        name: "wsd" (warm-up, stable, linear decay; https://arxiv.org/abs/2405.18392), "cosine" or "constant".
        total_steps: length of the run in optimizer steps.
        warmup, decay: a share of the run if below 1, else a number of steps. Only "wsd" has a `decay`.
        final: factor at the end of "wsd" and "cosine".

    Raises:
        InputError: the name is unknown, or the phases do not fit into the run.
    """
    if name not in ("wsd", "cosine", "constant"):
        raise InputError(f"schedule {name!r} is unknown: choose wsd, cosine or constant")
    if total_steps < 1:
        raise InputError(f"a schedule over {total_steps} steps is empty: give it at least one")
    warmup_steps, decay_steps = (round(x * total_steps) if x < 1 else round(x) for x in (warmup, decay))
    phase_steps = warmup_steps + (decay_steps if name == "wsd" else 0)
    if min(warmup_steps, decay_steps) < 0 or phase_steps > total_steps:
        raise InputError(
            f"warm-up ({warmup:g}) and decay ({decay:g}) do not fit into {total_steps} steps: shorten them"
        )

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps  # the first step already moves
        if name == "constant":
            return 1.0
        if name == "cosine":
            progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
            return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
        progress = min(1.0, max(0.0, (step - (total_steps - decay_steps)) / max(1, decay_steps)))
        return final + (1 - final) * (1 - progress)

    return factor


def build_scheduler(optimizer: torch.optim.Optimizer, name: str, total_steps: int, **settings: Any) -> LambdaLR:
    """Return `schedule` applied to every parameter group, each from its own rate. Arguments and errors: see there."""
    return LambdaLR(optimizer, schedule(name, total_steps, **settings))
