"""Trainer callbacks of every run: stop on a signal, one progress line, an error for a diverged loss."""

import math
import signal
import sys
import threading
import time
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainingArguments

from ..core.errors import InputError


class StopOnSignal(TrainerCallback):
    """On SIGINT or SIGTERM: finish the step, save a checkpoint, stop. A second signal interrupts at once."""

    def __init__(self) -> None:
        self.stopped_by: str | None = None
        self._previous_handlers: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.stopped_by = None
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous_handlers[number] = signal.signal(number, self._stop)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._is_any_process_stopped(args):
            control.should_save = True
            control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Trainer calls this in the middle of an epoch too. A run without a stop would not evaluate here, and such an
        # evaluation could choose another best checkpoint.
        if self.stopped_by is not None and not float(state.epoch).is_integer():
            control.should_evaluate = control.should_save = control.should_log = False

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.restore()

    def restore(self) -> None:
        """Restore the signal handlers from before the training."""
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        self._previous_handlers = {}

    def _stop(self, number: int, frame: Any) -> None:
        if self.stopped_by is not None:
            raise KeyboardInterrupt
        self.stopped_by = signal.Signals(number).name
        print(f"\n{self.stopped_by}: finishing this step and saving a checkpoint …", file=sys.stderr, flush=True)

    def _is_any_process_stopped(self, args: TrainingArguments) -> bool:
        if args.world_size == 1:
            return self.stopped_by is not None
        # All processes must leave at the same step, or the others wait for ever.
        flag = torch.tensor(float(self.stopped_by is not None), device=args.device)
        torch.distributed.all_reduce(flag)
        if flag.item() and self.stopped_by is None:
            self.stopped_by = "a signal to another process"
        return bool(flag.item())


class ProgressLine(TrainerCallback):
    """
    Show one line: steps, loss, speed and time left.

    If standard error is no terminal, print a line on standard output at most every `SECONDS_BETWEEN_LINES`.
    """

    SECONDS_BETWEEN_LINES = 15

    def __init__(self) -> None:
        self.bar: Any = None
        self.last_line_time = -math.inf

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc="train", unit="step", dynamic_ncols=True,
                mininterval=0.5, disable=None,
            )  # fmt: skip

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.total = state.max_steps  # validation may shorten a run
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.bar is None or not logs:
            return
        if "loss" in logs:
            self._show_training(logs, state)
        elif any(name.startswith("eval_") for name in logs):
            skip = ("runtime", "per_second", "epoch")
            figures = {k: v for k, v in logs.items() if isinstance(v, float) and not any(s in k for s in skip)}
            self.bar.write(f"step {state.global_step}: " + ", ".join(f"{k} {v:.4f}" for k, v in figures.items()))

    def _show_training(self, logs: dict[str, Any], state: Any) -> None:
        figures = {name: f"{logs[name]:.3f}" for name in ("loss", "reward") if logs.get(name) is not None}
        if "train_tokens_per_second" in logs:
            figures["tokens/s"] = f"{logs['train_tokens_per_second']:,.0f}"
        self.bar.set_postfix(figures, refresh=False)
        if self.bar.disable and time.monotonic() - self.last_line_time >= self.SECONDS_BETWEEN_LINES:
            self.last_line_time = time.monotonic()
            text = ", ".join(f"{name} {figure}" for name, figure in figures.items())
            print(f"step {state.global_step} of {state.max_steps}: {text}", flush=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close()

    def close(self) -> None:
        """End the line, so that later output starts on a new one."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class StopWithoutGain(TrainerCallback):
    """
    Stop when the metric that chooses the best checkpoint did not improve in `patience` evaluations, if it is given.

    Unlike transformers' `EarlyStoppingCallback` it reads the run's log, so that a resumed run stops where it would have
    without the stop.
    """

    def __init__(self, patience: int | None) -> None:
        self.patience = patience
        self.has_stopped = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.has_stopped = False

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.patience is None:
            return
        name = f"eval_{args.metric_for_best_model}"
        values = [entry[name] * (1 if args.greater_is_better else -1) for entry in state.log_history if name in entry]
        if len(values) - 1 - values.index(max(values)) >= self.patience:
            self.has_stopped = control.should_training_stop = True


class RefuseDiverged(TrainerCallback):
    """Raise `InputError` when the evaluation loss is not finite; Trainer would go on and show the mean loss so far."""

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        if not math.isfinite(metrics.get("eval_loss", 0.0)):
            raise InputError("the loss is not finite, the training diverged: lower --learning_rate")
