"""Options of the pretraining scripts: the recipe, transformers' arguments with other defaults, and their checks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from ..artifacts.tokenizer_files import load_tokenizer, tokenizer_fingerprint
from ..core.errors import InputError
from ..core.limits import has_fast_bf16
from ..data.cache import default_cache_dir, file_hash
from ..data.sources import Source, parse_sources
from ..data.step_batches import LengthSchedule
from ..data.tokens import contents_digest
from .recipe import RunArguments, TextRecipe, refuse_below
from .run_identity import run_identity
from .trainer import check_arguments


# transformers' fields that have no effect, and what to use instead: this package has optimizers of its own, …
OWN_OPTIMIZER = dict.fromkeys(
    ("optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon"), "choose --optimizer muon, normuon or adamw"
)
# … schedules, and batches that are a pure function of their number.
_IGNORED = {
    **OWN_OPTIMIZER,
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler_kwargs"), "give --schedule and --decay"),
    "warmup_steps": "give --warmup",
    "num_train_epochs": "a run is counted in steps, give --max_steps",
    "train_sampling_strategy": "batches follow from the seed and the number of the step",
    "ignore_data_skip": "a resumed run continues at its exact batch without reading the earlier ones",
    **dict.fromkeys(
        ("dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_persistent_workers"),
        "a batch is made in less than a millisecond",
    ),
    "label_smoothing_factor": "bits per byte need the plain loss",
}


@dataclass
class PretrainingRecipe(TextRecipe):
    """Fields of both pretraining scripts."""

    data: list[str] = field(metadata={"help": "Training text: files, folders, globs, hub:NAME; @WEIGHT mixes them."})
    validation_data: list[str] = field(
        default_factory=list,
        metadata={"help": "Text for bits per byte or the masked loss; by default a part of --data is held out."},
    )
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "Folder of the tokenizer (training/train_tokenizer.py makes one); by default the tokenizer of the "
            "model folder to continue from."
        },
    )
    model: str = field(
        default="tiny",
        metadata={
            "help": "The model: a preset (tiny, small, …), another architecture's shape at a size (gpt2/tiny), a "
            "config.json of any architecture, or a model folder to continue from."
        },
    )
    model_overrides: str = field(
        default="{}", metadata={"help": 'Fields of the configuration as JSON: {"qk_norm": false}.'}
    )
    window: int = field(
        default=0,
        metadata={
            "help": "Attention window of all layers but the last, in tokens to each side (decoders: to the left); for "
            "new models of this package; 0 for full attention."
        },
    )
    streaming: bool = field(
        default=False, metadata={"help": "Tokenize during training, for text that does not fit on the disk."}
    )
    block_length: int = field(default=256, metadata={"help": "Tokens in a row."})
    length_schedule: str = field(
        default="",
        metadata={"help": "Short rows first, as START:LENGTH with START a share of the run: 0:64,0.3:128 (decoders)."},
    )
    validation_fraction: float = field(
        default=0.05, metadata={"help": "Share of the documents held out if there is no --validation_data."}
    )
    validation_tokens: int = field(default=200_000, metadata={"help": "Evaluate on at most this many tokens."})
    recipe: str | None = field(
        default=None,
        metadata={
            "help": "Where the optimization comes from, as far as it is not given: auto (a table by passes over the "
            "text and steps) or standard; by default auto if nothing of it is given, else standard."
        },
    )
    optimizer: str | None = field(
        default=None,
        metadata={
            "help": "muon (with AdamW for embeddings and norms), normuon (for longer runs) or adamw; else by --recipe."
        },
    )
    embedding_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the embeddings; else by --recipe or the optimizer's own."}
    )
    dropout: float | None = field(
        default=None,
        metadata={
            "help": "Dropout after layers and embeddings during the run; else by --recipe, in standard the model's "
            "own. Saved models keep the dropout that they had before the run."
        },
    )
    schedule: str | None = field(
        default=None,
        metadata={"help": "Learning-rate schedule: wsd (warm-up, stable, decay), cosine or constant; standard: wsd."},
    )
    warmup: float | None = field(
        default=None, metadata={"help": "Warm-up: a share of the run if below 1, else steps; standard: 0.05."}
    )
    decay: float | None = field(
        default=None, metadata={"help": "Share of the run, at its end, over which wsd decays; standard: 0.5."}
    )
    early_decay_patience: int | None = field(
        default=None,
        metadata={
            "help": "Begin the decay when this many evaluations bring no lower validation loss, and end the run when "
            "as many in the decay bring none; 0: never (standard)."
        },
    )
    compile: str = field(
        default="auto", metadata={"help": "torch.compile: on, off, or auto (if the run is long enough to repay it)."}
    )
    z_loss: float = field(
        default=0.0,
        metadata={"help": "Weight of the z-loss, which keeps logits small: 1e-4 or so; needs memory for all logits."},
    )
    ema_decay: float | None = field(
        default=None,
        metadata={"help": "End with a moving average of the weights, 0.98 or so; 0 for none (standard)."},
    )
    zero_init: bool = field(
        default=True, metadata={"help": "Start new models with zero output projections, each layer as the identity."}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Folder for tokenized text."})
    license: str | None = field(default=None, metadata={"help": "Licence of the model, for its card."})

    def __post_init__(self) -> None:
        if self.tokenizer is None:
            if not Path(self.model).is_dir():
                raise InputError("--tokenizer: where is it? Only a model folder to go on from has one of its own")
            self.tokenizer = self.model
        if self.recipe not in (None, "auto", "standard"):
            raise InputError(f"recipe {self.recipe!r}: choose auto or standard")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise InputError(f"dropout {self.dropout:g}: must be 0 or more and below 1")
        if not 0 < self.validation_fraction < 1:
            raise InputError(f"validation_fraction {self.validation_fraction} must lie between 0 and 1")
        if self.streaming and not self.validation_data:
            raise InputError(
                "--streaming: give --validation_data; what to hold out is found by reading all of the text"
            )

    def training_sources(self) -> list[Source]:
        """Return the training text without the documents held out."""
        sources = parse_sources(self.data, **self.source_settings())
        return sources if self.validation_data else [replace(s, part=(self.validation_fraction, 1.0)) for s in sources]

    def validation_sources(self) -> list[Source]:
        """Return the validation text."""
        if self.validation_data:
            return parse_sources(self.validation_data, **self.source_settings())
        return [
            replace(s, part=(0.0, self.validation_fraction)) for s in parse_sources(self.data, **self.source_settings())
        ]

    def row_lengths(self) -> set[int]:
        """Return the lengths of rows in the run."""
        schedule = self.parse_length_schedule()
        return {self.block_length} if schedule is None else {length for _, length in schedule.phases}

    def parse_length_schedule(self) -> LengthSchedule | None:
        """Return the `length_schedule`, None if there is none. Raises `InputError` if it cannot be read."""
        if not self.length_schedule:
            return None
        try:
            phases = [phase.split(":") for phase in self.length_schedule.split(",")]
            return LengthSchedule([(float(start), int(length)) for start, length in phases], self.block_length)
        except InputError:
            raise
        except ValueError as error:
            raise InputError(
                f"length_schedule {self.length_schedule!r}: write it as SHARE:LENGTH,SHARE:LENGTH, as in 0:64,0.5:128"
            ) from error


@dataclass
class PretrainingArguments(RunArguments):
    """transformers' TrainingArguments with defaults for pretraining; what is None is filled in by `choose_recipe`."""

    output_dir: str = "runs/pretrained"
    learning_rate: float | None = None
    max_steps: int = 1000
    num_train_epochs: float = 0.0
    per_device_train_batch_size: int | None = None
    per_device_eval_batch_size: int = 16
    weight_decay: float | None = None
    max_grad_norm: float = 1.0
    logging_steps: float = 20
    eval_strategy: str = "steps"
    eval_steps: float | None = None
    load_best_model_at_end: bool | None = None
    save_strategy: str = "steps"
    save_steps: float = 0.1
    save_total_limit: int | None = 2
    include_num_input_tokens_seen: str | bool = True
    bf16: bool = has_fast_bf16()
    ddp_find_unused_parameters: bool | None = False
    use_cpu: bool = not torch.cuda.is_available()
    disable_tqdm: bool | None = True
    report_to: None | str | list[str] = "none"

    def __post_init__(self) -> None:
        # transformers would replace an open `eval_steps` by `logging_steps`.
        is_open = self.eval_steps is None
        self.eval_steps = self.save_steps if is_open else self.eval_steps
        super().__post_init__()
        self.eval_steps = None if is_open else self.eval_steps


def rows_per_step(args: TrainingArguments) -> int:
    """Return the rows of one optimizer step over all processes."""
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size


def check_pretraining(recipe: PretrainingRecipe, args: TrainingArguments) -> None:
    """Raise `InputError` for arguments that would fail later or have no effect."""
    check_arguments(args, recipe.model, _IGNORED)
    refuse_below(args, max_steps=1)
    refuse_below(
        recipe, block_length=2, validation_tokens=1, window=0, warmup=0, decay=0, z_loss=0, early_decay_patience=0
    )
    if recipe.compile not in ("auto", "on", "off"):
        raise InputError(f"compile {recipe.compile!r}: choose auto, on or off")
    if recipe.decay is not None and recipe.decay > 1:
        raise InputError(f"decay {recipe.decay:g}: a share of the run, 1 at most")


def pretraining_identity(
    recipe: PretrainingRecipe, args: TrainingArguments, passes: Sequence[float | None] = ()
) -> dict[str, Any]:
    """
    Return the run identity; a run may resume with more processes that share the rows of a step.

    Args:
        passes: how often the run reads each of its texts, None if unknown.
    """
    cache_dir = Path(recipe.cache_dir or default_cache_dir())
    contents: dict[str, Any] = {
        "rows_per_step": rows_per_step(args),
        "contents of data": contents_digest(recipe.training_sources(), cache_dir, streaming=recipe.streaming),
        "contents of validation_data": contents_digest(recipe.validation_sources(), cache_dir),
        "contents of tokenizer": tokenizer_fingerprint(load_tokenizer(recipe.tokenizer or recipe.model)),
    }
    if any(times is None or times > 1 for times in passes):
        contents["contents of data"] += ", packed anew in each pass"  # older versions repeated the first pass
    config = Path(recipe.model) / "config.json" if Path(recipe.model).is_dir() else Path(recipe.model)
    if config.is_file():
        contents["contents of model"] = file_hash(config, cache_dir)
    if recipe.early_decay_patience:  # the evaluations decide how long the run is
        contents["eval_steps"] = math.ceil(args.eval_steps * (args.max_steps if args.eval_steps < 1 else 1))
    return run_identity(vars(recipe), args, contents, free=("recipe",))
