"""Describes jobs and their forms: lines for `hf-tfm formats`, and the table of `training/README.md`."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ...core.errors import InputError
from .early_check import SCRIPT_FILES
from .form import Form, Reading, forms_of
from .jobs import JOBS
from .reader import FileReport, RecordReader


# Lines of text with a style of Rich; "" for none.
Lines = Iterator[tuple[str, str]]

# The folder of the examples as files, JOB/FORM/FILE, as a link of training/README.md.
EXAMPLES = "../tests/data/forms"

# What is the same for all jobs, for the list of `hf-tfm formats`.
_COMMON = """
Every form may be .jsonl, .json (an array, an object with one, or of columns), .csv, .tsv, .parquet or .arrow, in
several files, folders, globs or archives, compressed or not. Folders are read by split: train, dev, test in names.
Options of all scripts: --format, --separator, --encoding, --no_header, --columns, --skip_bad, --ignore_fields.
""".strip()


def list_forms() -> Lines:
    """Yields each job with the names and summaries of its forms."""
    for job, facts in JOBS.items():
        yield f"{job}: {facts.summary}", "bold"
        yield from ((f"  {form.name:24} {form.summary}", "") for form in forms_of(job))
        yield "", ""
    yield _COMMON, ""
    yield "`hf-tfm formats JOB` shows the fields and an example of each form.", ""


def describe_job(job: str) -> Lines:
    """Yields a job's fields with their options, and each form with its fields and its example."""
    facts = JOBS[job]
    yield f"{job}: {facts.summary}", "bold"
    if scripts := scripts_of(job):
        yield f"read by {', '.join(scripts)}", ""
    for name, field in facts.fields.items():
        need = "" if field.required is True else " (for training and measuring)" if field.required else " (optional)"
        yield f"  {name:12} {f'named by --{field.option}' if field.option else ''}{need}", ""
    for name, reason in facts.meaningful.items():
        yield f"  a field {name!r} {reason}", ""
    for form in forms_of(job):
        yield "", ""
        yield f"{form.name}: {form.summary}", "bold"
        if form.fields:
            yield f"  fields: {_fields_of(form)}", ""
        for name, text in form.example.items():
            yield f"  {name}", "dim"
            lines = text.rstrip("\n").split("\n")
            yield from ((f"    {line}", "cyan") for line in lines)


def scripts_of(job: str) -> list[str]:
    """Returns the names of the scripts that read files for a job."""
    return [script for script, files in SCRIPT_FILES.items() if job in files.values()]


def _fields_of(form: Form) -> str:
    """The names in the file of a form's fields, as `label (or labels, class)`."""
    parts = []
    for names, ending in ((form.fields, ""), (form.optional, " (optional)")):
        for field_name, standard in names.items():
            first, *others = standard or (field_name,)
            parts.append(first + (f" (or {', '.join(others)})" if others else "") + ending)
    return "; ".join(parts)


def write_example(form: Form, folder: Path) -> list[Path]:
    """Writes the files of a form's example; returns them, or the folders that they are in."""
    for name, text in form.example.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")
    return sorted({folder / name.partition("/")[0] for name in form.example})


def read_example(form: Form) -> list[FileReport]:
    """Returns what is read of a form's example."""
    with tempfile.TemporaryDirectory() as folder:
        locations = write_example(form, Path(folder))
        for labelled in (True, False):  # some forms are for predictions alone
            reader = RecordReader(locations, Reading(form.job, labelled=labelled))
            with contextlib.suppress(InputError):
                list(reader)
                break
    return reader.reports


def table_of_forms(examples: str) -> str:
    """
    Returns all forms as a table in Markdown.

    Args:
        examples: the folder of the examples, JOB/FORM/FILE, as a link of the page.
    """
    rows = [
        "| job | form (`--format`) | what it looks like | example | rows → records | scripts |",
        "|---|---|---|---|---|---|",
    ]
    for job in JOBS:
        for form in forms_of(job):
            reports = read_example(form)
            counts = f"{sum(report.rows for report in reports)} → {sum(report.records for report in reports)}"
            name = next(iter(form.example))
            link = f"[{Path(name).name}]({examples}/{job}/{form.name}/{name})"
            scripts = ", ".join(f"`{script}`" for script in scripts_of(job))
            rows.append(f"| {job} | {form.name} | {_escape(form.summary)} | {link} | {counts} | {scripts} |")
    return "\n".join(rows)


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
