"""Rows of CSV and TSV: separators, quotes and headers as people write them, and no row joined or padded in silence."""

import csv
import io
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from ..core.errors import InputError
from .files import DataFile
from .reading import BadRow, ReadingOptions, Row, Table


_SEPARATORS = (",", ";", "\t", "|")
_NAMES = {"tab": "\t", "\\t": "\t", "space": " ", "comma": ",", "semicolon": ";", "pipe": "|"}
_BLANKS = "blanks"  # one or more blanks and tabs
_SAMPLE_CHARACTERS = 1 << 20  # separator and quotes are told from the start of a file
_NUM_LOOKED_AT = 100  # rows
_LONGEST_NAME = 60
_COMMON_NAMES = frozenset(
    "id idx index text texts label labels sentence sentence1 sentence2 question answer answers context title body"
    " content review comment prompt chosen rejected instruction input output response query document premise hypothesis"
    " target source summary tokens tags ner_tags score rating category class split".split()
)


class _Record(NamedTuple):
    """The line that a record ends in, and its cells or its fault."""

    line: int
    cells: list[str] | BadRow


def open_delimited(table: Table, stream: BinaryIO, options: ReadingOptions) -> None:
    """
    Sets the columns and the rows of a table of text.

    Raises:
        InputError: The separator or the header cannot be used.
    """
    csv.field_size_limit(2**31 - 1)  # the default forbids texts over 128 KiB
    lines: Iterator[str] = io.TextIOWrapper(stream, encoding="utf-8", newline="")
    sample, size = [], 0
    for line in lines:
        sample.append(line)
        size += len(line)
        if size >= _SAMPLE_CHARACTERS:
            break
    is_whole = size < _SAMPLE_CHARACTERS
    separator = _choose_separator(table, sample, is_whole, options.separator)
    is_quoted = separator != _BLANKS
    if separator == "\t":
        is_quoted = _is_quoted(table, sample, is_whole)
    records = _iterate(itertools.chain(sample, lines), separator, is_quoted)
    has_header = not (options.no_header or options.columns)
    header = next(records, None) if has_header else None
    if header and isinstance(header.cells, BadRow):
        raise InputError(f"{table.file}, line {header.line}: {header.cells}; mend the header")
    first = list(itertools.islice(records, _NUM_LOOKED_AT))
    rows = [record.cells for record in first if isinstance(record.cells, list)]
    if header and isinstance(header.cells, list):
        table.columns = _distinct_names(table, header.cells, rows)
        table.header_looks_like_data = _data_in_header(header.cells, rows)
    elif not has_header and rows:
        width = Counter(map(len, rows)).most_common(1)[0][0]
        table.columns = list(options.columns or (f"column {number + 1}" for number in range(width)))
        if len(table.columns) != width:
            names = ", ".join(table.columns)
            raise InputError(
                f"{table.file}: --columns names {len(table.columns)} ({names}), but rows have {width} cells"
            )
        table.first_row_looks_like_header = _header_in_data(rows)
    if table.columns and len(table.columns) == 1 and not options.separator:
        table.notes.append(f"one column ({table.columns[0]}): no separator was found; --separator names one")
    table.rows = _name_cells(table.file, table.columns or [], itertools.chain(first, records))


def _name_cells(file: DataFile, columns: list[str], records: Iterator[_Record]) -> Iterator[Row]:
    for line, cells in records:
        row: Any = cells
        if isinstance(cells, list):
            if len(cells) == len(columns):
                row = dict(zip(columns, cells))
            elif len(cells) > len(columns):
                row = BadRow("has more cells than columns", f"{len(cells)}, not {len(columns)}")
            elif len(cells) == 1 and not cells[0].strip():
                continue  # a line of blanks
            else:
                row = BadRow("has fewer cells than columns", f"{len(cells)}, not {len(columns)}")
        yield f"{file}, line {line}", row


def _iterate(lines: Iterator[str], separator: str, is_quoted: bool) -> Iterator[_Record]:
    """Yields the records that are not blank."""
    if not is_quoted:
        for number, line in enumerate(lines, 1):
            line = line.rstrip("\r\n")
            if line:
                yield _Record(number, line.split() if separator == _BLANKS else line.split(separator))
        return
    reader = csv.reader(lines, delimiter=separator, strict=True)
    first_line = 1
    while True:
        cells: list[str] | BadRow | None
        try:
            cells = next(reader, None)
        except csv.Error as error:
            reason = str(error).replace("\t", "\\t")
            cells = BadRow("broken quotes", f"{reason}, in the row from line {first_line} on")
        if cells is None:
            return
        if cells:
            yield _Record(reader.line_num, cells)
        first_line = reader.line_num + 1


def _choose_separator(table: Table, sample: list[str], is_whole: bool, asked: str | None) -> str:
    """Returns the separator that gives all first records the same number of cells, or the one of the file's name."""
    if asked is not None:
        separator = _NAMES.get(asked.lower(), asked)
        if separator != _BLANKS and (len(separator) != 1 or separator in '"\r\n'):
            raise InputError(f"--separator {asked!r}: must be one character, or tab, space or blanks")
        return separator
    usual = "\t" if table.kind == "tsv" else ","
    consistent = {separator: _is_consistent(sample, is_whole, separator) for separator in _SEPARATORS}
    found = [separator for separator in _SEPARATORS if consistent[separator]]
    if len(found) > 1:
        found = [separator for separator in found if separator == usual] if _is_clear(sample, usual, found) else found
    if len(found) > 1:
        names = " or ".join(f"--separator {_shown(separator)}" for separator in found)
        raise InputError(f"{table.file}: its cells may be separated in several ways; say {names}")
    if not found or found == [usual]:
        return usual
    table.notes.append(f"cells are separated by {_shown(found[0])}, a guess; --separator names another")
    return found[0]


def _is_consistent(sample: list[str], is_whole: bool, separator: str) -> bool:
    """Whether the first records have the same number of cells, two or more, with quotes or (tabs) without."""
    readings = [True, False] if separator == "\t" else [True]
    for is_quoted in readings:
        records = list(itertools.islice(_iterate(iter(sample), separator, is_quoted), _NUM_LOOKED_AT))
        widths = {len(cells) if isinstance(cells, list) else 0 for _, cells in _without_last(records, sample, is_whole)}
        if len(widths) == 1 and widths.pop() > 1:
            return True
    return False


def _is_clear(sample: list[str], usual: str, found: list[str]) -> bool:
    """Whether the usual separator is in the first line and no other one is."""
    return usual in found and bool(sample) and [s for s in found if s in sample[0]] == [usual]


def _shown(separator: str) -> str:
    return {"\t": "tab", " ": "space"}.get(separator, f"'{separator}'")


def _without_last(records: list[_Record], sample: list[str], is_whole: bool) -> list[_Record]:
    """Leaves out a record that reaches the end of the sample, where it may be cut."""
    is_cut = not is_whole and len(records) > 1 and records[-1].line >= len(sample)
    return records[:-1] if is_cut else records


def _is_quoted(table: Table, sample: list[str], is_whole: bool) -> bool:
    """
    Whether the writer of a table with tabs used quotes as CSV does; TSV of this field has none.

    Only a reading that is well-formed and gives every row the same number of cells counts, and it must explain what the
    other one does not: rows of other lengths, or quotes that are all doubled or all around cells.
    """
    plain = _without_last(list(_iterate(iter(sample), "\t", False)), sample, is_whole)
    cells = [cell for _, row in plain if isinstance(row, list) for cell in row]
    if not any(cell.startswith('"') for cell in cells):
        return False
    quoted = _without_last(list(_iterate(iter(sample), "\t", True)), sample, is_whole)
    widths = {len(row) if isinstance(row, list) else 0 for _, row in quoted}
    is_well_formed = len(widths) == 1 and 0 not in widths
    is_plain_consistent = len({len(row) for _, row in plain if isinstance(row, list)}) == 1
    header = plain[0].cells if isinstance(plain[0].cells, list) else []
    whole = [cell for cell in cells if re.fullmatch(r'"(?:[^"]|"")*"', cell)]
    evidence = not is_plain_consistent or all(cell in whole for cell in header) or any('""' in cell for cell in whole)
    if is_well_formed and evidence:
        table.notes.append("quotes around cells are taken as CSV's and removed, because all of them are well-formed")
        return True
    if is_well_formed or whole:
        table.notes.append("quotes around cells are kept as text: TSV has no quoting")
    return False


def _distinct_names(table: Table, header: list[str], rows: list[list[str]]) -> list[str]:
    """The names of columns, all different; those that a header leaves unclear cannot be used, and `unclear` says so."""
    advice = "rename it, or say --no_header if the first row is data, or give all names with --columns"
    names: list[str] = []
    for number, name in enumerate(header):
        if not name.strip():
            name = "Unnamed: 0" if number == 0 else f"column {number + 1}"  # the first one is pandas' index
            if number and any(row[number].strip() for row in rows if number < len(row)):
                table.unclear[name] = f"column {number + 1} has no name in the header; {advice}"
        elif name in names:
            table.unclear[name] = f"has {header.count(name)} columns called {name!r}; {advice}"
            name = f"{name} ({header[:number].count(name) + 1})"
        names.append(name)
    return names


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"\s*[-+]?(\d+([.,]\d*)?|[.,]\d+)([eE][-+]?\d+)?%?\s*", text))


def _data_in_header(header: list[str], rows: list[list[str]]) -> str | None:
    for number, name in enumerate(header):
        if _is_number(name):
            return f"{name!r} is a number"
        if len(name) > _LONGEST_NAME:
            return f"{name[:_LONGEST_NAME]!r}… is long for a name"
        if name and any(number < len(row) and row[number] == name for row in rows):
            return f"{name!r} is also a value of this column"
    return None


def _header_in_data(rows: list[list[str]]) -> str | None:
    first, *others = rows
    for number, cell in enumerate(first):
        if cell.strip().lower() in _COMMON_NAMES:
            return f"{cell!r} is a common name of a column"
        values = [row[number] for row in others if number < len(row) and row[number].strip()]
        if cell.strip() and not _is_number(cell) and len(values) > 1 and all(map(_is_number, values)):
            return f"{cell!r} stands above numbers"
    return None
