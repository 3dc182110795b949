"""Validation decides when the decay of a run begins, and which checkpoint becomes the model."""

import math
from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback

from .report import print_line
from .schedule import RunPlan


class EarlyDecay(TrainerCallback):
    """
    Begin the decay when `patience` evaluations in succession bring no new minimum of the validation loss.

    It decides from the log of evaluations, which every checkpoint has, so that a resumed run decides alike.

    Args:
        plan: the steps of the run, which this changes.
        patience: number of evaluations, 0 to keep the plan.
        first_step: evaluations up to this step do not count.
    """

    def __init__(self, plan: RunPlan, patience: int, first_step: int):
        self.plan, self.patience, self.first_step = plan, patience, first_step

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._follow_log(state)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        is_planned = self.plan.decay_start is None
        self._follow_log(state)
        if is_planned and self.plan.decay_start is not None:
            print_line("decay", self.describe())

    def _follow_log(self, state: Any) -> None:
        if self.patience:
            self.plan.decay_start = find_decay_start(self._losses(state), self.plan, self.patience)
            state.max_steps = self.plan.total_steps

    def _losses(self, state: Any) -> list[tuple[int, float]]:
        entries = (entry for entry in state.log_history if "eval_loss" in entry)
        return [(entry["step"], entry["eval_loss"]) for entry in entries if entry["step"] > self.first_step]

    def describe(self) -> str:
        """Return when and why the decay begins early."""
        return (
            f"begins after step {self.plan.decay_start:,} rather than {self.plan.stable_steps:,}, because "
            f"{self.patience} evaluations brought no lower validation loss; the run has {self.plan.total_steps:,} steps"
        )


def find_decay_start(losses: Sequence[tuple[int, float]], plan: RunPlan, patience: int) -> int | None:
    """
    Return the step of the evaluation that begins the decay early, None if there is none yet.

    Args:
        losses: steps and losses of the evaluations; those from the planned decay on do not count.
        patience: number of evaluations in succession without a new minimum.
    """
    lowest, waiting = math.inf, 0
    for step, loss in losses:
        waiting = 0 if loss < lowest else waiting + 1
        lowest = min(loss, lowest)
        if waiting == patience and step < plan.stable_steps:
            return step
    return None


class SaveBest(TrainerCallback):
    """Save a checkpoint at each evaluation with the best figure so far, if the best checkpoint is loaded at the end."""

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        if not args.load_best_model_at_end:
            return
        value = metrics.get(f"eval_{args.metric_for_best_model.removeprefix('eval_')}")
        best = state.best_metric
        if value is not None and (best is None or (value > best if args.greater_is_better else value < best)):
            control.should_save = True
