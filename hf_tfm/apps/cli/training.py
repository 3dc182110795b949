"""
Commands that run the scripts of `training/`: `train`, `evaluate`, `quickstart` and others.

There is one command for each script, derived from its name: `finetune_classification.py` is `hf-tfm train
classification`. The commands pass their arguments on as they are, so fields and recipes are those of the script, and
`--help` shows them. An installed package carries the folder as `hf_tfm/training`; in a checkout it stands beside it.
"""

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from .app import Group, app, import_package


_PACKAGE = Path(__file__).parents[2]
SCRIPTS = next((folder for folder in (_PACKAGE / "training", _PACKAGE.parent / "training") if folder.is_dir()), None)

# Prefixes of scripts' names, in the order of their commands, with the group that a command belongs to.
_PREFIXES = {
    "train_": "train",
    "pretrain_": "train",
    "finetune_": "train",
    "evaluate_": "evaluate",
    "compare_": "evaluate",
}
PANEL = "Train and evaluate"

train = typer.Typer(
    cls=Group,
    help="Train a tokenizer, pretrain a model, or fine-tune one.\n\n"
    "A command takes a recipe, a YAML file of fields, and fields as options, which take precedence. "
    "Recipes of the package are found by their names.",
    epilog="   hf-tfm train clm pretrain_clm.yaml --max_steps 2000 --output_dir runs/decoder\n"
    "   hf-tfm train classification finetune_banking77.yaml\n"
    "   hf-tfm train classification --help",
)
evaluate = typer.Typer(
    cls=Group,
    help="Measure a model, with confidence intervals.",
    epilog="   hf-tfm evaluate model --model runs/decoder --text held_out.jsonl.gz",
)
app.add_typer(train, name="train", rich_help_panel=PANEL)
app.add_typer(evaluate, name="evaluate", rich_help_panel=PANEL)


class ScriptCommand(TyperCommand):
    """A command that leaves its arguments, `--help` included, to a script."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.args = list(args)
        return ctx.args


def command_names(script: str) -> tuple[str, ...]:
    """Words of the command that runs a script, such as `("train", "clm")` for `pretrain_clm`."""
    for prefix, group in _PREFIXES.items():
        if script.startswith(prefix):
            return group, script.removeprefix(prefix).replace("_", "-")
    return (script.replace("_", "-"),)


def run_script(path: Path, command: str, arguments: list[str]) -> int:
    """
    Run the `main` of a script, which prints its own errors.

    Args:
        command: shown in place of the script's path in its help and recorded beside what it trains.
    """
    from ...data.forms.early_check import find_mistake

    if mistake := find_mistake(path, arguments):
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    if not import_package():
        return 2
    argv, folders = sys.argv, list(sys.path)
    sys.argv, sys.path[:0] = [command, *arguments], [str(path.parent)]  # scripts import one another by name
    try:
        return importlib.import_module(path.stem).main(arguments) or 0
    except SystemExit as error:  # of argparse
        return error.code if isinstance(error.code, int) else 2
    finally:
        sys.argv, sys.path[:] = argv, folders


def _register(path: Path) -> None:
    words = command_names(path.stem)
    group = {"train": train, "evaluate": evaluate}[words[0]] if len(words) == 2 else app

    def run(context: typer.Context) -> int:
        return run_script(path, context.command_path, context.args)

    docstring = re.search(r'"""\s*(.*?)(?:\n\s*\n|""")', path.read_text(encoding="utf-8"), re.DOTALL)
    summary = " ".join(docstring[1].split()) if docstring else ""
    panel = PANEL if group is app else None
    group.command(words[-1], cls=ScriptCommand, help=summary, rich_help_panel=panel, add_help_option=False)(run)


def _order(path: Path) -> tuple[int, str]:
    prefix = next((prefix for prefix in _PREFIXES if path.stem.startswith(prefix)), "")
    return list(_PREFIXES).index(prefix) if prefix else len(_PREFIXES), path.stem


for _path in sorted(SCRIPTS.glob("*.py") if SCRIPTS else (), key=_order):
    _register(_path)
