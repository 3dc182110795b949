"""
Opens any table and yields its rows, each with its place (`file, line 3`), in constant memory.

`open_table` tells what a file is and what was guessed, and yields rows that cannot be used as `BadRow`; `read_rows`
stops at the first of these. The formats are in `delimited.py` (CSV, TSV), `json_rows.py` and `arrow_rows.py`.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from ..core.errors import InputError
from .encodings import open_text
from .files import PLAIN_TEXT, DataFile, open_file
from .reading import BadRow, ReadingOptions, Row, Table


__all__ = ["BadRow", "ReadingOptions", "Row", "Table", "open_table", "read_rows"]

_KINDS = {".ndjson": "jsonl", ".feather": "arrow"}


@contextmanager
def open_table(
    file: DataFile,
    options: ReadingOptions | None = None,
    split: str = "train",
    columns: Sequence[str] | None = None,
) -> Iterator[Table]:
    """
    Open a table; its file is closed at the end.

    Args:
        split: The split to read from a file that holds several; "" for all.
        columns: The columns that are used; other ones may be left out. None for all.

    Raises:
        InputError: The file is plain text, or damaged, or not what the options say; the message names the place. It may
            come later, while rows are read.
    """
    options = options or ReadingOptions()
    suffix, _ = file.suffixes
    if suffix in PLAIN_TEXT:
        raise InputError(f"{file}: plain text has no fields; give .jsonl, .json, .csv, .tsv or .parquet")
    table = Table(file, _KINDS.get(suffix, suffix[1:]))
    with ExitStack() as stack:
        if table.kind in ("parquet", "arrow"):
            from .arrow_rows import open_arrow

            open_arrow(table, stack.enter_context(open_file(file)), columns)
        else:
            text = stack.enter_context(open_text(file, options.encoding, table.notes))
            if table.kind in ("csv", "tsv"):
                from .delimited import open_delimited

                open_delimited(table, text, options)
            else:
                from .json_rows import open_json

                open_json(table, text, split)
        yield table


def read_rows(
    file: DataFile,
    columns: Sequence[str] | None = None,
    options: ReadingOptions | None = None,
    split: str = "train",
) -> Iterator[Row]:
    """
    Yield place and row of each row of a table. Arguments are those of [`open_table`].

    Raises:
        InputError: The file is plain text, or damaged, or a row cannot be used; the message names the line or record.
    """
    with open_table(file, options, split, columns) as table:
        for place, row in table.rows:
            if isinstance(row, BadRow):
                raise InputError(f"{place}: {row}; mend or drop this row")
            yield place, row
