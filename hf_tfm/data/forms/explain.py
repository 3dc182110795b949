"""Why a file has no form of a job: what the file is instead, and the option that reads it."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from ..tables import BadRow, Table
from .form import EXPLANATIONS, Form, Reading, Sample, flat, forms_of, has_column
from .jobs import JOBS


# The script that reads a job's files, for advice to someone who gave another job's file.
SCRIPTS = {
    "classification": "finetune_classification",
    "tags": "finetune_tokens",
    "questions": "finetune_qa",
    "choices": "finetune_multiple_choice",
    "pairs": "finetune_embeddings",
    "translation": "finetune_translation",
    "chat": "finetune_instruct",
    "preferences": "finetune_preference",
    "prompts": "finetune_rlvr",
    "text": "pretrain_clm or pretrain_mlm",
}


def explain_unrecognised(sample: Sample, table: Table | None, rows: Sequence[Any]) -> str:
    """
    Returns one message: the place, what the file is, and what to do.

    Args:
        table: The opened table; None for a text file.
        rows: The first rows, of any kind.
    """
    reading, place = sample.reading, str(sample.file)
    for explain in EXPLANATIONS.get(reading.job, []) if table is None else ():
        if reason := explain(sample):
            return f"{place}: {reason}"
    if table is None:
        return f"{place}: is plain text, which has no form of {reading.job}; {_known_forms(reading)}"
    if not sample.rows:
        bad = next((row for row in rows if isinstance(row, BadRow)), None)
        if bad is not None:
            return f"{place}: {bad}"
        return f"{place}: its rows are {_kind(rows[0])}, not records with named fields; {_known_forms(reading)}"
    if missing := _missing_names(sample):
        return f"{place}: {missing}"
    for explain in EXPLANATIONS.get(reading.job, []):
        if reason := explain(sample):
            return f"{place}: {reason}"
    advice = [*_table_advice(sample, table), *_other_job(sample)]
    wanted = " and ".join(_wanted(sample))
    names = ", ".join(map(str, sample.columns))
    if not advice:
        advice = [_known_forms(reading)]
    return f"{place}: {wanted or f'no form of {reading.job}'}; its fields are {names}. {'; '.join(advice)}"


def _kind(value: Any) -> str:
    kinds = {"str": "texts", "list": "lists", "int": "numbers", "float": "numbers"}
    return kinds.get(type(value).__name__, type(value).__name__)


def _known_forms(reading: Reading) -> str:
    return f"`hf-tfm formats {reading.job}` lists the forms that can be read"


def _missing_names(sample: Sample) -> str:
    """The names that the user gave and that no row has."""
    reading = sample.reading
    for field_name, given in reading.names.items():
        for name in flat([given]):
            if has_column(sample.columns, name) and not sample.has(name):
                outer, _, inner = name.partition(".")
                names = ", ".join(next(row[outer] for row in sample.rows if isinstance(row.get(outer), Mapping)))
                return f"no field {inner!r} in {outer!r} ({reading.option_of(field_name)}), there are {names}"
            if not has_column(sample.columns, name):
                close = difflib.get_close_matches(name, list(sample.columns), n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                names = ", ".join(map(str, sample.columns))
                return f"no field {name!r} ({reading.option_of(field_name)}), there are {names}{hint}"
    return ""


def _wanted(sample: Sample) -> list[str]:
    """What the forms that come nearest lack: one whose fields are all there, and one with fewest fields missing."""
    reading, nearest = sample.reading, dict[bool, tuple[list[str], Form]]()
    for form in forms_of(reading.job):
        lacking = _lacking(form, sample)
        if form.content != "rows" or not form.fields or (form.recognise is not None and not lacking):
            continue  # with a function of its own, a form may lack more than fields
        if bool(lacking) not in nearest or len(lacking) <= len(nearest[bool(lacking)][0]):
            nearest[bool(lacking)] = (lacking, form)
    wanted = []
    if False in nearest:
        form = nearest[False][1]
        wanted.append(f"the fields of the form {form.name} hold something else than {form.summary}")
    if True in nearest:
        other = "for another form " if wanted else ""
        wanted += [f"{other}no field {name!r} ({reading.option_of(name)} names it)" for name in nearest[True][0]]
    return wanted


def _lacking(form: Form, sample: Sample) -> list[str]:
    return [
        name
        for name, standard in form.fields.items()
        if sample.reading.requires(name) and sample.name_of(name, standard) is None
    ]


def _table_advice(sample: Sample, table: Table) -> list[str]:
    reading, advice = sample.reading, []
    if table.header_looks_like_data:
        advice.append(
            f"the first row looks like data ({table.header_looks_like_data}): "
            f"{reading.option('columns')} NAME … names the columns of a file without a header"
        )
    if table.kind in ("csv", "tsv") and len(sample.columns) == 1:
        advice.append(f"there is one column: {reading.option('separator')} says what separates the cells")
    return advice


def _other_job(sample: Sample) -> list[str]:
    """The jobs whose forms the file has."""
    for job in JOBS:
        if job == sample.reading.job:
            continue
        other = Sample(Reading(job), sample.file, sample.rows, sample.lines, sample.columns, sample.class_names)
        for form in forms_of(job):
            if form.content == "rows" and form.shape is not None and form.names_in(other) is not None:
                return [f"it has the form {form.name} of {job}, which {SCRIPTS[job]} reads"]
    return []


def describe_row(row: Mapping[str, Any]) -> str:
    """Returns a row in short, for messages."""
    return ", ".join(f"{name}: {value!r:.30}" for name, value in row.items())
