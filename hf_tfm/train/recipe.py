"""Recipes: read `recipe.yaml` and `--field value` into the dataclasses of a script in `training/`."""

import argparse
import contextlib
import dataclasses
import functools
import json
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser, TrainingArguments

from ..core.checkpoints import last_checkpoint
from ..core.errors import InputError
from ..core.quiet import quiet_command
from ..core.recipe_file import as_arguments, check_field, read_recipe
from ..data.tables import ReadingOptions


# Output folder of the running script, where its checkpoints are.
_output_dir: str | None = None


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Show defaults that say something, mark required fields, and keep the line breaks of the description."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.required:
            return f"{action.help} (required)"
        return action.help if action.default in (None, "", [], "{}") else super()._get_help_string(action)


class _RecipeParser(HfArgumentParser):
    def error(self, message: str) -> None:
        raise InputError(message)


def parse_recipe(
    argv: list[str] | None,
    recipe_class: type,
    training_class: type[TrainingArguments] | None,
    description: str | None = None,
) -> tuple[Any, TrainingArguments | None]:
    """
    Read `[recipe.yaml] [--field value …]`; the command line overrides the recipe.

    Args:
        argv: arguments after the script's name, `sys.argv[1:]` by default.
        recipe_class: dataclass of the script's own fields, each with `metadata={"help": ...}`.
        training_class: `TrainingArguments` or a subclass with other defaults; None for a script that does not train.
        description: the script's docstring, shown by `--help`.

    Returns:
        An instance of each class; None if there is no `training_class`.

    Raises:
        InputError: the recipe cannot be read, or a field is unknown or has a value of the wrong type.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    classes = (recipe_class,) if training_class is None else (recipe_class, training_class)
    if {"-h", "--help"} & set(argv):
        help_parser = HfArgumentParser(
            recipe_class,
            description=description,
            usage="%(prog)s [recipe.yaml] [--field value …]",
            formatter_class=_HelpFormatter,
        )
        if training_class is not None:
            defaults = {f.name: f.default for f in dataclasses.fields(TrainingArguments)}
            changed = (f for f in dataclasses.fields(training_class) if defaults.get(f.name, f.default) != f.default)
            # The dataclasses of libraries between ours and transformers' have fields of their own, too.
            names = {name for cls in training_class.__mro__ if "hf_tfm" in cls.__module__ for name in vars(cls)}
            new = (f for f in dataclasses.fields(training_class) if f.name in names - defaults.keys())
            help_parser.epilog = textwrap.fill(
                "All fields of transformers' TrainingArguments work too, some with other defaults: "
                + ", ".join(f"{f.name} {f.default}" for f in changed)
                + "."
                + "".join(f" There is also {f.name}: {f.metadata['help']}" for f in new),
                100,
            )
        help_parser.print_help()
        raise SystemExit(0)
    fields = {f.name for cls in classes for f in dataclasses.fields(cls) if f.init}
    recipe_arguments = []
    if argv and not argv[0].startswith("-"):
        path = argv.pop(0)
        entries = read_recipe(Path(path))
        for name in entries:
            check_field(name, fields, path)
        recipe_arguments = as_arguments(entries)
    for argument in argv:
        if argument.startswith("--"):
            check_field(argument[2:].split("=")[0].replace("-", "_"), fields, "the command line")

    parser = _RecipeParser(classes, allow_abbrev=False)
    try:
        recipe, *training = parser.parse_args_into_dataclasses([*recipe_arguments, *argv], look_for_args_file=False)
    except InputError:
        raise
    except (ValueError, TypeError, ImportError) as error:
        raise InputError(" ".join(str(error).split())) from error
    global _output_dir
    _output_dir = training[0].output_dir if training else None
    return recipe, training[0] if training else None


def refuse_below(recipe: Any, **minimums: float) -> None:
    """Raise `InputError` if a field of a recipe, or an entry of a list field, is below its minimum; None is allowed."""
    for name, minimum in minimums.items():
        value = getattr(recipe, name)
        for number in value if isinstance(value, list) else [value]:
            if number is not None and not number >= minimum:  # NaN is not
                raise InputError(f"--{name} {number}: must be at least {minimum}")


def refuse_ignored(args: TrainingArguments, ignored: Mapping[str, str]) -> None:
    """
    Raise `InputError` if a field of transformers that has no effect in a script is not at its default.

    Args:
        ignored: names of such fields, each with an alternative for the message.
    """
    for argument in dataclasses.fields(args):
        if argument.name in ignored and getattr(args, argument.name) != argument.default:
            raise InputError(f"--{argument.name} has no effect in this script: {ignored[argument.name]}")


def read_mapping(text: str, name: str) -> dict[str, Any]:
    """Return the mapping in a JSON field. Raises `InputError` if there is none."""
    try:
        mapping = json.loads(text)
    except ValueError as error:
        raise InputError(f'{name} is not JSON ({error}); write it as {{"field": value}}') from None
    if not isinstance(mapping, dict):
        raise InputError(f'{name}: must be a mapping, {{"field": value}}, not {text}')
    return mapping


def one_line_errors(main: Callable[[list[str] | None], int | None]) -> Callable[[list[str] | None], int]:
    """
    Make a script's `main(argv)` return its exit code: 2 with one line on standard error for an `InputError`.

    The training itself handles Ctrl-C and SIGTERM. Before and after it they end the script with exit code 0 if there is
    a checkpoint to resume from, else 130.
    """

    @functools.wraps(main)
    def wrapper(argv: list[str] | None = None) -> int:
        try:
            with quiet_command(), _sigterm_as_interrupt():
                return main(argv) or 0
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            checkpoint = last_checkpoint(Path(_output_dir)) if _output_dir else None
            print(f"\nstopped{f'; the same command goes on from {checkpoint}' if checkpoint else ''}", file=sys.stderr)
            return 0 if checkpoint else 130

    return wrapper


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM raise `KeyboardInterrupt` inside the block; only the main thread can set signal handlers."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)


LORA_VARIANTS = ("lora", "dora", "rslora")


@dataclass
class RunArguments(TrainingArguments):
    """transformers' TrainingArguments, and what this package does around each run."""

    preflight: bool = field(
        default=True,
        metadata={"help": "Look for silent faults before the training starts; errors stop the run."},
    )
    preflight_ignore: list[str] | None = field(
        default=None, metadata={"help": "Codes of findings to leave out, as P301; see `hf-tfm preflight --codes`."}
    )


@dataclass(kw_only=True)
class ReadingRecipe:
    """Fields of every script that reads a user's files: what they are, where their form is not recognised."""

    format: str | None = field(
        default=None, metadata={"help": "Form of the files, one of `hf-tfm formats`; by default recognised."}
    )
    separator: str | None = field(
        default=None, metadata={"help": "What separates cells of tables: a character, tab, space or blanks."}
    )
    encoding: str | None = field(default=None, metadata={"help": "Encoding of text, such as cp1252; else guessed."})
    no_header: bool = field(default=False, metadata={"help": "The first row of a table is data, not names."})
    columns: list[str] | None = field(
        default=None, metadata={"help": "Names of the columns of a table whose first row is data."}
    )
    skip_bad: bool = field(default=False, metadata={"help": "Leave out rows that cannot be used, and count them."})
    ignore_fields: list[str] | None = field(
        default=None, metadata={"help": "Fields that mean something but shall be left out."}
    )

    def reading_settings(self) -> dict[str, Any]:
        """Return those of these fields that are not at their defaults, except names of fields, for stored results."""
        bases = [base for base in (ReadingRecipe, TextRecipe) if isinstance(self, base)]
        fields = {each.name: each.default for base in bases for each in dataclasses.fields(base)}
        fields.pop("text_field", None)
        return {name: getattr(self, name) for name, default in fields.items() if getattr(self, name) != default}

    def reading_options(self) -> ReadingOptions:
        """Return these fields as options of the reader."""
        lists = {name: tuple(getattr(self, name) or ()) for name in ("columns", "ignore_fields")}
        return ReadingOptions(
            self.format,
            self.separator,
            self.encoding,
            self.no_header,
            lists["columns"] or None,
            self.skip_bad,
            lists["ignore_fields"],
        )


@dataclass(kw_only=True)
class TextRecipe(ReadingRecipe):
    """Fields of every script that reads text."""

    text_field: str | None = field(
        default=None, metadata={"help": "Field or column that holds the text; by default recognised."}
    )
    text_unit: str = field(
        default="document",
        metadata={"help": "Document of a text file: document (the file), paragraph (between blank lines) or line."},
    )
    strip_gutenberg: bool = field(
        default=False, metadata={"help": "Leave out header and licence of books of Project Gutenberg."}
    )

    def source_settings(self) -> dict[str, Any]:
        """Return the fields of sources that do not name their own."""
        settings = {name: getattr(self, name) for name in ("text_field", "text_unit", "strip_gutenberg")}
        return {**settings, "options": self.reading_options()}


@dataclass
class FinetuningRecipe(ReadingRecipe):
    """Fields of every fine-tuning script."""

    model: str = field(metadata={"help": "Model folder, or its name on the Hub."})
    train_file: list[str] = field(
        metadata={
            "help": "Records: files, folders (train, dev, test are told by names) or globs of any form that "
            "`hf-tfm formats` lists, also compressed."
        }
    )
    validation_file: list[str] | None = field(
        default=None,
        metadata={"help": "Records to choose the best checkpoint by; split off the training file by default."},
    )
    validation_fraction: float = field(default=0.1, metadata={"help": "Share of the training file that is split off."})
    test_file: list[str] | None = field(default=None, metadata={"help": "Records to evaluate on once, at the end."})
    max_length: int | None = field(
        default=None,
        metadata={"help": "Truncate texts to this many tokens; by default to the model's limit or 512."},
    )
    tokenizer: str | None = field(default=None, metadata={"help": "Folder of the tokenizer, if not the model's."})
    keep_layers: list[int] | None = field(
        default=None,
        metadata={
            "help": "Keep only some layers: how many, evenly spaced, or their numbers from 0, as in 0 2 5. Smaller, "
            "faster, often as good."
        },
    )
    license: str | None = field(default=None, metadata={"help": "Licence of the trained model, for its card."})
    base_model: str | None = field(
        default=None, metadata={"help": "Name of the base model for the card; by default its folder's name."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code from the model folder."})
    attention_dropout: float = field(
        default=0.0, metadata={"help": "Dropout on attention weights; above 0 attention is slow."}
    )
    lora: bool = field(default=False, metadata={"help": "Train a small adapter instead of all weights."})
    lora_variant: str = field(default="lora", metadata={"help": "lora, dora or rslora."})
    lora_rank: int = field(default=8, metadata={"help": "Rank of the adapter's matrices."})
    lora_alpha: int = field(default=16, metadata={"help": "Scale of the adapter: alpha/rank (rslora: alpha/√rank)."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout on the adapter's inputs."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Modules to adapt; by default all linear ones except the head."}
    )
    lora_int8: bool = field(default=False, metadata={"help": "Keep the frozen weights in 8 bits (needs torchao)."})

    def __post_init__(self) -> None:
        # `--test_file ""` takes back a recipe's file.
        self.validation_file, self.test_file = (
            [name for name in files or () if name] or None for files in (self.validation_file, self.test_file)
        )
        if self.lora_variant not in LORA_VARIANTS:
            raise InputError(f"lora_variant {self.lora_variant!r} must be one of {', '.join(LORA_VARIANTS)}")
        refuse_below(self, lora_rank=1, lora_alpha=1)
        if not 0 <= self.lora_dropout < 1:
            raise InputError(f"lora_dropout {self.lora_dropout} must be 0 or more and below 1")
        if self.lora_int8 and not self.lora:
            raise InputError("lora_int8 keeps frozen weights in 8 bits; add --lora")
        if self.keep_layers is not None and self.lora:
            raise InputError("keep_layers: an adapter is loaded on its whole base; train without --lora")
