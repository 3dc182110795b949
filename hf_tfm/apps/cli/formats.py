"""The command that lists what data files may look like: `formats`."""

import sys
from typing import Annotated

import typer

from .app import command
from .options import flag
from .training import PANEL


@command("hf-tfm formats", "hf-tfm formats classification", panel=PANEL, light=True)
def formats(
    job: Annotated[str | None, typer.Argument(help="classification, tags, chat, …; by default all.")] = None,
    markdown: Annotated[bool, flag("--markdown", "Print the table of forms of training/README.md.")] = False,
) -> int:
    """List the forms of data files that scripts and commands recognise, with their fields and an example each."""
    from rich.console import Console

    from ...data.forms.description import EXAMPLES, describe_job, list_forms, table_of_forms
    from ...data.forms.jobs import JOBS

    if job is not None and job not in JOBS:
        print(f"error: formats {job}: there are {', '.join(JOBS)}", file=sys.stderr)
        return 2
    if markdown:
        print(table_of_forms(EXAMPLES))
        return 0
    console = Console(highlight=False, soft_wrap=True)
    for line, style in list_forms() if job is None else describe_job(job):
        if console.is_terminal:
            console.print(line, style=style, markup=False)
        else:
            print(line)  # Rich turns tabs into blanks
    return 0
