"""A run that is measured by, and ends with, the moving average of its weights."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from .optim import EMA


if TYPE_CHECKING:
    from transformers import Trainer as _Trainer  # in front of which the mixin stands
else:
    _Trainer = object

AVERAGES_FILE = "averages.pt"


class AveragingMixin(_Trainer):
    """
    For a Trainer: with `ema_decay` above 0 an exponential moving average of the weights is kept, evaluated, and left in
    the model when training has ended. Checkpoints hold weights and averages, so that a run goes on exactly.
    """

    def __init__(self, *args: Any, ema_decay: float = 0.0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.ema: EMA | None = None
        self._averages_to_load: Path | None = None
        if ema_decay:
            self.add_callback(_Average(self, ema_decay))

    def averaged(self) -> contextlib.AbstractContextManager:
        """Inside, the model has the average of its weights, where one is kept."""
        return self.ema.swapped() if self.ema is not None else contextlib.nullcontext()

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self.averaged():
            return super().evaluate(*args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.ema is not None and self.args.should_save:
            torch.save(self.ema.state_dict(), Path(output_dir) / AVERAGES_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._averages_to_load = Path(checkpoint) / AVERAGES_FILE


class _Average(TrainerCallback):
    def __init__(self, trainer: AveragingMixin, decay: float):
        self.trainer, self.decay = trainer, decay

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        trainer.ema = EMA(trainer.accelerator.unwrap_model(trainer.model), self.decay)
        if trainer._averages_to_load is not None:
            trainer.ema.load_state_dict(torch.load(trainer._averages_to_load, weights_only=True))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.ema.update()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:  # a stopped run goes on with its own weights
            self.trainer.ema.leave_in_model()
            self.trainer.ema = None
