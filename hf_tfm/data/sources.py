"""
Documents for pretraining, from files, folders, archives and datasets of the Hub, in constant memory.

A `Source` names one place and what to take from it; a `DocumentStream` yields the documents of several sources and can
continue from any position. Whatever a user can get wrong here (another field name, a record without text) is reported
in one line that names the place and the way to mend it.
"""

import itertools
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..core.errors import InputError, explain
from .files import TABLES, DataFile, list_files, list_skipped_files
from .forms.form import NoRecord, Reading
from .forms.reader import SAMPLED_ROWS, FileReport, LeftOut, RecordReader
from .plain_text import read_plain_text
from .tables import ReadingOptions


# Plain text that is one document a file is cut into pieces of so many characters where a part of it is held out, so
# that a single file has something to hold out.
HELD_OUT_CHARACTERS = 1 << 14


@dataclass(frozen=True)
class Source:
    """
    A place that text comes from.

    Args:
        location: A file, a folder (read recursively), a glob, or a dataset of the Hub as `hub:NAME[:CONFIG[:SPLIT]]`.
            Files are .jsonl, .json (an array or lines), .csv, .tsv, .parquet and .txt, or any of these with .gz, .bz2,
            .xz, .zst behind it or inside a .zip.
        weight: Share of the tokens of a mixture, relative to the other sources' weights. `None` for all sources: every
            document once per epoch, whichever source it is from.
        text_field: The field or column that holds the text; by default recognised.
        split: The split of a Hub dataset or of a folder. In a folder, files named for a split (`test.jsonl`,
            `valid-0001.parquet`, `dev/…`) belong to it, all others to "train". "" for all files of a folder.
        name: The source's name in reports; by default the location.
        text_unit: The document of a text file: "document" (the file), "paragraph" (between blank lines) or "line".
        strip_gutenberg: Leave out the header and the licence of books of Project Gutenberg.
        options: What the user says about the files: encoding, separator, bad rows.
        where: Read only records that have one of these values in these fields: `{"source": ["news", "books"]}`.
        part: Read only documents whose hash, as a share of all hashes, lies between these two. (0, 0.05) and (0.05, 1)
            hold out a twentieth; copies of a document are in the same part. Plain text of one document a file is then
            cut into documents of 16,384 characters.

    Raises:
        InputError: A value is out of range.
    """

    location: str
    weight: float | None = None
    text_field: str | None = None
    split: str = "train"
    name: str = ""
    text_unit: str = "document"
    strip_gutenberg: bool = False
    options: ReadingOptions = field(default_factory=ReadingOptions)
    where: Mapping[str, Sequence[str]] | None = None
    part: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.weight is not None and not (isinstance(self.weight, (int, float)) and 0 < self.weight < float("inf")):
            raise InputError(f"source {self.location}: weight {self.weight} is not a positive number")
        if self.text_unit not in ("document", "paragraph", "line"):
            raise InputError(
                f"source {self.location}: text_unit {self.text_unit!r} must be document, paragraph or line"
            )
        values = self.where.values() if isinstance(self.where, Mapping) else [self.where or []]
        if any(isinstance(value, str) or not isinstance(value, Sequence) for value in values):
            raise InputError(f"source {self.location}: where must give each field a list of values, not {self.where!r}")
        try:
            low, high = self.part
            is_valid = 0 <= low < high <= 1
        except (TypeError, ValueError):
            is_valid = False
        if not is_valid:
            raise InputError(f"source {self.location}: part {self.part} is not two shares of its documents (0.05, 1)")
        if not self.name:
            object.__setattr__(self, "name", self.location)

    @property
    def reading(self) -> Reading:
        """How tables are read."""
        return Reading("text", {"text": self.text_field} if self.text_field else {}, self.options)

    @property
    def is_whole(self) -> bool:
        """Whether all documents are read."""
        return tuple(self.part) == (0, 1)  # a recipe has a list

    def contains(self, text: str) -> bool:
        """Whether a document belongs to this part of the source."""
        return self.is_whole or self.part[0] <= zlib.crc32(text.encode()) / 2**32 < self.part[1]

    @property
    def hub(self) -> tuple[str, str | None, str] | None:
        """Name, configuration and split of a Hub dataset; `None` for files."""
        if not self.location.startswith("hub:"):
            return None
        name, config, split = (self.location[4:].split(":") + ["", ""])[:3]
        return name, config or None, split or self.split or "train"

    def list_files(self) -> list[DataFile]:
        """Returns the source's files, sorted by path. Raises `InputError` if there is none."""
        return list_files(self.location, self.split)

    def list_skipped_files(self) -> dict[str, list[Path]]:
        """Returns the files that are not read, by reason, as `files.list_skipped_files`; none of a Hub dataset."""
        return {} if self.hub else list_skipped_files(self.location, self.split)


def parse_source(spec: str | Path | Mapping[str, Any] | Source, **defaults: Any) -> Source:
    """
    Returns the source of a short form `[NAME=]LOCATION[?FIELD=VALUE,VALUE][#FIELD][@WEIGHT]`, or of a mapping of
    `Source`'s fields.

        data/books                      a folder, weight not given
        data/wiki.jsonl.gz@0.7          7 of 10 tokens, if the other weights sum to 0.3
        mix.jsonl?source=news,books     the records whose `source` is one of the two
        code=src/*.parquet#content@0.3  named "code", the text in the column "content"
        hub:roneneldan/TinyStories::validation

    A string that names an existing file or folder is a location, whatever characters it has. `defaults` are fields of
    sources that do not name their own.
    """
    if isinstance(spec, Source):
        return spec
    if isinstance(spec, Mapping):
        known = [field.name for field in fields(Source)]
        if "location" not in spec or not set(spec) <= set(known):
            raise InputError(f"source {dict(spec)}: needs location, may have {', '.join(known[1:])}")
        return Source(**{**defaults, **spec})
    spec = os.fspath(spec)
    if os.path.exists(spec):
        return Source(spec, **defaults)
    match = re.fullmatch(
        r"(?:([\w.-]+)=)?(.*?)(?:\?([\w.-]+)=([^#@/]+))?(?:#([^#@/]+))?(?:@([\d.eE+-]+))?", spec, flags=re.DOTALL
    )
    assert match is not None  # all parts are optional
    name, location, key, values, field, weight = match.groups()
    with explain(f"source {spec!r}", lambda error: f"{weight!r} behind the @ is not a number", ValueError):
        share = None if weight is None else float(weight)
    where = {key: values.split(",")} if key else None
    own = {"text_field": field} if field else {}
    return Source(location, **{**defaults, **own, "weight": share, "name": name or "", "where": where})


def parse_sources(specs: Any, **defaults: Any) -> list[Source]:
    """Returns the sources of one or several specs as `parse_source` takes. All of them have a weight, or none has."""
    is_list = isinstance(specs, Iterable) and not isinstance(specs, (str, Mapping))
    sources = [parse_source(spec, **defaults) for spec in (specs if is_list else [specs])]
    if not sources:
        raise InputError("no source of text given: name a file, a folder or a hub: dataset")
    unweighted = [source.name for source in sources if source.weight is None]
    if unweighted and len(unweighted) < len(sources):
        raise InputError(
            f"source {unweighted[0]} has no weight but others have: give @WEIGHT to all sources or to none"
        )
    return sources


class DocumentStream:
    """
    Iterates over the documents of sources, one source after the other, and knows its position.

    `position()` after a document is a small JSON-able dictionary; a new stream with this position continues with the
    next document. Files before the position are not opened; records before it in its file are skipped. `reports` says
    what was read of each file.
    """

    def __init__(self, sources: Sequence[Source], position: Mapping[str, Any] | None = None):
        self.sources = sources
        self._at: dict[str, Any] = {"source": 0, "documents": 0, "file": 0, "record": 0, **(position or {})}
        self._hub_state = self._at.pop("hub", None)
        self._hub_dataset: Any = None
        self.reports: list[FileReport] = []

    def position(self) -> dict[str, Any]:
        """Returns the position of the next document."""
        if self._hub_dataset is None:
            return dict(self._at)
        return {**self._at, "hub": self._hub_dataset.state_dict()}

    def __iter__(self) -> Iterator[str]:
        at = self._at
        has_documents = at["source"] > 0 or at["documents"] > 0
        for source in self.sources[at["source"] :]:
            has_text = False
            for text in self._read_hub(source) if source.hub else self._read_files(source):
                if text and not text.isspace():
                    has_text = True
                    if source.contains(text):
                        at["documents"] += 1
                        has_documents = True
                        yield text
            if not (at["documents"] or has_text):
                reason = f"no record where {dict(source.where)}" if source.where else "every document in it is empty"
                raise InputError(f"{source.location}: holds no text; {reason}")
            self._hub_dataset = None
            at.update(source=at["source"] + 1, documents=0, file=0, record=0)
        if not has_documents:
            share = max(source.part[1] - source.part[0] for source in self.sources)
            raise InputError(
                f"{', '.join(source.location for source in self.sources)}: too few documents for a share of "
                f"{share:.3g}; ask for a larger one, or give a file of its own"
            )

    def _read_files(self, source: Source) -> Iterator[str]:
        at, reader = self._at, RecordReader(source.location, source.reading)
        for file in source.list_files()[at["file"] :]:
            is_table = file.suffixes[0] in TABLES
            texts = _read_table(file, source, reader) if is_table else _read_text(file, source, self.reports)
            for text in itertools.islice(texts, at["record"], None):
                at["record"] += 1
                yield text
            at.update(file=at["file"] + 1, record=0)
        self.reports += reader.reports
        reader.refuse_bad_rows()

    def _read_hub(self, source: Source) -> Iterator[str]:
        self._hub_dataset = _open_hub(source)
        if self._hub_state is not None:
            self._hub_dataset.load_state_dict(self._hub_state)
            self._hub_state = None
        placed = ((f"{source.location}, record {number}", row) for number, row in enumerate(self._hub_dataset, 1))
        # The form is recognised by other copies of the first rows: reading ahead would move the position.
        head = _open_hub(source).take(SAMPLED_ROWS)
        reader = RecordReader(source.location, source.reading, rows=placed, head=head)
        for read in reader:
            yield read.record["text"] if _is_selected(read.row, source, read.place) else ""
        self.reports += reader.reports


def read_documents(sources: Any, **settings: Any) -> Iterator[str]:
    """
    Yields the texts of one or several sources, in order, in constant memory; blank documents are left out.

    Args:
        sources: What `parse_source` takes, or a list of these. Weights are ignored.
        settings: Fields of sources that do not name their own, such as `text_field`.

    Raises:
        InputError: A file or folder is missing, empty, damaged or of an unknown kind; a record has no such field, or
            something other than text in it.
    """
    return iter(DocumentStream(parse_sources(sources, **settings)))


def explain_hub(source: Source) -> AbstractContextManager[None]:
    """Turns errors of opening a dataset of the Hub into an `InputError`."""
    from datasets.exceptions import DatasetsError

    def hint(error: Exception) -> str:
        reason = str(error).strip().split("\n")[0]
        return f"cannot be opened ({reason}); written hub:NAME:CONFIG:SPLIT"

    return explain(source.location, hint, OSError, ValueError, DatasetsError)


def _read_table(file: DataFile, source: Source, reader: RecordReader) -> Iterator[str]:
    """Yields the texts of a table; "" for rows that the source leaves out."""
    for read in reader.read_file(file):
        yield read.record["text"] if _is_selected(read.row, source, read.place) else ""


def _read_text(file: DataFile, source: Source, reports: list[FileReport]) -> Iterator[str]:
    """Yields the documents of a text file."""
    if source.where:
        raise InputError(f"{file}: plain text has no fields to choose records by {', '.join(source.where)}")
    report = FileReport(str(file), source.text_unit)
    reports.append(report)
    longest = None if source.is_whole else HELD_OUT_CHARACTERS
    texts = read_plain_text(file, source.text_unit, longest, source.options, source.strip_gutenberg, report.notes)
    for text in texts:
        report.rows += 1
        if text and not text.isspace():
            report.records += 1
        else:
            report.left_out.setdefault("blank", LeftOut()).add(str(file), NoRecord("blank"))
        yield text


def _is_selected(row: Mapping[str, Any], source: Source, place: str) -> bool:
    for key, values in (source.where or {}).items():
        if key not in row:
            raise InputError(f"{place}: no field {key!r} to choose by; it has {', '.join(map(str, row))}")
        if str(row[key]) not in map(str, values):
            return False
    return True


def _open_hub(source: Source) -> Any:
    """Returns a Hub dataset as a stream (`datasets.IterableDataset`)."""
    from datasets import load_dataset

    assert source.hub is not None
    name, config, split = source.hub
    with explain_hub(source):
        return load_dataset(name, config, split=split, streaming=True)
