"""
Opens any table (`.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`) and yields its rows, each with its place (`file, line
3`), in constant memory.
"""

import csv
import io
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from ..core.errors import InputError, explain
from .files import PLAIN_TEXT, DataFile, _unreadable_hint, explain_unreadable, open_file


# A JSON array is read as a whole: one that takes a larger share of the machine's memory is refused.
_MAX_SHARE_OF_MEMORY = 0.25

# A row's place and the row: a dictionary in tables, any other JSON value in a file that has others, or a `BadRow`.
Row = tuple[str, Any]


@dataclass(frozen=True)
class ReadingOptions:
    """
    What a user can say about files, the same in every script.

    Args:
        format: A form's name.
        separator: The separator of cells: one character, or "tab", "space" or "blanks".
        encoding: The encoding of text.
        no_header: The first row is data; columns are called "column 1", "column 2", ….
        columns: Names of the columns; the first row is data.
        skip_bad: Rows that cannot be used are left out.
        ignore_fields: Fields that are left out on purpose.
    """

    format: str | None = None
    separator: str | None = None
    encoding: str | None = None
    no_header: bool = False
    columns: tuple[str, ...] | None = None
    skip_bad: bool = False
    ignore_fields: tuple[str, ...] = ()


class BadRow(ValueError):
    """
    A row that cannot be used.

    Attributes:
        kind: The fault in a few words, the same for all rows that have it.
        detail: What is wrong in this row.
    """

    def __init__(self, kind: str, detail: str = ""):
        super().__init__(detail or kind)
        self.kind = kind
        self.detail = detail or kind


@dataclass
class Table:
    """
    An open table.

    Attributes:
        kind: "csv", "tsv", "jsonl", "json", "parquet" or "arrow".
        columns: The columns, of formats that know them before the rows.
        rows: Place and row of each row; a row that cannot be used is a `BadRow`.
        class_names: Names of the classes of columns of numbers that stand for names.
        notes: What was guessed or is worth saying; may grow while rows are read.
        header_looks_like_data: Why the first row looks like data, if it was read as a header.
        first_row_looks_like_header: Why the first row looks like a header, if it was read as data.
    """

    file: DataFile
    kind: str
    columns: list[str] | None
    rows: Iterator[Row]
    class_names: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    header_looks_like_data: str | None = None
    first_row_looks_like_header: str | None = None


@contextmanager
def open_table(file: DataFile, options: ReadingOptions | None = None, split: str = "train") -> Iterator[Table]:
    """
    Open a table.

    Args:
        split: Of a file that contains several splits, the one to read.

    Raises:
        InputError: The file is plain text, or damaged; the message names the line or record.
    """
    suffix, _ = file.suffixes
    kind = {".ndjson": "jsonl"}.get(suffix, suffix[1:])
    yield Table(file, kind, None, _read_rows(file, None))


def read_rows(
    file: DataFile, columns: Sequence[str] | None = None, options: ReadingOptions | None = None
) -> Iterator[Row]:
    """
    Yield place and row of each row of a table.

    Args:
        columns: The columns that are used; other ones may be left out. None for all.

    Raises:
        InputError: The file is plain text, or damaged, or a row cannot be used; the message names the line or record.
    """
    for place, row in _read_rows(file, columns):
        if isinstance(row, BadRow):
            raise InputError(f"{place}: {row}")
        yield place, row


def _read_rows(file: DataFile, columns: Sequence[str] | None) -> Iterator[Row]:
    suffix, _ = file.suffixes
    if suffix in PLAIN_TEXT:
        raise InputError(f"{file}: plain text has no fields; give .jsonl, .json, .csv, .tsv or .parquet")
    with open_file(file) as stream:
        yield from _ROW_READERS[suffix](stream, file, columns)


def _read_jsonl(stream: BinaryIO, file: DataFile, columns: Sequence[str] | None) -> Iterator[Row]:
    for number, line in enumerate(stream, 1):
        place = f"{file}, line {number}"
        with explain(place, _line_hint, ValueError, RecursionError):
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")  # for the column of an error
            if not text or text.isspace():
                continue
            row = json.loads(text)
        yield place, row


def _line_hint(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return _unreadable_hint(error)
    column = f", column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
    return f"broken JSON ({_json_reason(error)}{column}); mend or drop this line"


def _json_reason(error: Exception) -> str:
    return getattr(error, "msg", None) or str(error)


def _read_json(stream: BinaryIO, file: DataFile, columns: Sequence[str] | None) -> Iterator[Row]:
    """Reads an array of records, or one record over several lines, or one record a line."""
    stream = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(stream)  # type: ignore[type-var]
    start = stream.peek(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"["):
        yield from _read_array(_read_whole(stream, file), file)
    elif re.match(rb"\{[ \t]*\r?\n", start):
        with explain(file, lambda error: f"broken JSON ({error}); mend it", ValueError, RecursionError):
            record = json.loads(_read_whole(stream, file))
        yield f"{file}, record 1", record
    else:
        yield from _read_jsonl(stream, file, columns)


def _read_array(text: str, file: DataFile) -> Iterator[Row]:
    """Records of an array one by one, so that an error names the record."""
    decoder, position, number = json.JSONDecoder(), text.index("[") + 1, 1
    first, between = re.compile(r"\s*(\])?"), re.compile(r"\s*(?:(\])|,\s*)")
    while True:
        place = f"{file}, record {number}"
        with explain(place, lambda error: f"broken JSON ({_json_reason(error)})", ValueError, RecursionError):
            gap = (first if number == 1 else between).match(text, position)
            if not gap:
                raise ValueError("Expecting ',' or ']' before it")
            if gap[1]:
                break
            record, position = decoder.raw_decode(text, gap.end())
        yield place, record
        number += 1
    if text[gap.end() :].strip():
        raise InputError(f"{file}: broken JSON (text behind the ] that ends {number - 1} records); mend it")


def _read_whole(stream: BinaryIO, file: DataFile) -> str:
    limit = int(_MAX_SHARE_OF_MEMORY * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    content = stream.read(limit + 1)
    if len(content) > limit:
        raise InputError(
            f"{file}: this JSON file is too large for the memory of this machine; convert it to .jsonl, one record a "
            "line, for instance with `jq -c '.[]'`"
        )
    with explain_unreadable(file):
        return content.decode("utf-8-sig")


def _read_csv(stream: BinaryIO, file: DataFile, columns: Sequence[str] | None) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # the default forbids texts over 128 KiB
    lines = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    rows = csv.DictReader(lines, delimiter="\t" if file.suffixes[0] == ".tsv" else ",", strict=True)
    first_line = 1  # of the row that is being read
    try:
        names = list(rows.fieldnames or [])
        if repeated := [name for name in columns or names if name and names.count(name) > 1]:
            name = repeated[0]
            raise InputError(f"{file}: has {names.count(name)} columns called {name!r}; rename all but one")
        first_line = rows.line_num + 1
        for row in rows:
            place = f"{file}, line {rows.line_num}"
            if None in row:
                raise InputError(f"{place}: has more cells than the header names; quote cells that hold the separator")
            yield place, row
            first_line = rows.line_num + 1
    except csv.Error as error:
        reason = str(error).replace("\t", "\\t")
        raise InputError(
            f"{file}, line {rows.reader.line_num}: cannot be read ({reason}); mend the quotes from line {first_line} on"
        ) from None


def _read_parquet(stream: BinaryIO, file: DataFile, columns: Sequence[str] | None) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    with explain(file, "cannot be read ({reason}); mend the file or fetch it again", pyarrow.ArrowException):
        table = parquet.ParquetFile(stream)
        names = table.schema_arrow.names
        if not set(columns or ()) <= set(names):
            yield str(file), dict.fromkeys(names)  # the caller names the missing column
        numbers = itertools.count(1)
        for batch in table.iter_batches(batch_size=256, columns=columns):
            for number, record in zip(numbers, batch.to_pylist()):
                yield f"{file}, record {number}", record


_ROW_READERS: dict[str, Callable[[BinaryIO, DataFile, Sequence[str] | None], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
