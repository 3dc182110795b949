"""Resuming: the checkpoint and the trainer that goes on from it must be of one run."""

import math
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...core.errors import InputError
from ..report import Level, Report
from ..runs.checkpoint import StoredTensor, check_checkpoint, check_parts, is_sharded, read_header, weight_files
from ..runs.folder import ARGUMENTS_FILE, list_checkpoints, read_arguments, read_json, read_state
from .subject import TrainerSubject


# Settings that decide the order of records, and how an adapter's weights are used.
_ORDER = ("seed", "data_seed", "train_sampling_strategy", "group_by_length")
_ADAPTER = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora")
# Settings that change what a step does; the optimizer's own come from the checkpoint, whatever the arguments say.
_OTHERS = (
    *("weight_decay", "adam_beta1", "adam_beta2", "max_grad_norm", "label_smoothing_factor", "fp16", "bf16"),
    *("max_length", "packing", "padding_free", "assistant_only_loss", "completion_only_loss", "loss_type", "beta"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "dataloader_drop_last"),
)


def check_resume(subject: TrainerSubject, folder: Path, report: Report) -> None:
    """
    Compare a checkpoint with the trainer that will resume from it.

    Args:
        folder: A checkpoint, or the folder of a run, whose last checkpoint is taken.

    Raises:
        InputError: There is no checkpoint.
    """
    checkpoint = next(iter(list_checkpoints(folder)[::-1]), folder)
    if not checkpoint.is_dir():
        raise InputError(f"{checkpoint}: there is no such checkpoint")
    check_checkpoint(checkpoint, report)
    state = read_state(checkpoint)
    if state is None:
        return
    step, max_steps = int(state["global_step"]), planned_steps(subject)
    if max_steps is not None and step >= max_steps:
        report.add(
            "P711",
            f"the checkpoint is at step {step:,}, but the run ends at step {max_steps:,}",
            str(checkpoint),
            level=Level.NOTE,
            why="No step is left to train.",
            mend="Nothing, or raise max_steps or num_train_epochs.",
        )
        return
    if step >= (state.get("max_steps") or math.inf):
        check_parts(checkpoint, report)
    saved = read_arguments(checkpoint / ARGUMENTS_FILE)
    if not saved:
        report.cannot_see("the checkpoint has no readable training_args.bin: seeds and settings are not compared")
    changes = changed_arguments(saved, subject.args)
    _check_position(subject, state, changes, checkpoint, report)
    _check_settings(changes, report)
    if is_sharded(checkpoint):
        report.cannot_see("a checkpoint in shards of FSDP or DeepSpeed: its weights and optimizer are not compared")
        return
    _check_names(subject, checkpoint, report)
    _check_schedule(subject, checkpoint, step, max_steps, report)
    _check_optimizer(subject, checkpoint, changes, report)


def planned_steps(subject: TrainerSubject) -> int | None:
    """Returns the last step of the trainer's run; None if only its data know."""
    if subject.args.max_steps > 0:
        return int(subject.args.max_steps)
    batches = count_batches(subject)
    if batches is None:
        return None
    updates = math.ceil(batches / subject.args.gradient_accumulation_steps)
    return math.ceil(subject.args.num_train_epochs * updates)


def count_batches(subject: TrainerSubject) -> int | None:
    """Returns the number of batches of an epoch in this process; None for a stream."""
    try:
        return len(subject.loader)
    except TypeError:
        return None


def changed_arguments(saved: dict[str, Any], args: Any) -> dict[str, tuple[Any, Any]]:
    """Returns the settings whose values in the checkpoint and in the trainer differ, with both."""
    changes = {}
    for name, value in saved.items():
        current = getattr(args, name, value)
        current = current.value if isinstance(current, Enum) else current
        if (current is None or isinstance(current, bool | int | float | str)) and current != value:
            changes[name] = (value, current)
    return changes


def describe(changes: dict[str, tuple[Any, Any]], names: tuple[str, ...]) -> str:
    """Returns the settings of these names that have changed, in words."""
    return ", ".join(f"{name} {changes[name][0]} → {changes[name][1]}" for name in names if name in changes)


def _check_position(
    subject: TrainerSubject,
    state: dict[str, Any],
    changes: dict[str, tuple[Any, Any]],
    checkpoint: Path,
    report: Report,
) -> None:
    """
    The records that were seen are those that the resumed run skips.

    A Trainer computes the epoch and the batches to skip from the number of steps and its own loader
    (huggingface/transformers#43708), so both must give the epoch that the checkpoint stands at.
    """
    step, batches = int(state["global_step"]), count_batches(subject)
    if batches is None:
        report.cannot_see("a stream has no length, so it is not known whether resuming skips the records already seen")
        return
    accumulation = subject.args.gradient_accumulation_steps
    updates = max(1, math.ceil(batches / accumulation))
    epoch = step // updates + step % updates * accumulation / batches
    is_between_epochs = step % updates == 0
    seen = float(state.get("epoch") or 0)
    if abs(epoch - seen) > 1e-4:
        reasons = describe(
            changes, ("per_device_train_batch_size", "gradient_accumulation_steps", "dataloader_drop_last")
        )
        report.add(
            "P711",
            f"the checkpoint stands at epoch {seen:.4g} after {step:,} steps, which are {epoch:.4g} epochs of this "
            f"trainer's {batches:,} batches, {accumulation} a step ({reasons or 'other data or processes'})",
            str(checkpoint),
            why="Batches are seen twice or left out.",
        )
    elif (order := describe(changes, _ORDER)) and not is_between_epochs:
        report.add(
            "P711",
            f"the order of records differs: {order}",
            str(checkpoint),
            why="The batches that are skipped are not those that were seen.",
            mend="Resume with the same seed, or from the end of an epoch.",
        )
    if subject.args.ignore_data_skip and not is_between_epochs:
        report.add(
            "P711",
            f"ignore_data_skip begins epoch {int(epoch) + 1} anew, of which {seen % 1:.0%} was seen",
            str(checkpoint),
            level=Level.WARNING,
            why="These records are seen twice.",
            mend="Leave it out, unless skipping takes too long.",
        )


def _check_settings(changes: dict[str, tuple[Any, Any]], report: Report) -> None:
    if others := describe(changes, _OTHERS):
        report.add(
            "P711",
            f"settings differ from those of the checkpoint: {others}",
            level=Level.NOTE,
            why="The steps are others than before; rates, betas and weight decay come from the checkpoint, though.",
            mend="Nothing if this is meant.",
        )


def _check_schedule(
    subject: TrainerSubject, checkpoint: Path, step: int, max_steps: int | None, report: Report
) -> None:
    """
    The rate goes on where it was (huggingface/transformers#27749).

    A Trainer makes the schedule anew from its arguments, and takes the step and the highest rate from the checkpoint.
    """
    path = checkpoint / "scheduler.pt"
    if not path.exists() or max_steps is None:
        return
    state = torch.load(path, map_location="cpu", weights_only=True)
    done = state.get("last_epoch")
    if not isinstance(state.get("_last_lr"), list) or "num_bad_epochs" in state or not isinstance(done, int):
        report.cannot_see("the checkpoint has a schedule of another kind, whose rates are not compared")
        return
    if abs(done - step) > max(10, 0.05 * step):
        report.add(
            "P711",
            f"the schedule in the checkpoint is at step {done:,}, but its run is at step {step:,}",
            str(path),
            why="The rate goes on from another place: the file is of another run, or steps were skipped.",
        )
        return
    trainer = subject.trainer
    previous = trainer.lr_scheduler
    try:
        trainer.lr_scheduler = None
        weight = nn.Parameter(torch.zeros(1))
        schedule = trainer.create_scheduler(max_steps, torch.optim.SGD([weight], lr=subject.args.learning_rate))
    finally:
        trainer.lr_scheduler = previous
    if previous is not None or not isinstance(schedule, torch.optim.lr_scheduler.LambdaLR):
        report.cannot_see("the trainer has a schedule of its own, whose rates are not compared with the checkpoint's")
        return
    highest, last = float(state["base_lrs"][0]), float(state["_last_lr"][0])
    going_on = highest * float(schedule.lr_lambdas[0](done))
    if abs(going_on - last) > 0.02 * highest:
        report.add(
            "P711",
            f"the learning rate jumps from {last:.3g} to {going_on:.3g}: the schedule is made for {max_steps:,} steps",
            str(checkpoint),
            why="The schedule has another length, warm-up or shape than in the run that was stopped.",
            mend="Resume with the same steps or epochs, schedule and warm-up; or start a new run from the weights.",
        )
    if trainer.optimizer is None and abs(highest - subject.args.learning_rate) > 1e-3 * highest:
        report.add(
            "P711",
            f"learning_rate is {subject.args.learning_rate:g}, and the run goes on with the checkpoint's {highest:g}",
            str(checkpoint),
            level=Level.WARNING,
            why="A resumed run takes its rate from the checkpoint, without a word.",
            mend="Start a new run from the weights, if another rate is meant.",
        )


def _check_optimizer(
    subject: TrainerSubject, checkpoint: Path, changes: dict[str, tuple[Any, Any]], report: Report
) -> None:
    """The optimizer's state fits the weights that the trainer trains."""
    path = checkpoint / "optimizer.pt"
    if not path.exists() or getattr(subject.trainer, "is_deepspeed_enabled", False):
        return
    if "optim" in changes:
        report.add("P711", f"the optimizer differs: {describe(changes, ('optim',))}", str(path))
        return
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    trainer = subject.trainer
    previous = trainer.optimizer
    try:
        groups = trainer.create_optimizer().param_groups
    finally:
        trainer.optimizer = previous
    stored = [len(group["params"]) for group in state["param_groups"]]
    trained = [len(group["params"]) for group in groups]
    if stored != trained:
        report.add(
            "P711",
            f"the optimizer of the checkpoint has groups of {stored} weights, and the trainer's of {trained}",
            str(path),
            why="Other weights were trained.",
            mend="Freeze, tie and adapt the model as in the run that was stopped.",
        )
        return
    weights = [weight for group in groups for weight in group["params"]]
    places = [place for group in state["param_groups"] for place in group["params"]]
    for place, weight in zip(places, weights):
        momentum = state["state"].get(place, {}).get("exp_avg")
        if isinstance(momentum, torch.Tensor) and momentum.shape != weight.shape and momentum.dtype.is_floating_point:
            report.add(
                "P711",
                f"a momentum of shape {tuple(momentum.shape)} belongs to a weight of shape {tuple(weight.shape)}",
                str(path),
                why="The optimizer's state is of other weights, or of the same in another order.",
            )
            return


def _check_names(subject: TrainerSubject, checkpoint: Path, report: Report) -> None:
    """The checkpoint holds the weights of this model; a Trainer leaves out others with a warning only."""
    if subject.kind == "embedding" or getattr(subject.base, "is_quantized", False):
        report.cannot_see("the names of weights in the checkpoint are not compared for this kind of model")
        return
    files = [path for path in weight_files(checkpoint) if path.name.startswith(("model", "adapter_model"))]
    try:
        stored = {tensor.name: tensor for path in files for tensor in read_header(path)}
    except ValueError:
        return  # which `check_checkpoint` reports
    if not stored:
        return
    has_adapter = any(path.name.startswith("adapter_model") for path in files)
    if has_adapter and not subject.is_adapted:
        report.add("P713", "the checkpoint has an adapter, but the model has none", str(checkpoint))
    elif has_adapter:
        _compare_adapters(subject, checkpoint, stored, report)
    else:
        ignored = tuple(getattr(subject.base, "_keys_to_ignore_on_save", None) or ())
        _compare_names(subject.model.state_dict(), stored, ignored, checkpoint, report)


def _compare_adapters(
    subject: TrainerSubject, checkpoint: Path, stored: dict[str, StoredTensor], report: Report
) -> None:
    from peft import get_peft_model_state_dict

    name = subject.model.active_adapters[0] if hasattr(subject.model, "active_adapters") else "default"
    current = subject.model.peft_config[name].to_dict()
    path = next(iter(sorted(checkpoint.rglob("adapter_config.json"))), checkpoint)
    saved = read_json(path) or {}
    changes = {
        key: (saved[key], getattr(current[key], "value", current[key]))
        for key in _ADAPTER
        if key in saved and key in current and saved[key] != getattr(current[key], "value", current[key])
    }
    if changes:
        report.add(
            "P711",
            f"the adapter has other settings: {describe(changes, _ADAPTER)}",
            str(path),
            why="Its weights were trained with the settings of the checkpoint, and are now scaled otherwise.",
            mend="Make the adapter with the settings of the checkpoint.",
        )
    if "r" not in changes and "peft_type" not in changes:
        _compare_names(get_peft_model_state_dict(subject.model, adapter_name=name), stored, (), checkpoint, report)


def _compare_names(
    expected: dict[str, torch.Tensor],
    stored: dict[str, StoredTensor],
    ignored: tuple[str, ...],
    checkpoint: Path,
    report: Report,
) -> None:
    by_place: dict[tuple[int, torch.Size], set[str]] = {}
    for name, weight in expected.items():
        by_place.setdefault((weight.data_ptr(), weight.shape), set()).add(name)
    missing = sorted(
        name
        for name, weight in expected.items()
        if not by_place[weight.data_ptr(), weight.shape] & stored.keys()
        and not any(pattern in name for pattern in ignored)
    )
    unknown = sorted(stored.keys() - expected.keys())
    other = [name for name in stored.keys() & expected.keys() if stored[name].shape != tuple(expected[name].shape)]
    if missing:
        report.add(
            "P713",
            f"{len(missing)} of {len(expected)} weights of the model are not in the checkpoint"
            + (f", which has {len(unknown)} that the model lacks, as {unknown[0]}" if unknown else ""),
            missing[0],
            why="They stay as they are, with a warning only.",
            mend="Build the model as in the run that was stopped.",
        )
    elif unknown:
        report.add(
            "P713",
            f"{len(unknown)} of {len(stored)} weights of the checkpoint are not in the model",
            unknown[0],
            level=Level.WARNING,
            why="They are left out, with a warning only.",
            mend="Build the model as in the run that was stopped.",
        )
    if other:
        report.add(
            "P713",
            f"{len(other)} weights have another shape: {stored[other[0]].shape} in the checkpoint, "
            f"{tuple(expected[other[0]].shape)} in the model",
            other[0],
            why="Loading fails.",
            mend="Build the model as in the run that was stopped.",
        )
