"""transformers' Trainer with whole checkpoints, a clean stop on a signal, and a progress line a person can read."""

import contextlib
import copy
import json
import os
import signal
import sys
import threading
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils import logging as transformers_logging

from .attention import use_blockwise_attention
from .card import write_card
from .checkpoints import atomic_folder, last_checkpoint, rotate, staging_folder
from .errors import InputError
from .pushing import PushMixin
from .record import RunRecord, save_generation, with_cache


RECIPE_FILE = ".recipe.json"  # hidden: it names this machine's paths and is no part of the model


class StopOnSignal(TrainerCallback):
    """On SIGINT or SIGTERM: finish the step, write a checkpoint, stop. A second signal interrupts at once."""

    def __init__(self) -> None:
        self.stopped_by: str | None = None
        self._previous: dict[int, object] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self.stopped_by = None
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._stop)

    def on_step_end(self, args, state, control, **kwargs):
        if self._any_process_stopped(args):
            control.should_save = True
            control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **kwargs):
        # Trainer comes here from the middle of an epoch too. An evaluation now would be one that a run without a stop
        # does not have, and could choose its best checkpoint.
        if self.stopped_by is not None and not float(state.epoch).is_integer():
            control.should_evaluate = control.should_save = control.should_log = False

    def on_train_end(self, args, state, control, **kwargs):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _stop(self, number, frame) -> None:
        if self.stopped_by is not None:
            raise KeyboardInterrupt
        self.stopped_by = signal.Signals(number).name
        print(f"\n{self.stopped_by}: finishing this step and saving a checkpoint …", file=sys.stderr, flush=True)

    def _any_process_stopped(self, args) -> bool:
        if args.world_size == 1:
            return self.stopped_by is not None
        # All processes must leave at the same step, or those that stay wait for ever.
        flag = torch.tensor(float(self.stopped_by is not None), device=args.device)
        torch.distributed.all_reduce(flag)
        if flag.item() and self.stopped_by is None:
            self.stopped_by = "a signal to another process"
        return bool(flag.item())


class ProgressLine(TrainerCallback):
    """One line: steps, loss (and bits per byte where the run knows its bytes), speed, time left."""

    def __init__(self, bytes_per_token: float | None = None) -> None:
        self.bytes_per_token = bytes_per_token
        self.bar = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc="train", unit="step", dynamic_ncols=True,
                mininterval=0.5 if sys.stderr.isatty() else 15,
            )  # fmt: skip

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.bar is None or not logs:
            return
        if "loss" in logs:
            shown = {name: f"{logs[name]:.3f}" for name in ("loss", "reward") if logs.get(name) is not None}
            if self.bytes_per_token:
                shown["bits/byte"] = f"{bits_per_byte(logs['loss'], self.bytes_per_token):.3f}"
            if "train_tokens_per_second" in logs:
                shown["tokens/s"] = f"{logs['train_tokens_per_second']:,.0f}"
            self.bar.set_postfix(shown, refresh=False)
        elif any(name.startswith("eval_") for name in logs):
            skip = ("runtime", "per_second", "epoch")
            figures = {k: v for k, v in logs.items() if isinstance(v, float) and not any(s in k for s in skip)}
            self.bar.write(f"step {state.global_step}: " + ", ".join(f"{k} {v:.4f}" for k, v in figures.items()))

    def on_train_end(self, args, state, control, **kwargs):
        self.close()

    def close(self) -> None:
        """End the line; what is printed next has one of its own."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def recipe_before(run: str | Path) -> dict | None:
    """What [`RunMixin.train_or_resume`] was given when a run began, or None if none did in that folder."""
    file = Path(run) / RECIPE_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """Cross-entropy in nats per token as bits per UTF-8 byte, which compares across tokenizers."""
    return loss / bytes_per_token / 0.6931471805599453


class RunMixin(PushMixin):
    """
    For any Trainer: checkpoints are atomic, signals stop the run after a step, progress is one line, and the same
    command goes on where the run stopped. With a `record` every checkpoint has a card. What is pushed is whole.
    """

    def __init__(self, *args, record: RunRecord | None = None, bytes_per_token: float | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.record = record
        if self.args.bf16:
            use_blockwise_attention(self.model)
        for noisy in (ProgressCallback, PrinterCallback):
            self.remove_callback(noisy)
        self.stop_on_signal = StopOnSignal()
        self.add_callback(self.stop_on_signal)
        self.progress_line = ProgressLine(bytes_per_token)
        self.add_callback(self.progress_line)
        self._staged_run: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a signal ended the training before its last step."""
        return self.stop_on_signal.stopped_by is not None and self.state.global_step < self.state.max_steps

    def train_or_resume(self, recipe: dict) -> None:
        """
        Train from the newest complete checkpoint of the output folder, or from the start.

        Args:
            recipe: what must not change between the parts of one run; kept in `.recipe.json` beside the checkpoints.

        Raises:
            InputError: the folder holds checkpoints of another recipe.
        """
        run = Path(self.args.output_dir)
        checkpoint = self.args.resume_from_checkpoint or last_checkpoint(run)
        recipe = json.loads(json.dumps(recipe, default=str))
        before = recipe_before(run)
        if checkpoint is not None and before is not None:
            changed = sorted(name for name in recipe.keys() | before.keys() if recipe.get(name) != before.get(name))
            if changed:
                name = changed[0]
                raise InputError(
                    f"{run}: its checkpoints come from another recipe ({name}: {before.get(name)!r}, now "
                    f"{recipe.get(name)!r}): choose another --output_dir or delete it"
                )
        self.accelerator.wait_for_everyone()  # all have read it
        if self.args.should_save:
            partial = run / f"{RECIPE_FILE}.partial"
            try:
                run.mkdir(parents=True, exist_ok=True)
                partial.write_text(json.dumps(recipe, indent=1), encoding="utf-8")
                os.replace(partial, run / RECIPE_FILE)  # killed in the middle, the old one stands
            except OSError as error:
                raise InputError(f"--output_dir {run}: cannot be written ({error.strerror}); mend that") from None
        if checkpoint is not None:
            self.accelerator.print(f"resuming from {checkpoint}", flush=True)
        transformers_logging.disable_progress_bar()  # there is one line already
        try:
            self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        finally:
            self.progress_line.close()

    def _get_output_dir(self, trial) -> str:
        return self._staged_run or super()._get_output_dir(trial)

    def whole_model(self, weights: dict[str, torch.Tensor] | None = None) -> PreTrainedModel:
        """
        The model without what wraps it, to use or save it. Of a sharded one (FSDP2) it is a copy that has all weights
        in the first process, and random ones in the others; all processes must call this then.

        Args:
            weights: of the whole model, if they were gathered already.
        """
        model = self.accelerator.unwrap_model(self.model)
        if not self.accelerator.is_fsdp2 or not isinstance(model, PreTrainedModel):
            return model
        if weights is None:
            weights = self.accelerator.get_state_dict(self.model)
        # Sharding puts a class of its own in front, which would be saved by its own name and without the model's code.
        whole = type(model).__bases__[-1](copy.deepcopy(model.config))
        if weights:
            whole.load_state_dict(weights)
        if model.can_generate():
            whole.generation_config = model.generation_config
        return whole.eval()

    def _save(self, output_dir=None, state_dict=None) -> None:
        sharded = self.model
        model = self.whole_model(state_dict)
        if model is not self.accelerator.unwrap_model(sharded):
            if not self.args.should_save:
                return
            self.model, state_dict = model, None
        try:
            with with_cache(model):
                super()._save(output_dir, state_dict)
        finally:
            self.model = sharded
        save_generation(model, output_dir or self.args.output_dir)

    def _issue_warnings_after_load(self, load_result) -> None:
        # A tied matrix stands in the file once; that its other name is missing there is as it should be.
        tied = set(getattr(self.accelerator.unwrap_model(self.model), "_tied_weights_keys", None) or ())
        load_result.missing_keys[:] = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result)

    def _save_checkpoint(self, model, trial) -> None:
        run = Path(super()._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        first = self.is_world_process_zero()
        # Every process writes its part into the first one's folder, which gets its name when all are done.
        with atomic_folder(run / name) if first else contextlib.nullcontext(staging_folder(run / name)) as staging:
            self.accelerator.wait_for_everyone()
            self._staged_run = str(staging)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._staged_run = None
            self.accelerator.wait_for_everyone()
            best = self.state.best_model_checkpoint
            if best is not None and Path(best).name == name:
                # Every process loads the best weights at the end, from where they will be.
                self.state.best_model_checkpoint = str(run / name)
            if first:
                self._move_up(staging / name)
        if first:
            if self.args.push_to_hub:
                self.push_checkpoint(run / name)
            rotate(run, self.args.save_total_limit, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()

    def _move_up(self, written: Path) -> None:
        """The stock method makes a folder of its own inside the one it is given, and names that as the best one."""
        self.state.save_to_json(str(written / TRAINER_STATE_NAME))
        for path in written.iterdir():
            os.rename(path, written.parent / path.name)
        written.rmdir()
        if self.record is not None:
            self.record.add_model(self.accelerator.unwrap_model(self.model))
            self.record.add_training(self.state)
            self.record.write(written.parent)
            write_card(written.parent)


class RunTrainer(RunMixin, Trainer):
    """The stock Trainer with what [`RunMixin`] adds."""
