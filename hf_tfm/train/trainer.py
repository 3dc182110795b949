"""transformers' Trainer with atomic checkpoints, a clean stop on a signal, exact resume and one progress line."""

import contextlib
import copy
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils import logging as transformers_logging

from ..artifacts.record import RECORD_FILE, RunRecord, save_generation, with_cache
from ..artifacts.tokenizer_files import mend_tokenizer_files
from ..audit.trainers.preflight import preflight
from ..core.atomic_files import partial_path
from ..core.checkpoints import atomic_checkpoint, last_checkpoint, rotate_checkpoints
from ..core.errors import InputError, explain
from ..core.memory import keep_freed_memory
from ..cpu.attention import enable_blockwise_attention
from ..cpu.compile import uncompile_blocks
from ..hub.trainer import PushMixin
from .callbacks import ProgressLine, RefuseDiverged, StopOnSignal, StopWithoutGain
from .recipe import refuse_below, refuse_ignored
from .run_identity import IDENTITY_FILE, require_same_identity, write_identity


# Private names of transformers' Trainer that this package overrides or calls, because no public hook does the job.
# tests/train/test_trainer.py fails when one of them changes its signature, and when a name in use is missing here.
PRIVATE_NAMES = {
    "_save_checkpoint": "atomic: everything is written into a hidden folder that is renamed at the end",
    "_get_output_dir": "the folder that a checkpoint is written into until it is complete",
    "_save": "whole folders: tokenizer files, generation settings, the full model of a sharded one",
    "_issue_warnings_after_load": "no warning about the second name of tied weights",
    "_load_from_checkpoint": "weights of adapters inside sentence-transformers' models (tasks/embeddings.py)",
    "_get_collator_with_removed_columns": "a batch to measure the time of a step on (train/finetuning_trainer.py)",
    "_get_train_sampler": "batches of similar length that a resumed run draws again (train/finetuning_trainer.py)",
    "_get_eval_sampler": "evaluation sorted by length (train/finetuning_trainer.py)",
    "_get_num_items_in_batch": "a label of -100 counts where labels are numbers (train/finetuning_trainer.py)",
    "_loss_shifts_labels": "attribute: whether the stock loss shifts labels, unset for GPT2LMHeadModel's kind",
    "_finish_current_push": "a push in the background ends before the next (hub/trainer.py)",
    "_push_from_checkpoint": "a checkpoint is pushed after it has its name and card (hub/trainer.py)",
    "_internal_call": "argument of save_model: saving must not push (hub/trainer.py)",
}


def check_arguments(args: TrainingArguments, model: str, ignored: Mapping[str, str] | None = None) -> None:
    """
    Raise `InputError` for arguments that would fail later or have no effect.

    Args:
        model: the model to train; neither its folder nor a folder with another model is overwritten.
        ignored: see `refuse_ignored`.
    """
    refuse_ignored(args, ignored or {})
    counts = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
    refuse_below(args, **dict.fromkeys(counts, 1), seed=0, max_grad_norm=0)
    if missing := sorted(set(args.report_to) - set(get_available_reporting_integrations())):
        raise InputError(f"--report_to {missing[0]}: there is no such package here; install it or leave this out")
    checkpoint = args.resume_from_checkpoint
    if checkpoint is not None and not (Path(checkpoint) / TRAINER_STATE_NAME).is_file():
        raise InputError(
            f"--resume_from_checkpoint {checkpoint}: no checkpoint there; without it a run resumes from its newest one"
        )
    folder = Path(args.output_dir)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output_dir {folder} is a file; give the name of a folder")
    if (folder / RECORD_FILE).exists():
        raise InputError(
            f"{folder}: holds a finished run already; choose another --output_dir or delete it. To "
            f"train its model longer, give --model {folder} and another --output_dir"
        )
    if (folder / "config.json").exists() and not (folder / IDENTITY_FILE).exists():
        raise InputError(f"--output_dir {folder} holds another model: give a folder of its own")
    if folder.is_dir() and Path(model).is_dir() and folder.samefile(model):
        raise InputError(f"--output_dir {folder} is the folder of --model: give another one")


def _is_no_step_mismatch(line: logging.LogRecord) -> bool:
    """Return False for Trainer's warning that `eval_steps` changed, which it gives for any share of the run (0.2)."""
    return "do not match the ones in the `trainer_state.json`" not in line.getMessage()


class RunMixin(PushMixin):
    """
    For any Trainer: atomic checkpoints, a clean stop on a signal, exact resume, one progress line, whole pushes.

    Args:
        record: run record; with one every checkpoint has a card.
    """

    supports_sharding = True  # whether FSDP may shard the model

    def __init__(self, *args: Any, record: RunRecord | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.is_fsdp_enabled and not self.supports_sharding:
            raise InputError("this training cannot divide its model (FSDP): launch it with training/launch/ddp.yaml")
        self.record = record
        if self.args.device.type == "cpu":
            keep_freed_memory()
            enable_blockwise_attention(self.model)
        for noisy in (ProgressCallback, PrinterCallback):
            self.remove_callback(noisy)
        self.stop_on_signal = StopOnSignal()
        self.add_callback(self.stop_on_signal)
        self.progress_line = ProgressLine()
        self.add_callback(self.progress_line)
        self.add_callback(RefuseDiverged())
        self.stop_without_gain = StopWithoutGain(getattr(self.args, "early_stopping_patience", None))
        self.add_callback(self.stop_without_gain)
        self.checkpoint_to_resume: str | None = None
        self._staged_run: str | None = None

    @property
    def stopped(self) -> bool:
        """Return whether a signal ended the training before its last step."""
        return self.stop_on_signal.stopped_by is not None and self.state.global_step < self.state.max_steps

    def train_or_resume(self, identity: dict[str, Any]) -> None:
        """
        Train from the newest complete checkpoint of the output folder, or from the start.

        Args:
            identity: what must not change between the parts of one run (see `run_identity`).

        Raises:
            InputError: the folder contains checkpoints of a different or incompatible run, or the data ended before the
                last step.
        """
        run = Path(self.args.output_dir)
        checkpoint = self.args.resume_from_checkpoint or last_checkpoint(run)
        if checkpoint is not None:
            require_same_identity(run, identity)
            if self.args.save_only_model:
                raise InputError(
                    f"{checkpoint}: --save_only_model leaves out the optimizer's state, so a run cannot resume from "
                    "it: choose another --output_dir or delete it"
                )
        self.accelerator.wait_for_everyone()  # all processes have read the old identity
        if self.args.should_save:
            write_identity(run, identity)
        if checkpoint is None:
            self.find_silent_faults()
        else:
            self.accelerator.print(f"resuming from {checkpoint}", flush=True)
            if self.record is not None:
                self.record.go_on_from(Path(checkpoint))
        transformers_logging.disable_progress_bar()  # there is one line already
        stock_logger = transformers_logging.get_logger("transformers.trainer_utils")
        stock_logger.addFilter(_is_no_step_mismatch)
        try:
            self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        finally:
            stock_logger.removeFilter(_is_no_step_mismatch)
            self.stop_on_signal.restore()
            self.progress_line.close()
        steps, planned = self.state.global_step, self.state.max_steps
        if self.stop_without_gain.has_stopped:
            patience = self.stop_without_gain.patience
            gain = f"no better {self.args.metric_for_best_model} in {patience} evaluations"
            self.accelerator.print(f"ended early: {gain}, after {steps:,} of {planned:,} steps", flush=True)
        elif not self.stopped and not 0 < planned <= steps:
            raise InputError(
                f"the training made {steps:,} of {planned:,} steps, because the data gave no more batches: give more "
                "records or a smaller --per_device_train_batch_size"
            )

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        self.checkpoint_to_resume = resume_from_checkpoint if isinstance(resume_from_checkpoint, str) else None
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def find_silent_faults(self) -> None:
        """
        Run the preflight and print its findings, unless `args.preflight` is off or several processes train.

        Raises:
            InputError: it found an error.
        """
        if not getattr(self.args, "preflight", False):
            return
        if self.args.world_size > 1:
            self.accelerator.print("preflight  not run: it checks runs of one process", flush=True)
            return
        ignored = getattr(self.args, "preflight_ignore", None) or ()
        report = preflight(self, ignore=ignored, show="findings")
        if report.errors:
            codes = " ".join(sorted({finding.code for finding in report.errors}))
            raise InputError(
                f"preflight found faults that would spoil this run ({codes}); mend them, or go on with "
                f"--preflight_ignore {codes}"
            )

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        with _explain_setting(self.args, "optim"):
            return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        with _explain_setting(self.args, "lr_scheduler_type"):
            return super().create_scheduler(*args, **kwargs)

    def _get_output_dir(self, trial: Any) -> str:
        return self._staged_run or super()._get_output_dir(trial)

    def whole_model(self, weights: dict[str, torch.Tensor] | None = None) -> PreTrainedModel:
        """
        Return the model without its wrappers, to use or save it.

        If the model is sharded (FSDP2), all processes must call this: the first one gets a copy with all weights, the
        others copies with random weights.

        Args:
            weights: weights of the whole model, if they were gathered already.
        """
        model = self.accelerator.unwrap_model(self.model)
        if not self.accelerator.is_fsdp2:
            return model
        if weights is None:
            weights = self.accelerator.get_state_dict(self.model)
        full_model = _like_sharded(model)
        if weights:
            full_model.load_state_dict(weights)
        return full_model.eval()

    def finished_model(self) -> PreTrainedModel:
        """
        Return the trained model (see `whole_model`) without autocast and compiled layers.

        It then computes what the saved folder computes when it is loaded. All processes must call this.
        """
        uncompile_blocks(self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False))
        return self.whole_model()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
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
        mend_tokenizer_files(output_dir or self.args.output_dir)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # The file has a tied matrix once; its second name is missing by design.
        tied = set(getattr(self.accelerator.unwrap_model(self.model), "_tied_weights_keys", None) or ())
        load_result.missing_keys[:] = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        run = Path(super()._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        first = self.is_world_process_zero()
        # Every process writes its part into the hidden folder of the first one, which is renamed at the end.
        with atomic_checkpoint(run / name) if first else contextlib.nullcontext(partial_path(run / name)) as staging:
            self.accelerator.wait_for_everyone()
            self._staged_run = str(staging)
            try:
                super()._save_checkpoint(model, trial)
                if not self.args.save_only_model:
                    self.save_training_state(staging / name)
            finally:
                self._staged_run = None
            self.accelerator.wait_for_everyone()
            best = self.state.best_model_checkpoint
            if best is not None and Path(best).name == name:
                # Every process loads the best weights at the end, from the final path.
                self.state.best_model_checkpoint = str(run / name)
            if first:
                self._move_up(staging / name)
        if first:
            if self.args.push_to_hub:
                self.push_checkpoint(run / name)
            rotate_checkpoints(run, self.args.save_total_limit, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()

    def save_training_state(self, checkpoint: Path) -> None:
        """Write more files into a checkpoint that is being saved; for classes that keep a state of their own."""

    def _move_up(self, folder: Path) -> None:
        """Move the files up from the folder that Trainer makes inside the hidden one, and write state and card."""
        self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
        for path in folder.iterdir():
            os.rename(path, folder.parent / path.name)
        folder.rmdir()
        self._write_card(folder.parent)


def _explain_setting(args: TrainingArguments, name: str) -> contextlib.AbstractContextManager[None]:
    """Return a context in which transformers' complaints about a setting become an `InputError`."""
    value = getattr(args, name)
    return explain(f"--{name} {getattr(value, 'value', value)}", "{reason}", ImportError, TypeError, ValueError)


def _like_sharded(model: PreTrainedModel) -> PreTrainedModel:
    """Return a new model with the shape and class of a sharded one, its adapter included."""
    if hasattr(model, "get_base_model"):
        from peft import get_peft_model

        [adapter] = model.peft_config.values()
        return get_peft_model(_like_sharded(model.get_base_model()), adapter)
    # Sharding derives a new class, which would be saved under its own name and without the model's code.
    model_class: Any = next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))
    empty_model = model_class(copy.deepcopy(model.config))
    if model.can_generate():
        empty_model.generation_config = model.generation_config
    return empty_model


class RunTrainer(RunMixin, Trainer):
    """transformers' Trainer with `RunMixin`."""
