"""A moving average of the weights: evaluated during the run, and the model at its end."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from ..core.errors import InputError


if TYPE_CHECKING:
    from .trainer import RunTrainer as _Trainer  # the mixin stands in front of it
else:
    _Trainer = object

AVERAGES_FILE = "averages.pt"


class EMA:
    """
    Exponential moving average of a model's trainable weights.

    The decay is warmed up, min(`decay`, (1 + t) / (10 + t)) after t updates, so that the average soon forgets the
    random weights at the start.

    >>> ema = EMA(model, decay=0.98)
    >>> ...; optimizer.step(); ema.update()
    >>> with ema.swapped():  # evaluate or save the model with its averages
    ...     model.save_pretrained("averaged")
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise InputError(f"the decay of the weight average is {decay}: it must be at least 0 and below 1")
        self.decay = decay
        self.updates = 0
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.averages = {n: p.detach().clone() for n, p in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages towards the weights; call it once after every optimizer step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(list(self.averages.values()), list(self.parameters.values()), 1 - decay)

    @contextlib.contextmanager
    def swapped(self) -> Iterator[None]:
        """Give the model its averages inside the block, and its trained weights again afterwards."""
        weights = {n: p.detach().clone() for n, p in self.parameters.items()}
        self.copy_to_model(self.averages)
        try:
            yield
        finally:
            self.copy_to_model(weights)

    @torch.no_grad()
    def copy_to_model(self, weights: dict[str, Tensor]) -> None:
        """Set the model's trainable weights."""
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])

    def state_dict(self) -> dict[str, Any]:
        """Return the number of `updates`, and the `averages` by parameter name."""
        return {"updates": self.updates, "averages": dict(self.averages)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state. Older states are the averages alone; their warm-up counts as over."""
        averages = state.get("averages", state)
        self.updates = state.get("updates", 2**53)
        for name, average in self.averages.items():
            average.copy_(averages[name])


class AveragingMixin(_Trainer):
    """
    For a Trainer with `RunMixin`: evaluate, and end with, a moving average of the weights.

    Checkpoints hold weights and averages, so that a resumed run is exact.

    Args:
        ema_decay: decay of the average; 0 for none.
    """

    def __init__(self, *args: Any, ema_decay: float = 0.0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.ema: EMA | None = None
        if ema_decay:
            self.add_callback(_UpdateAverages(self, ema_decay))

    def averaged(self) -> contextlib.AbstractContextManager:
        """Give the model the average of its weights inside the block, if there is one."""
        return self.ema.swapped() if self.ema is not None else contextlib.nullcontext()

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self.averaged():
            return super().evaluate(*args, **kwargs)

    def save_training_state(self, checkpoint: Path) -> None:
        super().save_training_state(checkpoint)
        if self.ema is not None and self.args.should_save:
            torch.save(self.ema.state_dict(), checkpoint / AVERAGES_FILE)

    def start_averaging(self, decay: float) -> None:
        """Begin with the model's weights, or with the averages of the checkpoint that the run resumes from."""
        self.ema = EMA(self.accelerator.unwrap_model(self.model), decay)
        if self.checkpoint_to_resume is not None:
            self.load_averages(Path(self.checkpoint_to_resume))

    def load_averages(self, checkpoint: Path) -> None:
        """Load the averages of a checkpoint."""
        assert self.ema is not None
        self.ema.load_state_dict(torch.load(checkpoint / AVERAGES_FILE, weights_only=True))


class _UpdateAverages(TrainerCallback):
    def __init__(self, trainer: AveragingMixin, decay: float):
        self.trainer, self.decay = trainer, decay

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.start_averaging(self.decay)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.ema is not None:
            self.trainer.ema.update()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        ema = self.trainer.ema
        if ema is not None and state.global_step >= state.max_steps:  # a stopped run resumes from its trained weights
            if args.load_best_model_at_end and state.best_model_checkpoint is not None:
                self.trainer.load_averages(Path(state.best_model_checkpoint))
            ema.copy_to_model(ema.averages)
            self.trainer.ema = None
