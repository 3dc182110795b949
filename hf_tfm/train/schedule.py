"""Learning-rate schedules as pure functions of the step."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
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
) -> Callable[[float], float]:
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

    def factor(step: float) -> float:
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


@dataclass
class RunPlan:
    """
    The steps of a run whose decay may begin early.

    A decay that begins early has the planned share of the run, so that the whole run is shorter. Learning rates,
    masking rates and lengths of rows are functions of the `planned_step`.

    Attributes:
        max_steps: steps of the run as planned.
        decay_steps: the last of these, which decay.
        decay_start: steps before a decay that begins early; None for the plan.
    """

    max_steps: int
    decay_steps: int
    decay_start: int | None = None

    @property
    def stable_steps(self) -> int:
        """Return the planned steps before the decay."""
        return self.max_steps - self.decay_steps

    @property
    def total_steps(self) -> int:
        """Return the steps of the run."""
        if self.decay_start is None:
            return self.max_steps
        return self.decay_start + max(1, round(self.decay_steps * self.decay_start / self.stable_steps))

    def planned_step(self, step: Any, units: int = 1) -> Any:
        """
        Return the step of the planned run that has the settings of a step of this run.

        Args:
            step: a step, an array of them, or their rows or micro steps, of which a step has so many `units`.
        """
        if self.decay_start is None:
            return step
        progress = (step - units * self.decay_start) / (units * (self.total_steps - self.decay_start))
        decaying = units * (self.stable_steps + progress * self.decay_steps)
        return np.where(step < units * self.decay_start, step, decaying)


def build_scheduler(
    optimizer: torch.optim.Optimizer, name: str, total_steps: int, plan: RunPlan | None = None, **settings: Any
) -> LambdaLR:
    """
    Return `schedule` applied to every parameter group, each from its own rate. Arguments and errors: see there.

    Args:
        plan: the steps of a run whose decay may begin early.
    """
    factor = schedule(name, total_steps, **settings)
    return LambdaLR(optimizer, factor if plan is None else lambda step: factor(float(plan.planned_step(step))))
