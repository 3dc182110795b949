"""Tables are read as they were written, or refused; what was guessed is said."""

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from hf_tfm.core.errors import InputError
from hf_tfm.data.files import DataFile
from hf_tfm.data.tables import BadRow, ReadingOptions, Table, open_table


def read(path: Path, split: str = "train", **options) -> Table:
    """The table with its rows in a list."""
    with open_table(DataFile(path), ReadingOptions(**options), split) as table:
        table.rows = list(table.rows)
    return table


def rows_of(path: Path, split: str = "train", **options) -> list:
    return [row for _, row in read(path, split, **options).rows]


def write(path: Path, content: str | bytes | dict | list) -> Path:
    if isinstance(content, (dict, list)):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# Characters that matter to CSV, and some that every encoding of the test has, or only one.
_COMMON = st.text(st.sampled_from("ab1 ,;|\t\"'\n\r\\=-"), max_size=8)
_LETTERS = {
    "utf-8": "é☃ю日\u2028\x85",
    "utf-8-sig": "é☃ю日\u2028",
    "utf-16": "é☃ю日\u2028",
    "cp1252": "éèäßÞðÿœ€“",
    "cp1251": "éйюЯъёЂ№"[1:],
    "shift_jis": "ｱ日本ソ表あア、",
}
_SEPARATORS = {",": None, ";": None, "\t": None, "|": None, " ": "space"}


@st.composite
def written_tables(draw):
    """Rows, and how they are written: separator, quoting, encoding, header."""
    encoding = draw(st.sampled_from(list(_LETTERS)))
    cell = st.one_of(_COMMON, st.text(st.sampled_from('ab "\n' + _LETTERS[encoding]), max_size=8))
    width = draw(st.integers(2, 4))
    rows = draw(st.lists(st.lists(cell, min_size=width, max_size=width), min_size=1, max_size=5))
    terminator = draw(st.sampled_from(["\r\n", "\n"]))
    # Python's csv puts a carriage return into quotes only if lines end in one.
    assume(terminator == "\r\n" or not any("\r" in cell for row in rows for cell in row))
    quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]))
    separator = draw(st.sampled_from(list(_SEPARATORS)))
    return rows, quoting, separator, terminator, encoding


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("has_header", [True, False])
@pytest.mark.parametrize("is_told", [True, False], ids=["encoding told", "encoding not told"])
@given(table=written_tables())
@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_a_table_is_read_as_it_was_written_or_refused(tmp_path_factory, suffix, has_header, is_told, table):
    """But where quotes are kept, which is said: a file of tabs may have been written with quotes or without."""
    rows, quoting, separator, terminator, encoding = table
    names = [f"name {number}" for number in range(len(rows[0]))]
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=separator, quoting=quoting, lineterminator=terminator)
    writer.writerows([names] * has_header + rows)
    content = buffer.getvalue().encode(encoding)
    if not is_told and encoding in ("cp1252", "cp1251", "shift_jis"):
        assume(not _is_utf8(content))
    path = write(tmp_path_factory.getbasetemp() / f"property{suffix}", content)
    options = {"encoding": encoding if is_told else None, "no_header": not has_header}
    try:
        found = read(path, separator=_SEPARATORS[separator], **options)
    except InputError:
        return
    read_back = [row for _, row in found.rows]
    if any(isinstance(row, BadRow) for row in read_back) or any("kept as text" in note for note in found.notes):
        return
    columns = names if has_header else [f"column {number}" for number in range(1, len(names) + 1)]
    assert read_back == [dict(zip(columns, row)) for row in rows]


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True
