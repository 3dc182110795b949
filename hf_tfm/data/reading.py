"""What a user can say about a file, and what an open table is."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from .files import DataFile


# A row's place and the row: a dictionary in tables, any other JSON value in a file that has others, or a `BadRow`.
Row = tuple[str, Any]


@dataclass(frozen=True)
class ReadingOptions:
    """
    What a user can say about files, the same in every script.

    Args:
        format: A form's name.
        separator: The separator of cells: one character, "tab", "space", or "blanks" for one or more blanks and tabs.
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
        detail: What is wrong in this row; the kind if there is no more to say.
        part: The part of the row that has the fault, if the others can be used: "question 7".
    """

    def __init__(self, kind: str, detail: str = "", part: str = ""):
        super().__init__(f"{kind} ({detail})" if detail else kind)
        self.kind = kind
        self.detail = detail or kind
        self.part = part


@dataclass
class Table:
    """
    An open table.

    Attributes:
        kind: "csv", "tsv", "jsonl", "json", "parquet" or "arrow".
        columns: The columns, of formats that know them before the rows.
        rows: Place and row of each row; a row that cannot be used is a `BadRow`.
        class_names: Class names of the columns whose numbers stand for names; the rows have the names.
        notes: What was guessed or is worth saying; may grow while rows are read.
        header_looks_like_data: Why the first row looks like data, if it was read as a header.
        first_row_looks_like_header: Why the first row looks like a header, if it was read as data.
        unclear: Why columns cannot be used whose names are blank or stand for several, by their names.
    """

    file: DataFile
    kind: str
    columns: list[str] | None = None
    rows: Iterator[Row] = field(default_factory=lambda: iter(()))
    class_names: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    header_looks_like_data: str | None = None
    first_row_looks_like_header: str | None = None
    unclear: dict[str, str] = field(default_factory=dict)
