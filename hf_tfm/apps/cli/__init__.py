"""
The `hf-tfm` command, built with Typer: one module for a group of commands.

Start with `app.py`, which says how a command is registered and run. These modules import nothing but Typer and the
standard library at their top, because `hf-tfm --help` must not wait for torch. The body of a command imports what it
needs by absolute names. Relative names lead to the light package of `hf_tfm_command.py`, for what runs before torch is
imported.
"""

import sys

import typer
from typer.main import get_command


# isort: off
from .app import app, explain_mistake

# Their order is that of the panels in `hf-tfm --help`.
from . import inference, training, formats, preflight, inspection, conversion, retrieval, serving, publishing  # noqa: F401
# isort: on


cli = get_command(app)


def main(argv: list[str] | None = None) -> int:
    """
    Run one command.

    Returns:
        The exit code: 0; the command's own code; or 2 with one line on standard error where the input is wrong.
    """
    try:
        return cli.main(argv, prog_name="hf-tfm", standalone_mode=False) or 0
    except typer.TyperException as error:
        print(f"error: {explain_mistake(error)}", file=sys.stderr)
        return 2
