"""The command that finds silent faults of data and of runs: `preflight`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .app import command, run_command
from .options import Columns, Encoding, Format, IgnoreFields, NoHeader, Separator, SkipBad, flag
from .training import PANEL


_DATA = "Data"


@command(
    "hf-tfm preflight runs/decoder",
    "hf-tfm preflight chats.jsonl --tokenizer my-decoder --max-length 2048",
    "hf-tfm preflight train.csv --job classification --validation dev.csv --ignore P609 P611",
    panel=PANEL,
    light=True,
)
def preflight(
    target: Annotated[
        list[str] | None,
        typer.Argument(help="Folder of a run, or files of data.", metavar="TARGET", show_default=False),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Folder or Hub name of the tokenizer that the data are for.", rich_help_panel=_DATA),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Chat template that replaces the tokenizer's.", rich_help_panel=_DATA),
    ] = None,
    job: Annotated[
        str | None,
        typer.Option(help="Job of the data (`hf-tfm formats`); by default recognised.", rich_help_panel=_DATA),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens of the longest row that is not cut.", rich_help_panel=_DATA)
    ] = None,
    validation: Annotated[
        list[str] | None, typer.Option(metavar="FILE…", help="Files of the validation split.", rich_help_panel=_DATA)
    ] = None,
    test: Annotated[
        list[str] | None, typer.Option(metavar="FILE…", help="Files of the test split.", rich_help_panel=_DATA)
    ] = None,
    ignore: Annotated[list[str] | None, typer.Option(metavar="CODE…", help="Codes of findings to leave out.")] = None,
    json: Annotated[bool, flag("--json", "Print the report as JSON.")] = False,
    html: Annotated[str | None, typer.Option(metavar="FILE", help="Also write the report as an HTML page.")] = None,
    codes: Annotated[bool, flag("--codes", "List all findings with their codes, and do nothing else.")] = False,
    format: Format = None,
    separator: Separator = None,
    encoding: Encoding = None,
    no_header: NoHeader = False,
    columns: Columns = None,
    skip_bad: SkipBad = False,
    ignore_fields: IgnoreFields = None,
) -> int:
    """Find silent faults of data before training, or of a run that has ended or stopped.

    Live trainers are checked by `hf_tfm.preflight(trainer)`. The exit code is 1 if there are errors.
    """
    from ...audit.runs.folder import holds_run
    from ...core.errors import InputError, reason_of

    if codes:
        print(list_codes())
        return 0
    data: dict[str, Any] = dict(tokenizer=tokenizer, template=template, job=job, max_length=max_length)
    splits = dict(validation=validation or [], test=test or [])
    reading: dict[str, Any] = dict(
        format=format, separator=separator, encoding=encoding, no_header=no_header,
        columns=tuple(columns) if columns else None, skip_bad=skip_bad, ignore_fields=tuple(ignore_fields or ()),
    )  # fmt: skip
    output: dict[str, Any] = dict(ignore=ignore or [], as_json=json, html=html)
    try:
        if not target:
            raise InputError("preflight: name the folder of a run or files of data (see hf-tfm preflight --help)")
        runs = [name for name in target if holds_run(Path(name))]
        if not runs:
            return run_command(check_files, files=target, **data, **splits, reading=reading, **output)
        if len(target) > 1:
            raise InputError(f"{runs[0]}: is the folder of a run, which is checked alone")
        if used := [name for name, value in {**data, **splits, **reading}.items() if value]:
            raise InputError(f"--{used[0].replace('_', '-')} is for data, and {runs[0]} is the folder of a run")
        return check_run(runs[0], **output)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(f"error: {reason_of(error)}", file=sys.stderr)
    return 2


def check_run(folder: str, ignore: list[str], as_json: bool, html: str | None) -> int:
    """Print the report of a run and return the exit code."""
    from ...audit.runs.preflight import preflight_run

    return show(preflight_run(folder, ignore=ignore), as_json, html)


def check_files(
    files: list[str],
    validation: list[str],
    test: list[str],
    reading: dict[str, Any],
    ignore: list[str],
    as_json: bool,
    html: str | None,
    **options: Any,
) -> int:
    """Print the report of files of data and return the exit code."""
    from hf_tfm.audit.records.preflight import preflight_data
    from hf_tfm.data.tables import ReadingOptions

    report = preflight_data(
        files, validation=validation, test=test, options=ReadingOptions(**reading), ignore=ignore, **options
    )
    return show(report, as_json, html)


def show(report: Any, as_json: bool, html: str | None) -> int:
    """Print a report, write its page, and return the exit code."""
    from rich.console import Console

    if html is not None:
        report.save_html(html)
    if as_json:
        print(report.as_json())
    else:
        Console(markup=False, highlight=False, soft_wrap=True).print(report.render())
    return report.exit_code


def list_codes() -> str:
    """Returns the codes of all findings, one a line, with their usual level and their consequence."""
    from ...audit.catalogue import CATALOGUE

    return "\n".join(f"{code} {entry.level:7} {entry.title}. {entry.why}" for code, entry in CATALOGUE.items())
