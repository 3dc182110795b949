"""How a function becomes a command of `hf-tfm`, and how a command runs."""

import functools
import importlib
import os
import re
import sys
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup


class _Examples:
    """Ends the help of a command with its epilog, line by line, so that examples can be copied."""

    epilog: str | None

    def format_help(self, ctx: Any, formatter: Any) -> None:
        examples, self.epilog = self.epilog, None  # which Rich would wrap
        super().format_help(ctx, formatter)  # type: ignore[misc]
        self.epilog = examples
        if examples:
            formatter.write(f" Examples:\n{examples}\n")


class Group(_Examples, TyperGroup):
    """A group of commands with examples."""


class Command(_Examples, TyperCommand):
    """A command whose list options take several values at once, and whose help ends with its examples."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read `--only a b` as `--only a --only b`: a list ends before the next argument that begins with a dash."""
        lists = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        repeated: list[str] = []
        option = None
        for argument in args:
            if argument.startswith("-"):
                option = argument if argument in lists else None
            elif option and repeated[-1] != option:
                repeated.append(option)
            repeated.append(argument)
        try:
            return super().parse_args(ctx, repeated)
        except typer.TyperException as error:
            if getattr(error, "ctx", ctx) is None:  # as of an option without its value
                error.ctx = ctx  # type: ignore[attr-defined]
            raise


app = typer.Typer(
    cls=Group,
    help="Train, run, evaluate, convert and publish causal LMs and BERT-style encoders.\n\n"
    "`hf-tfm COMMAND --help` shows the options of a command, with examples.",
    epilog='   hf-tfm generate my-decoder "Once upon a time"\n'
    "   hf-tfm train clm pretrain_clm.yaml --output_dir runs/decoder\n"
    "   hf-tfm export my-decoder served --to qwen3",
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def command(
    *examples: str, panel: str, find_mistake: Callable[..., str | None] | None = None, light: bool = False
) -> Callable:
    """
    Register a function as a command; its docstring is the help, its annotations are the arguments and options.

    Args:
        examples: command lines shown at the end of the help.
        panel: heading under which `hf-tfm --help` lists the command.
        find_mistake: takes the command's arguments before torch is imported, and returns what is wrong with them.
        light: whether the function does without torch, and imports by relative names.
    """

    def register(function: Callable[..., int | None]) -> Callable[..., int | None]:
        @functools.wraps(function)
        def run(**arguments: Any) -> int:
            if light:
                return function(**arguments) or 0
            if find_mistake and (mistake := find_mistake(**arguments)):
                print(f"error: {mistake}", file=sys.stderr)
                return 2
            return run_command(function, **arguments)

        epilog = "\n".join(f"   {example}" for example in examples)
        app.command(cls=Command, rich_help_panel=panel, epilog=epilog)(run)
        return function

    return register


# What a value must be, by pydantic's types of errors.
_DEMANDS = {
    "greater_than_equal": "must be at least {ge:.10g}",
    "less_than_equal": "must be at most {le:.10g}",
    "float_parsing": "must be a number",
    "int_parsing": "must be a whole number",
}


def explain_mistake(error: typer.TyperException) -> str:
    """Return one line about wrong arguments: the value and what it must be, every argument that is missing, names."""
    context: Any = getattr(error, "ctx", None)
    cause: Any = error.__cause__
    message = error.format_message().replace("Value error, ", "")
    if hasattr(cause, "errors"):  # of pydantic, whose messages do not show the value
        detail = cause.errors()[0]
        if demand := _DEMANDS.get(detail["type"]):
            demand = demand.format(**detail.get("ctx", {}))
            message = message.replace(detail["msg"], f"{demand}, not {detail['input']}")
    elif type(error).__name__ == "MissingParameter":
        missing = [each for each in context.command.params if each.required and each.name not in context.params]
        message = f"Missing {', '.join(each.get_error_hint() for each in missing)}"
    elif names := getattr(error, "possibilities", None):
        message = f"{error.args[0]}. Did you mean {' or '.join(sorted(names))}?"
    elif isinstance(getattr(context, "command", None), Group) and re.match("(No such|Missing) command", message):
        if "Did you mean" not in message:
            message = f"{message.rstrip('.')}; choose one of {', '.join(context.command.commands)}"
    command = context.command_path if context else "hf-tfm"
    return f"{' '.join(message.split())} (see {command} --help)"


def import_package() -> bool:
    """Import `hf_tfm`; print one line and return False if an installed library has an unsupported version."""
    try:
        importlib.import_module("hf_tfm")
    except ImportError as error:
        if type(error).__name__ != "UnsupportedVersionError":
            raise
        print(f"error: {error}", file=sys.stderr)
        return False
    return True


def run_command(function: Callable[..., int | None], **arguments: Any) -> int:
    """
    Run the body of a command with other libraries' messages silenced (`HF_TFM_VERBOSE=1` shows them).

    Returns:
        0 or the command's own exit code; 2 with one line on standard error if the input is wrong or a file cannot be
        read or written; 130 after Ctrl-C; 141 if the reader of the output has closed it.
    """
    if not import_package():
        return 2
    from hf_tfm.core.errors import InputError
    from hf_tfm.core.quiet import quiet_command

    try:
        with quiet_command(transformers_warnings=False):
            code = function(**arguments) or 0
            sys.stdout.flush()
            return code
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # as in `| head`; the rest of the output must go somewhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else " ".join(str(error).split())
        print(f"error: {reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
