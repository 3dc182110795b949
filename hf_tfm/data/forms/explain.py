"""Why a file has no form of a job: what the file is instead, and the option that reads it."""

import contextlib
import difflib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...core.errors import InputError
from ..plain_text import open_lines
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

# What may separate cells, as `--separator` takes it.
_SEPARATORS = {"\t": "tab", ";": "';'", "|": "'|'", ",": "','", " ": "blanks"}
_NUM_LINES = 20  # that are looked at


def explain_unrecognised(sample: Sample, table: Table | None, rows: Sequence[Any]) -> str:
    """
    Returns one message: the place, what the file is, and what to do.

    Args:
        table: The opened table; None for a text file.
        rows: The first rows, of any kind.
    """
    reading, place = sample.reading, str(sample.file)
    lines = _first_lines(sample)
    if content := _other_content(table, lines):
        return f"{place}: {content}"
    if table is None:
        known = [reason for explain in EXPLANATIONS.get(reading.job, []) if (reason := explain(sample))]
        reasons = known or _other_job(sample, lines) or _as_table(lines)
        return f"{place}: {reasons[0] if reasons else _plain_text(reading)}"
    if not sample.rows:
        bad = next((row for row in rows if isinstance(row, BadRow)), None)
        if bad is not None:
            tables = [] if lines and lines[0].lstrip()[:1] in ("{", "[") else _as_table(lines)
            return f"{place}: {tables[0] if tables else bad}"
        return f"{place}: its rows are {_kind(rows[0])}, not records with named fields; {_known_forms(reading)}"
    names = f"its fields are {', '.join(map(str, sample.columns))}"
    # What the file is comes before what it lacks.
    advice = _table_advice(sample, table)
    missing = _missing_names(sample)
    if missing and not advice:
        return f"{place}: {missing}"
    if not advice:
        advice = [reason for explain in EXPLANATIONS.get(reading.job, []) if (reason := explain(sample))]
        if advice:
            return f"{place}: {advice[0]}"
        advice = _other_job(sample, lines) or _wrapped(sample, rows)
    if advice:
        return f"{place}: {'; '.join(advice)}; {names}"
    wanted = " and ".join(_wanted(sample)) or f"no form of {reading.job}"
    return f"{place}: {wanted}; {names}. {_known_forms(reading)}"


def _first_lines(sample: Sample) -> list[str]:
    if sample.lines or sample.file is None or not sample.file.path.is_file():
        return list(sample.lines)
    if sample.file.suffixes[0] in (".parquet", ".arrow", ".feather"):
        return []
    with contextlib.suppress(InputError):
        placed = open_lines(sample.file, sample.reading.options)
        return [line for _, line in itertools.islice(placed, _NUM_LINES)]
    return []


def _other_content(table: Table | None, lines: Sequence[str]) -> str | None:
    """JSON in a file whose name says something else."""
    first = next((line for line in lines if line.strip()), "")
    if table is None or table.kind in ("csv", "tsv"):
        with contextlib.suppress(ValueError):
            if isinstance(json.loads(first), dict):
                return "holds JSON, one record a line: let its name end in .jsonl"
    return None


def _as_table(lines: Sequence[str]) -> list[str]:
    """A table in a file whose name says something else: all lines have as many tabs, or commas."""
    lines = [line for line in lines if line.strip()]
    for separator, name, suffix in (("\t", "tabs", ".tsv"), (",", "commas", ".csv")):
        counts = {line.count(separator) for line in lines}
        if len(lines) > 1 and len(counts) == 1 and counts.pop() > 0:
            return [f"is a table of cells separated by {name}: let its name end in {suffix}"]
    return []


def _plain_text(reading: Reading) -> str:
    return f"is plain text, which has no form of {reading.job}; {_known_forms(reading)}"


def _wrapped(sample: Sample, rows: Sequence[Any]) -> list[str]:
    """The lists of a single object that has everything, where it is not clear which of them has the rows."""
    if len(rows) != 1 or not isinstance(rows[0], Mapping) or sample.file.suffixes[0] != ".json":
        return []
    lists = dict(_find_lists(rows[0], ""))
    if not lists:
        return []
    counts = ", ".join(f"{path[1:]} ({len(value)})" for path, value in lists.items())
    longest = max(lists, key=lambda path: len(lists[path]))
    return [f"is one object with its rows in lists, {counts}: write them one a line, with jq -c '{longest}[]'"]


def _find_lists(value: Mapping[str, Any], path: str) -> Iterator[tuple[str, list[Any]]]:
    """Yields the lists of records inside an object, with their paths: `.rasa_nlu_data.common_examples`."""
    for name, inner in value.items():
        if isinstance(inner, list) and inner and isinstance(inner[0], Mapping):
            yield f"{path}.{name}", inner
        elif isinstance(inner, Mapping):
            yield from _find_lists(inner, f"{path}.{name}")


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
        if form.content != "rows" or not form.fields:
            continue
        if form.recognise is not None and not (lacking and form.recognise(sample)):
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
    """What is wrong with the columns of a table: no header, or another separator."""
    reading, options = sample.reading, sample.reading.options
    if table.kind not in ("csv", "tsv"):
        return []
    if len(sample.columns) == 1 and not options.separator:
        text = "\n".join(map(str, sample.columns))
        found = next((name for sign, name in _SEPARATORS.items() if sign in text), "X")
        return [f"there is one column: {reading.option('separator')} {found} names what separates the cells"]
    if table.header_looks_like_data:
        return [
            f"the first row looks like data ({table.header_looks_like_data}): {reading.option('columns')} "
            f"{' '.join(_suggest_columns(sample))} names the {len(sample.columns)} columns of a file without a header"
        ]
    return []


def _suggest_columns(sample: Sample) -> list[str]:
    """
    Names for the columns of a table without a header, in their order.

    In classification and for pairs the longest texts are the text, others that are nearly as long the second one, and
    the column with the fewest values is the label or score; elsewhere the fields of the job stand in their order.
    """
    reading, columns = sample.reading, list(sample.columns)
    needed = [name for name in JOBS[reading.job].fields if reading.requires(name)]
    names = {name: _as_text(reading.names.get(name, name)) for name in needed}
    if not {"text", "text_pair"} <= set(names) or len(columns) < 2:
        numbered = [f"NAME{number}" for number in range(1, len(columns) + 1)]
        return list(names.values()) if len(names) == len(columns) else numbered
    cells = {column: [str(row.get(column)) for row in sample.rows] for column in columns}
    lengths = {column: sum(map(len, cells[column])) for column in columns}
    text, second, *_ = sorted(columns, key=lambda column: -lengths[column])
    has_pair = reading.job == "pairs" or (len(columns) > 2 and 2 * lengths[second] >= lengths[text])
    texts = sorted((text, second), key=columns.index) if has_pair else [text]
    chosen = {column: names[name] for column, name in zip(texts, ("text", "text_pair"))}
    if others := [column for column in columns if column not in texts]:
        chosen[min(others, key=lambda column: len(set(cells[column])))] = names.get("label") or names["score"]
    return [chosen.get(column, f"column{number}") for number, column in enumerate(columns, 1)]


def _as_text(name: Any) -> str:
    return name if isinstance(name, str) else str(next(iter(name)))


def _other_job(sample: Sample, lines: Sequence[str] = ()) -> list[str]:
    """The job whose form the file has, with the most fields."""
    found: list[tuple[int, str, Form]] = []
    is_json = sample.file is not None and sample.file.suffixes[0] in (".json", ".jsonl", ".ndjson")
    for job in JOBS:
        if job in (sample.reading.job, "text"):
            continue
        other = Sample(Reading(job), sample.file, sample.rows, sample.lines, sample.columns, sample.class_names)
        for form in forms_of(job):
            if form.content == "lines" and not (is_json or form.headless) and form.recognise and lines:
                if form.recognise(lines):
                    found.append((1, job, form))
            if form.content == "rows" and sample.rows and (form.shape is not None or len(form.fields) > 1):
                if form.names_in(other) is not None:
                    found.append((len(form.fields), job, form))
    if not found:
        return []
    _, job, form = max(found, key=lambda each: each[0])
    return [f"it has the form {form.name} of {job}, which {SCRIPTS[job]} reads"]
