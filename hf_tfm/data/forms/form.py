"""
Forms of data files as declared objects.

    @rows("chat", "sharegpt", "turns with `from` and `value`", {"messages": ("conversations", "conversation")},
          shape=lambda values: has_keys(values["messages"], "from", "value"),
          example={"chats.jsonl": '{"conversations": [{"from": "human", "value": "Hi"}, …]}'},
          gives=[{"messages": [{"role": "user", "content": "Hi"}, …]}])
    def read_sharegpt(row: FormRow) -> dict[str, Any]:
        return {"messages": [… for turn in row["messages"]]}

A form of rows reads one row at a time; one of lines reads a text file (CoNLL); one of paths reads several files or a
folder as a whole (two line-aligned files, a folder for each class). A row that cannot be read raises `BadRow`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..tables import BadRow, ReadingOptions
from .jobs import JOBS


Record = dict[str, Any]
# A place (`file, line 3`) with what stands there.
Placed = tuple[str, Any]


class NoRecord(BadRow):
    """A row that is right but says nothing for the job, such as SNLI's label "-": left out and counted, no error."""


class Note(str):
    """What a form of lines or paths guesses, yielded in the place of a record."""


@dataclass(frozen=True)
class Reading:
    """
    How a user's files are read for a job.

    Attributes:
        job: One of `JOBS`.
        names: The names that the user gave to fields of the job: `{"text": "sentence"}`; several for options.
        options: What the user says about the files.
        labelled: Whether records need labels; predictions do not.
        dashed: Whether options are written `--skip-bad`, as those of `hf-tfm`, rather than `--skip_bad`.
        defaults: Names of fields, of the files that a model was trained on, that hold for files which have them.
        several: Whether a text may be several labels with commas between them, as the user says.
    """

    job: str
    names: Mapping[str, Any] = field(default_factory=dict)
    options: ReadingOptions = field(default_factory=ReadingOptions)
    labelled: bool = True
    dashed: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)
    several: bool = False

    def option(self, name: str) -> str:
        """Returns an option as the user types it: `--skip_bad`."""
        return "--" + (name.replace("_", "-") if self.dashed else name)

    def option_of(self, field_name: str) -> str:
        """Returns the option that names a field of the job."""
        option = JOBS[self.job].fields[field_name].option
        return self.option(option) if option else field_name

    def requires(self, field_name: str) -> bool:
        """Whether a file must have a field that a form of the job has: labels need not be there for predictions."""
        return self.labelled or JOBS[self.job].fields[field_name].required != "label"


@dataclass
class Sample:
    """
    The beginning of a file, by which its form is recognised.

    Attributes:
        rows: The first rows that are mappings.
        lines: The first lines of a text file.
        columns: Names of all columns or fields in the rows, in the order of their first row.
        class_names: Names of numbered classes by column, from the metadata of Parquet.
        classes: Names of classes in the order of their numbers, by field of the job, where the form knows them.
        notes: What the form guesses, for the file's report.
        counts: How often a form found something that is said with its number.
        found: What a form found in the first rows, by a name.
    """

    reading: Reading
    file: Any = None
    rows: Sequence[Mapping[str, Any]] = ()
    lines: Sequence[str] = ()
    columns: Sequence[str] = ()
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    classes: dict[str, Sequence[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    found: dict[str, Any] = field(default_factory=dict)

    def count(self, text: str) -> None:
        """Add one to the number with which the file's report says this."""
        self.counts[text] = self.counts.get(text, 0) + 1

    def once(self, name: str, find: Callable[[], Any]) -> Any:
        """Returns what a function finds in the first rows; it is called for the first row only."""
        if name not in self.found:
            self.found[name] = find()
        return self.found[name]

    def note(self, text: str) -> None:
        """Add a line to the file's report, once."""
        if text not in self.notes:
            self.notes.append(text)

    def name_of(self, field_name: str, standard: Sequence[str]) -> Any:
        """
        Returns the name that the user gave to a field of the job, or the first standard name that is there.

        Columns are also found by standard names in another case: Question, ANSWER. A name that the user gives is also
        found for a text inside a field: `en` for `translation.en`.
        """
        given, default = self.reading.names.get(field_name), self.reading.defaults.get(field_name)
        if given is not None:
            given = given[0] if isinstance(given, (list, tuple)) and len(given) == 1 else given
            return self._inside(given) or given
        if default is not None and all(has_column(self.columns, name) for name in flat([default])):
            return default
        if found := next((name for name in standard if has_column(self.columns, name)), None):
            return found
        cases = {str(column).casefold(): column for column in self.columns}
        return next((cases[name.casefold()] for name in standard if name.casefold() in cases), None)

    def has(self, name: str) -> bool:
        """Whether there is a column of this name, or a field inside one."""
        outer, dot, inner = str(name).partition(".")
        if name in self.columns or not dot or outer not in self.columns:
            return name in self.columns
        inside = [row[outer] for row in self.rows if isinstance(row.get(outer), Mapping)]
        return not inside or any(inner in part for part in inside)

    def _inside(self, name: Any) -> str | None:
        """The name with that of the field that holds it, for one that is no column."""
        if not isinstance(name, str) or has_column(self.columns, name):
            return None
        for row in self.rows:
            for outer, value in row.items():
                if isinstance(value, Mapping) and isinstance(value.get(name), str):
                    return f"{outer}.{name}"
        return None


def has_column(columns: Sequence[str], name: str) -> bool:
    """Whether there is a column of this name; `translation.en` is `en` inside `translation`."""
    return name in columns or name.partition(".")[0] in columns


class FormRow:
    """
    A row as a form reads it: `row["messages"]` is the field of the job, whatever its name in the file.

    Attributes:
        row: The row itself.
        names: The names of the job's fields in the file.
        sample: The beginning of the file.
        used: The names of the file's fields that were read.
    """

    def __init__(self, row: Mapping[str, Any], names: Mapping[str, Any], sample: Sample, used: set[str]):
        self.row, self.names, self.sample, self.used = row, names, sample, used

    def __getitem__(self, field_name: str) -> Any:
        """Returns the value of a field. Raises `BadRow` if it is missing or null."""
        name = self.names[field_name]
        value = self.raw(name)
        if is_missing(value):
            missing = value is None and name not in self.row and "." not in str(name)
            raise BadRow(f"field {name!r} is {'missing' if missing else _null(value)}")
        return value

    def get(self, field_name: str, default: Any = None) -> Any:
        """Returns the value of a field, or the default if it is missing or null."""
        name = self.names.get(field_name)
        value = None if name is None else self.raw(name)
        return default if is_missing(value) else value

    def raw(self, name: Any) -> Any:
        """Returns the value under a name of the file, None if there is none or it is ignored; `a.b` is `b` in `a`."""
        if isinstance(name, (list, tuple)):
            return [self.raw(part) for part in name]
        ignored = self.sample.reading.options.ignore_fields
        if name in self.row:
            if name in ignored:
                return None
            self.used.add(name)
            return self.row[name]
        outer, dot, inner = str(name).partition(".")
        part = self.row.get(outer) if dot and outer not in ignored else None
        if isinstance(part, Mapping):
            self.used.add(outer)
            return part.get(inner)
        return None

    def text(self, field_name: str) -> str:
        """Returns a text. Raises `BadRow` where it is missing, blank or something else."""
        return check_text(self[field_name], f"field {self.names[field_name]!r}")


def skip_rejected(row: FormRow) -> None:
    """Raises `NoRecord` for a row that its annotator rejected or passed over, as Prodigy writes it."""
    if row.row.get("answer") in ("reject", "ignore"):
        raise NoRecord(f"field 'answer' is {row.raw('answer')!r}")


def is_missing(value: Any) -> bool:
    """Whether a value is null, or the NaN that pandas writes for it."""
    return value is None or (isinstance(value, float) and value != value)


def _null(value: Any) -> str:
    return "null" if value is None else "nan"


def check_text(value: Any, what: str) -> str:
    """Returns a text that is not blank and can be encoded. Raises `BadRow` for anything else."""
    if not isinstance(value, str):
        raise BadRow(f"{what} is {_null(value) if is_missing(value) else f'a {type(value).__name__}, not text'}")
    if not value.strip():
        raise BadRow(f"{what} is blank")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise BadRow(f"{what} has half of a surrogate pair")
    return value


Values = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Form:
    """
    A form of data files.

    Attributes:
        job: One of `JOBS`.
        name: Its name for `--format`.
        summary: One line for `hf-tfm formats`.
        fields: Names in the file of the fields of the job that it needs, the usual ones in their order.
        optional: The same of fields that a file may have.
        shape: Whether the values of a row's fields, by the names of the job, have the form's shape.
        read: Returns a record of a `FormRow`, or a list of records, with a `BadRow` for each part that cannot be used
            (forms of rows); yields places with records, `BadRow` or `Note` of lines with their places (forms of lines),
            or of paths (forms of paths).
        recognise: Whether the first lines (forms of lines), the paths (forms of paths) or the whole sample (forms of
            rows, besides their fields and shape) have the form.
        suffixes: For forms of lines, the suffixes of files that may have it.
        headless: Whether a form of lines is a table without a header: not tried where the user names fields or columns.
        example: Contents of an example's files by their names.
        gives: The records of the example, without the fields that the job does not have.
    """

    job: str
    name: str
    summary: str
    fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    optional: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    shape: Callable[[Values], bool] | None = None
    read: Callable[..., Any]
    recognise: Callable[[Any], bool] | None = None
    suffixes: tuple[str, ...] = ()
    headless: bool = False
    content: str = "rows"
    example: Mapping[str, str]
    gives: Sequence[Record]

    def names_in(self, sample: Sample) -> dict[str, Any] | None:
        """Returns the names of the job's fields in a file of this form; None if it has another form."""
        reading, names = sample.reading, {}
        for field_name, standard in {**self.fields, **self.optional}.items():
            name = sample.name_of(field_name, standard)
            if name is not None:
                names[field_name] = name
            elif field_name in self.fields and reading.requires(field_name):
                return None
        unread = {field_name for field_name, name in reading.names.items() if name is not None} - set(names)
        if unread or not all(sample.has(name) for name in flat(names.values())):
            return None
        if self.recognise is not None and not self.recognise(sample):
            return None
        if self.shape is not None and sample.rows:
            hits = sum(self._fits(row, names, sample) for row in sample.rows)
            if 2 * hits <= len(sample.rows):
                return None
        return names

    def _fits(self, row: Mapping[str, Any], names: Mapping[str, Any], sample: Sample) -> bool:
        form_row = FormRow(row, names, sample, set())
        values = {field_name: form_row.raw(name) for field_name, name in names.items()}
        try:
            return self.shape is None or bool(self.shape(values))
        except (TypeError, KeyError, IndexError, AttributeError, ValueError):
            return False


# What a file is that has no form of a job, by the job: functions of a sample that return a message, or None.
EXPLANATIONS: dict[str, list[Callable[[Sample], str | None]]] = {}


def explains(job: str) -> Callable[[Callable[[Sample], str | None]], Callable[[Sample], str | None]]:
    """Declare a function that knows files which the job cannot use, and says why."""

    def declare(explain: Callable[[Sample], str | None]) -> Callable[[Sample], str | None]:
        EXPLANATIONS.setdefault(job, []).append(explain)
        return explain

    return declare


def flat(names: Iterable[Any]) -> list[str]:
    """Returns names of which some are lists of names as one list."""
    return [part for name in names for part in (name if isinstance(name, (list, tuple)) else [name])]


FORMS: list[Form] = []


def forms_of(job: str) -> list[Form]:
    """Returns the forms of a job in the order in which they are tried."""
    return [form for form in FORMS if form.job == job]


def rows(
    job: str,
    name: str,
    summary: str,
    fields: Mapping[str, tuple[str, ...]],
    *,
    optional: Mapping[str, tuple[str, ...]] | None = None,
    shape: Callable[[Values], bool] | None = None,
    recognise: Callable[[Sample], bool] | None = None,
    example: Mapping[str, str],
    gives: Sequence[Record],
) -> Callable[[Callable[[FormRow], Any]], Callable[[FormRow], Any]]:
    """Declare a form of rows; the function reads one row, as a record or several."""

    def declare(read: Callable[[FormRow], Any]) -> Callable[[FormRow], Any]:
        form = Form(job=job, name=name, summary=summary, fields=fields, optional=optional or {}, shape=shape, read=read,
                    recognise=recognise, example=example, gives=gives)  # fmt: skip
        FORMS.append(form)
        return read

    return declare


ReadLines = Callable[[Iterator[tuple[str, str]], Reading], Iterator[Placed]]


def lines(
    job: str,
    name: str,
    summary: str,
    recognise: Callable[[Sequence[str]], bool],
    *,
    suffixes: tuple[str, ...] = (),
    headless: bool = False,
    example: Mapping[str, str],
    gives: Sequence[Record],
) -> Callable[[ReadLines], ReadLines]:
    """Declare a form of lines; the function yields places with records, or with `BadRow`, of places with lines."""

    def declare(read: ReadLines) -> ReadLines:
        form = Form(job=job, name=name, summary=summary, recognise=recognise, suffixes=suffixes, read=read,
                    headless=headless, content="lines", example=example, gives=gives)  # fmt: skip
        FORMS.append(form)
        return read

    return declare


ReadPaths = Callable[[Sequence[Path], Reading, str], Iterator[Placed]]


def paths(
    job: str,
    name: str,
    summary: str,
    recognise: Callable[[Sequence[Path]], bool],
    *,
    example: Mapping[str, str],
    gives: Sequence[Record],
) -> Callable[[ReadPaths], ReadPaths]:
    """Declare a form of several files or a folder; the function yields records of paths, for one split."""

    def declare(read: ReadPaths) -> ReadPaths:
        form = Form(job=job, name=name, summary=summary, recognise=recognise, read=read, content="paths",
                    example=example, gives=gives)  # fmt: skip
        FORMS.append(form)
        return read

    return declare
