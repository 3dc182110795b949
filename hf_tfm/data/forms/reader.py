"""
Reads files of any form as the records of a job, and accounts for every row.

Rows read are records or are left out by a reason; a report for each file tells them, the form, and the fields that were
used and not used. Without `--skip_bad` bad rows are an error, which lists all of them by their reasons.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ...core.errors import InputError
from ...core.package_data import find_packaged
from ..files import PLAIN_TEXT, TABLES, DataFile, list_files, named_split
from ..plain_text import open_lines
from ..records import Records
from ..tables import BadRow, Table, open_table
from .explain import explain_unrecognised
from .form import Form, FormRow, NoRecord, Note, Placed, Reading, Record, Sample, flat, forms_of
from .jobs import JOBS


SAMPLED_ROWS = 100  # by which a form is recognised
LISTED_PLACES = 3  # of each reason


class ReadRecord(NamedTuple):
    """A record of the job, its place, and the row of the file that it is made of."""

    place: str
    record: Record
    row: dict[str, Any]


@dataclass
class LeftOut:
    """Rows left out by one reason: their number, the first places and what is wrong there."""

    count: int = 0
    places: list[str] = field(default_factory=list)
    details: list[str] = field(default_factory=list)

    def add(self, place: str, error: BadRow) -> None:
        self.count += 1
        if len(self.places) < LISTED_PLACES:
            self.places.append(place)
            self.details.append("" if error.detail == error.kind else f" ({error.detail})")

    def __str__(self) -> str:
        listed = "; ".join(place + detail for place, detail in zip(self.places, self.details))
        return listed + (" …" if self.count > len(self.places) else "")


@dataclass
class FileReport:
    """
    What was read of a file.

    Attributes:
        file: Its name.
        form: Name of its form.
        rows: Number of rows that were read: `records` come from them, or they are counted in `left_out` or `bad`.
        left_out: Rows that the form leaves out because they mean nothing for the job (SNLI's "-"), by reason.
        bad: Rows that cannot be read, by reason.
        classes: Names of classes in the order of their numbers, by field of the job, where the file tells them.
        used, unused: Names of the fields that were read, and of the others.
        notes: What was guessed, and what a person might not expect.
    """

    file: str
    form: str
    rows: int = 0
    records: int = 0
    left_out: dict[str, LeftOut] = field(default_factory=dict)
    bad: dict[str, LeftOut] = field(default_factory=dict)
    classes: dict[str, Sequence[str]] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    unused: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def add(self, place: str, error: BadRow) -> None:
        """Count a row, or a part of one, that is left out."""
        group = self.left_out if isinstance(error, NoRecord) else self.bad
        group.setdefault(error.kind, LeftOut()).add(f"{place}, {error.part}" if error.part else place, error)

    def reasons(self) -> str:
        """Returns why rows were left out, with their numbers."""
        skipped = {**self.left_out, **self.bad}
        return ", ".join(f"{left.count:,} × {reason}: {left}" for reason, left in skipped.items())

    def lines(self) -> list[str]:
        """Returns the report as lines of text."""
        reasons = self.reasons()
        lines = [
            f"{self.file}: form {self.form}, {_count(self.rows, 'row')} → {_count(self.records, 'record')}"
            + (f"; left out: {reasons}" if reasons else "")
        ]
        fields = [f"fields {', '.join(sorted(self.used))}"] if self.used else []
        fields += [f"not used: {', '.join(sorted(self.unused))}"] if self.unused else []
        return [*lines, *(["; ".join(fields)] if fields else []), *self.notes]


class RecordReader:
    """
    Iterates over places and records of files, in constant memory where their form allows it.

    Args:
        locations: A file, a folder, a glob, or several of them.
        split: In folders, only files of this split are read, if any file there is named for a split.
        rows: Places with rows, which are read in place of files.
        head: The first of these rows, if `rows` must not be read ahead to recognise their form.

    Attributes:
        reports: A `FileReport` for each file read so far.
        names: Names of the job's fields in the first file.

    Raises:
        InputError: A file is missing, has no form of the job, or has bad rows that are not to be skipped.
    """

    def __init__(
        self,
        locations: str | Path | Sequence[str | Path],
        reading: Reading,
        split: str = "train",
        rows: Iterable[Placed] | None = None,
        head: Iterable[Mapping[str, Any]] | None = None,
    ):
        several = [locations] if isinstance(locations, (str, Path)) else list(locations)
        self.locations, self.reading, self.split = [str(location) for location in several], reading, split
        self.rows, self.head = rows, head
        self.reports: list[FileReport] = []
        self.names: dict[str, Any] = {}

    def __iter__(self) -> Iterator[ReadRecord]:
        self.reports = []
        for source in self._sources():
            yield from self._read(source)
        self.refuse_bad_rows()
        if self.head is None and not any(report.records for report in self.reports):
            reasons = [report.reasons() for report in self.reports if report.reasons()]
            left_out = f"; left out: {', '.join(reasons)}" if reasons else ""
            raise InputError(f"{', '.join(self.locations)}: holds no records{left_out}")

    def read_file(self, file: DataFile) -> Iterator[ReadRecord]:
        """Yields the records of one file; [`refuse_bad_rows`] is called after the last one."""
        with ExitStack() as stack:
            yield from self._read(self._open(file, stack))

    def recognise(self, most: int) -> None:
        """Recognises the form of the first files by their heads. Raises `InputError` for a file without one."""
        for _ in itertools.islice(self._sources(), most):
            pass

    def recognise_file(self, file: DataFile) -> None:
        """Recognises the form of one file by its head. Raises `InputError` if it has none."""
        with ExitStack() as stack:
            self._open(file, stack)

    def _sources(self) -> Iterator["Source"]:
        """Yields the sources: files with their forms; or several paths as a whole."""
        if self.rows is not None:
            file = DataFile(Path(self.locations[0]))
            yield self._open_table(Table(file, "json", None, iter(self.rows)), Sample(self.reading, file))
            return
        places = [Path(find_packaged(str(Path(location).expanduser()))) for location in self.locations]
        whole = [form for form in self._forms() if form.content == "paths" and form.recognise]
        for form in whole:
            if form.recognise and form.recognise(places):
                yield Source(form, {}, form.read(places, self.reading, self.split), self._sample(places), places[0])
                return
        for location, place in zip(self.locations, places):
            form = next(
                (form for form in whole if len(places) > 1 and form.recognise and form.recognise([place])), None
            )
            if form:
                yield Source(form, {}, form.read([place], self.reading, self.split), self._sample([place]), place)
                continue
            is_split = place.is_dir() and any(named_split(file.relative_to(place)) for file in place.rglob("*"))
            suffixes = {*TABLES, *(suffix for form in self._forms() for suffix in form.suffixes)}
            suffixes |= {".txt"} if self._reads_lines else set()
            if not place.is_dir():
                suffixes |= {*PLAIN_TEXT}  # a text file that has no form of the job is explained
            for file in list_files(location, self.split if is_split else "train", suffixes):
                with ExitStack() as stack:
                    yield self._open(file, stack)

    def _sample(self, places: Sequence[Path]) -> Sample:
        return Sample(self.reading, DataFile(places[0]))

    def _forms(self) -> list[Form]:
        forms, wanted = forms_of(self.reading.job), self.reading.options.format
        if wanted is None:
            return forms
        chosen = [form for form in forms if form.name == wanted]
        if not chosen:
            names = ", ".join(form.name for form in forms)
            raise InputError(f"{self.reading.option('format')} {wanted}: a form of {self.reading.job} is {names}")
        return chosen

    def _open(self, file: DataFile, stack: ExitStack) -> "Source":
        """Recognises a file's form by its first lines, then by its first rows."""
        suffix, sample = file.suffixes[0], Sample(self.reading, file)
        if suffix not in TABLES or suffix in (".csv", ".tsv"):
            notes: list[str] = []
            placed = open_lines(file, self.reading.options, notes)
            head = list(itertools.islice(placed, SAMPLED_ROWS))
            sample.lines = [line for _, line in head]
            for form in self._forms():
                if form.content == "lines" and self._fits_lines(form, suffix, sample):
                    content = form.read(itertools.chain(head, placed), self.reading)
                    return Source(form, {}, content, sample, file, notes)
        if suffix == ".txt" and self._reads_lines:
            notes.append("a text a line")
            texts = ((place, _text_of_line(line)) for place, line in itertools.chain(head, placed))
            return self._open_table(Table(file, "txt", ["text"], texts, notes=notes), sample)
        if suffix not in TABLES:
            raise InputError(explain_unrecognised(sample, None, []))
        return self._open_table(stack.enter_context(open_table(file, self.reading.options, self.split)), sample)

    @property
    def _reads_lines(self) -> bool:
        """Whether text files are read, a text a line: for predictions."""
        return not self.reading.labelled and "text" in JOBS[self.reading.job].fields

    def _fits_lines(self, form: Form, suffix: str, sample: Sample) -> bool:
        if self.reading.options.format == form.name:
            return True
        options = self.reading.options
        if form.headless and (self.reading.names or options.columns or options.no_header):
            return False
        is_named = not form.suffixes or suffix in form.suffixes or suffix in TABLES
        return is_named and form.recognise is not None and form.recognise(sample.lines)

    def _open_table(self, table: Table, sample: Sample) -> "Source":
        rows: Iterator[Placed] = iter(table.rows)
        first = list(itertools.islice(rows, SAMPLED_ROWS)) if self.head is None else []
        if not any(isinstance(row, Mapping) for _, row in first):
            first, rows = list(_name_fields(first, self.reading.job)), _name_fields(rows, self.reading.job)
        head = [row for _, row in first] if self.head is None else list(self.head)
        sample.rows = [row for row in head if isinstance(row, Mapping)]
        columns = table.columns or dict.fromkeys(name for row in sample.rows for name in row)
        sample.columns = [name for name in columns if name not in self.reading.options.ignore_fields]
        sample.class_names = table.class_names
        if table.first_row_looks_like_header:
            sample.note(f"the first row looks like a header ({table.first_row_looks_like_header}), but is read as data")
        fitting = [
            (form, names) for form in self._forms() if (names := self._names(form, sample, not head)) is not None
        ]
        if not fitting:
            raise InputError(explain_unrecognised(sample, table, head))
        # A single row with the fields of another form does not make that the form of the file.
        form, names = next((fit for fit in fitting if _is_common(*fit, sample)), fitting[0])
        for name in flat(names.values()):
            if name in table.unclear:
                raise InputError(f"{sample.file}: {table.unclear[name]}")
        return Source(form, names, itertools.chain(first, rows), sample, sample.file, table.notes)

    def _names(self, form: Form, sample: Sample, is_empty: bool) -> dict[str, Any] | None:
        """The names of the job's fields in a file of a form; None if it has another one. An empty file has any."""
        names = form.names_in(sample) if form.content == "rows" else None
        return {} if is_empty and names is None else names

    def _read(self, source: "Source") -> Iterator[ReadRecord]:
        report = FileReport(str(source.file), source.form.name)
        self.reports.append(report)
        self.names = self.names or source.names
        seen: set[str] = set()
        for place, row in source.content:
            if isinstance(row, Note):
                source.sample.note(row)
                continue
            report.rows += 1
            read: Any = None
            try:
                if isinstance(row, BadRow):
                    raise row
                if source.form.content == "rows":
                    if not isinstance(row, Mapping):
                        raise BadRow(f"is a {type(row).__name__}, not a record with named fields")
                    seen.update(row)
                    read = source.form.read(FormRow(row, source.names, source.sample, report.used))
                    parts = [read] if isinstance(read, Mapping) else list(read)
                    self._refuse_meaningful(row, report.used)
                else:
                    parts, read = [row], row
            except BadRow as error:
                parts = [error]
            for record in parts:
                if isinstance(record, BadRow):
                    report.add(place, record)
                    continue
                report.records += 1
                # After the first bad row the others are only looked for: nothing may be trained or written.
                if not report.bad or self.reading.options.skip_bad:
                    yield ReadRecord(place, dict(record), dict(row if record is read else record))
        report.unused = seen - report.used - set(self.reading.options.ignore_fields)
        known = source.sample.class_names
        named = {name: column for name, column in source.names.items() if isinstance(column, str) and column in known}
        report.classes = {name: known[column] for name, column in named.items()} | source.sample.classes
        report.notes += [*source.notes, *source.sample.notes]
        report.notes += [f"{number:,} × {text}" for text, number in source.sample.counts.items()]
        report.notes += self._guesses(source)

    def _guesses(self, source: "Source") -> list[str]:
        """Notes on fields that were found under another name than the job's own."""
        guesses = []
        for field_name, name in source.names.items():
            if name != field_name and field_name not in self.reading.names:
                guesses.append(f"{field_name} from {name!r} ({self.reading.option_of(field_name)} names another)")
        return guesses

    def _refuse_meaningful(self, row: Mapping[str, Any], used: set[str]) -> None:
        options = self.reading.options
        for name, reason in JOBS[self.reading.job].meaningful.items():
            if name in row and name not in used and name not in options.ignore_fields and not _is_empty(row[name]):
                raise BadRow(
                    f"field {name!r} {reason}; leave it out with {self.reading.option('ignore_fields')} {name}"
                )

    def refuse_bad_rows(self) -> None:
        """Raises an `InputError` that lists all bad rows so far by their reasons, unless they are to be skipped."""
        bad = [(report, kind, rows) for report in self.reports for kind, rows in report.bad.items()]
        if not bad or self.reading.options.skip_bad:
            return
        skip = self.reading.option("skip_bad")
        if len(bad) == 1 and bad[0][2].count == 1:
            _, kind, rows = bad[0]
            raise InputError(f"{rows.places[0]}: {kind}{rows.details[0]}; mend it, or leave such rows out with {skip}")
        total, count = sum(report.rows for report in self.reports), sum(rows.count for *_, rows in bad)
        listed = "".join(f"\n  {rows.count:,} × {kind}: {rows}" for _, kind, rows in bad)
        raise InputError(
            f"{count:,} of {total:,} rows cannot be used; mend them, or leave them out with {skip}:{listed}"
        )


def _is_common(form: Form, names: Mapping[str, Any], sample: Sample) -> bool:
    """Whether more than half of the first rows have all fields that a form needs."""
    needed = flat(names[name] for name in form.fields if name in names)
    outer = [str(name).partition(".")[0] for name in needed]
    hits = sum(all(name in row or part in row for name, part in zip(needed, outer)) for row in sample.rows)
    return 2 * hits > len(sample.rows)


@dataclass
class Source:
    """A file with its form: `content` are places with rows (forms of rows) or with records (other forms)."""

    form: Form
    names: dict[str, Any]
    content: Iterable[Placed]
    sample: Sample
    file: Any
    notes: list[str] = field(default_factory=list)


def _name_fields(rows: Iterable[Placed], job: str) -> Iterator[Placed]:
    """Rows with named fields of texts, of lists of texts, numbers or messages, and of texts with fields (spaCy)."""
    for place, row in rows:
        named = row
        if isinstance(row, str) and job == "text":
            named = {"text": row}
        elif isinstance(row, list) and len(row) == 2 and isinstance(row[0], str) and isinstance(row[1], Mapping):
            named = {"text": row[0], **row[1]}
        elif isinstance(row, list) and row and all(isinstance(cell, (str, int, float)) for cell in row):
            named = {f"column {number}": cell for number, cell in enumerate(row, 1)}
        elif isinstance(row, list) and row and all(isinstance(turn, Mapping) and len(turn) > 1 for turn in row):
            named = {"messages": row}
        yield place, named


def _text_of_line(line: str) -> Any:
    return {"text": line} if line.strip() else NoRecord("the line is blank")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _is_empty(value: Any) -> bool:
    return value is None or value != value or (isinstance(value, (str, list, tuple, dict)) and not value)


def read_records(locations: str | Path | Sequence[str | Path], reading: Reading, split: str = "train") -> Records:
    """
    Returns all records of one file or several.

    Args:
        split: In folders, only files of this split are read, if any file there is named for a split.

    Raises:
        InputError: A file is missing, has no form of the job, or has bad rows that are not to be skipped.
    """
    reader = RecordReader(locations, reading, split)
    return collect(reader, list(reader))


def collect(reader: RecordReader, read: Sequence[ReadRecord]) -> Records:
    """Returns what was read by a reader, all of it or a chunk."""
    places, records, rows = zip(*read) if read else ((), (), ())
    first, *others = reader.locations
    return Records(records, places, first, others, reader.reports, reader.names, rows)


def read_rows(rows: Iterable[Mapping[str, Any]], reading: Reading, name: str = "rows") -> Records:
    """Returns records of rows in memory, such as those of a `datasets.Dataset`, as [`read_records`] does of files."""
    placed = ((f"{name}, row {number}", row) for number, row in enumerate(rows, 1))
    reader = RecordReader(name, reading, rows=placed)
    return collect(reader, list(reader))
