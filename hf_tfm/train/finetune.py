"""Shared by all fine-tuning scripts: arguments and their checks, reading of splits, identity of a run."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from ..core.errors import InputError, explain
from ..core.limits import UNLIMITED, has_fast_bf16, longest_input
from ..cpu.attention import enable_blockwise_attention
from ..data.forms.form import Reading
from ..data.forms.reader import read_records
from ..data.records import Records, carve
from .recipe import FinetuningRecipe, RunArguments, read_mapping, refuse_below
from .report import report_reading
from .run_identity import run_identity
from .trainer import check_arguments


# Up to this length in tokens, eager attention trains faster on a CPU than torch's kernel, whose backward pass is slow.
_MAX_EAGER_LENGTH = 128
# Arguments that decide which records make a batch, and fields of a recipe that do not decide what is learned.
_BATCH_ARGUMENTS = ("per_device_train_batch_size", "gradient_accumulation_steps", "world_size")
# Fields that neither transformers nor TRL have.
_ADDED_FIELDS = ("early_stopping_patience", "preflight", "preflight_ignore")
_FREE_FIELDS = {"license", "base_model", "trust_remote_code", "baselines", "beams", "cache_dir"}


@dataclass
class FinetuningArguments(RunArguments):
    """transformers' TrainingArguments with defaults for fine-tuning."""

    output_dir: str | None = field(default="runs/finetuned", metadata={"help": "Folder to write."})
    learning_rate: float | None = field(
        default=None,
        metadata={"help": "Highest learning rate; by default 2e-4 · (384 / width)^1.5, ten times that with --lora."},
    )
    num_train_epochs: float = 3.0
    per_device_train_batch_size: int = 32
    per_device_eval_batch_size: int = 64
    warmup_steps: float = field(default=0.06, metadata={"help": "Steps, or a share of all steps if below 1."})
    weight_decay: float = 0.01
    train_sampling_strategy: str = field(
        default="group_by_length", metadata={"help": "How batches are drawn: group_by_length, random or sequential."}
    )
    eval_strategy: str = "epoch"
    save_strategy: str = "epoch"
    save_total_limit: int | None = 2
    load_best_model_at_end: bool = True
    metric_for_best_model: str | None = field(
        default="auto", metadata={"help": "Metric on the validation set that chooses the best checkpoint."}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "End the run after this many evaluations without a better figure."}
    )
    logging_steps: float = field(default=0.02, metadata={"help": "Steps, or a share of all steps if below 1."})
    include_num_input_tokens_seen: str | bool = True
    bf16: bool = field(default=has_fast_bf16(), metadata={"help": "bf16 autocast; on where the hardware has it."})
    use_cpu: bool = not torch.accelerator.is_available()
    report_to: None | str | list[str] = "none"


def check_finetuning(
    args: FinetuningArguments, recipe: FinetuningRecipe, ignored: Mapping[str, str] | None = None
) -> None:
    """
    Refuse arguments that would fail later, or have no effect.

    Args:
        ignored: arguments that the script does not read, and what to do instead.

    Raises:
        InputError: the arguments cannot be used.
    """
    if args.early_stopping_patience is not None:
        refuse_below(args, early_stopping_patience=1)
        if not args.load_best_model_at_end or args.eval_strategy == "no":
            raise InputError(
                "early_stopping_patience keeps the best checkpoint: leave out --load_best_model_at_end false and "
                "--eval_strategy no"
            )
    ignored = {"prediction_loss_only": "checkpoints are compared by figures", **(ignored or {})}
    check_arguments(args, recipe.model, ignored)
    if args.max_steps == 0:
        raise InputError("max_steps 0 would train nothing: give more, or leave it out and give --num_train_epochs")
    if args.max_steps < 0 and not args.num_train_epochs > 0:
        raise InputError(f"num_train_epochs {args.num_train_epochs:g} must be above 0")
    if not 0 <= args.label_smoothing_factor < 1:
        raise InputError(f"label_smoothing_factor {args.label_smoothing_factor} must be 0 or more and below 1")
    if args.learning_rate is not None and not 0 < args.learning_rate < math.inf:
        raise InputError(f"learning_rate {args.learning_rate} must be above 0")


def resolve_max_length(recipe: FinetuningRecipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the length in tokens that texts are cut to. Raises `InputError` if the model cannot take the recipe's."""
    positions = longest_input(model.config)
    if positions != UNLIMITED:
        # Users of the saved folder who ask for truncation get a length that the model can take.
        tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
    if recipe.max_length is None:
        return min(tokenizer.model_max_length, 512)
    shortest = tokenizer.num_special_tokens_to_add(pair=True) + 1
    if recipe.max_length < shortest or recipe.max_length > positions:
        limit = "any number of" if positions == UNLIMITED else f"at most {positions}"
        raise InputError(
            f"max_length {recipe.max_length}: {recipe.model} takes {limit} tokens, and {shortest} at least"
        )
    return recipe.max_length


def choose_attention(args: TrainingArguments, model: PreTrainedModel, max_length: int) -> None:
    """Choose the attention implementation for training on a CPU; the saved model does not have it."""
    if args.device.type == "cpu" and not enable_blockwise_attention(model) and max_length <= _MAX_EAGER_LENGTH:
        model.set_attn_implementation("eager")


def carve_validation(
    recipe: FinetuningRecipe,
    reading: Reading,
    train: Records,
    seed: int,
    keys: Sequence[Any],
    strata: Sequence[Any] | None = None,
) -> tuple[Records, Records]:
    """Return training and validation records; [`carve`] separates them if the validation set has no file."""
    if recipe.validation_file:
        return train, read_split(recipe.validation_file, reading, "validation")
    return carve(train, recipe.validation_fraction, seed, keys, strata)


def read_splits(
    recipe: FinetuningRecipe,
    seed: int,
    keys: Callable[[Records], Sequence[Any]],
    reading: Reading,
) -> dict[str, Records]:
    """
    Read the records of the splits that there are, and print what was read; the validation set is carved out of the
    training records if it has no file.

    Args:
        keys: returns a key for each record; records with equal keys stay together.
        reading: how the files are read for the job.

    Raises:
        InputError: a file cannot be read, or its records do not fit.
    """
    train = read_split(recipe.train_file, reading)
    train, validation = carve_validation(recipe, reading, train, seed, keys(train))
    splits = {"train": train, "validation": validation}
    if recipe.test_file:
        splits["test"] = read_split(recipe.test_file, reading, "test")
    return splits


def read_split(files: Sequence[str], reading: Reading, split: str = "train") -> Records:
    """Return the records of files, and print what was read of each."""
    records = read_records(files, reading, split)
    report_reading(records)
    return records


def measured_split(splits: Mapping[str, Any]) -> str:
    """Return the name of the split that is measured once, at the end."""
    return "test" if "test" in splits else "validation"


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, max_length: int, *columns: list[str], **other_columns: list[Any]
) -> list[dict[str, Any]]:
    """
    Encode one or two columns of texts as rows of a model's inputs, cut to `max_length` tokens.

    Args:
        other_columns: other columns for the rows, such as labels.
    """
    inputs = tokenizer(*columns, truncation=True, max_length=max_length, verbose=False)
    if tokenizer.is_fast:
        # Truncation set by this call must not be saved as the tokenizer's own.
        tokenizer.backend_tokenizer.no_truncation()
    data = {**inputs, **other_columns}
    return [dict(zip(data, row)) for row in zip(*data.values())]


def resolve_arguments(
    args: TrainingArguments,
    recipe: FinetuningRecipe,
    model: PreTrainedModel,
    metrics: Sequence[str],
    pace: float = 1.0,
    loss: bool = True,
) -> None:
    """
    Set the arguments that depend on model and task: the learning rate, and the metric that chooses the best checkpoint.

    Args:
        metrics: names of the task's metrics; the first one is the default.
        pace: factor on the learning rate that suits labels.
        loss: whether evaluations compute the loss, too.

    Raises:
        InputError: the chosen metric is none of these.
    """
    if args.learning_rate is None:
        width = getattr(model.config.get_text_config(), "hidden_size", 768)
        args.learning_rate = pace * 2e-4 * (384 / width) ** 1.5 * (10 if recipe.lora else 1)
    metric = (args.metric_for_best_model or "auto").removeprefix("eval_")
    metric = metrics[0] if metric == "auto" else metric
    choices = dict.fromkeys([*metrics, *(["loss"] if loss else [])])
    if metric not in choices:
        raise InputError(f"metric_for_best_model {metric!r} must be one of {', '.join(choices)}")
    args.metric_for_best_model, args.greater_is_better = metric, metric not in ("loss", "rmse")


def trl_arguments(config_class: type, args: FinetuningArguments, options: str, **fields: Any) -> Any:
    """
    Return a configuration of TRL with the values of these arguments.

    Args:
        options: fields of TRL alone as a JSON object; they win over `fields`.

    Raises:
        InputError: TRL has no such field or value.
    """
    common_fields = {f.name: getattr(args, f.name) for f in dataclasses.fields(args) if f.init}
    added_fields = {name: common_fields.pop(name) for name in _ADDED_FIELDS}
    # TRL's own default under the old name would switch checkpointing of activations on.
    # transformers before 5.23 has no other.
    common_fields["gradient_checkpointing"] = getattr(args, "activation_checkpointing", args.gradient_checkpointing)
    trl_fields = read_mapping(options, "trl")
    place = f"--trl {options}" if trl_fields else config_class.__name__
    with explain(place, "{reason}", TypeError, ValueError, NotImplementedError):
        config = config_class(**{**common_fields, **fields, **trl_fields})
    for name, value in added_fields.items():
        setattr(config, name, value)
    return config


def finetuning_identity(
    recipe: FinetuningRecipe, args: TrainingArguments, data: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return all that a resumed run must have in common with the stopped one; files count by their content."""
    fields = {
        name: Path(value).name if name in ("model", "tokenizer", "teacher") and value else value
        for name, value in dataclasses.asdict(recipe).items()
        if not name.endswith("_file") and name != "unlabelled"
    }
    contents = {name: getattr(args, name) for name in _BATCH_ARGUMENTS}
    contents |= {f"{facts['split']} data": facts.get("sha256") for facts in data}
    return run_identity(fields, args, contents, free=_FREE_FIELDS)
