"""Tables without a header: their separator and their cells."""

import csv
from collections.abc import Iterator, Sequence

from ..tables import BadRow
from .form import Placed


def separator_of(lines: Sequence[str]) -> str | None:
    """Returns what separates the cells of the lines of a table without a header: tab, comma or semicolon."""
    full = [line for line in lines if line.strip()]
    if full and all("\t" in line for line in full):
        return "\t"
    for separator in ",;":
        try:
            widths = {len(row) for row in csv.reader((line + "\n" for line in lines), delimiter=separator) if row}
        except csv.Error:
            continue
        if len(widths) == 1 and widths.pop() > 1:
            return separator
    return None


def split_lines(placed: Iterator[Placed], separator: str) -> Iterator[tuple[str, list[str] | BadRow]]:
    """Yields the place and the cells of each row; tabs have no quoting."""
    if separator == "\t":
        yield from ((place, line.split("\t")) for place, line in placed if line.strip())
        return
    place = ""

    def lines() -> Iterator[str]:
        nonlocal place
        for entry in placed:
            place, line = entry
            yield line + "\n"

    reader = csv.reader(lines(), delimiter=separator, strict=True)
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield place, BadRow("broken quotes", str(error))
            continue
        if cells is None:
            return
        if cells:
            yield place, cells


def sample_cells(lines: Sequence[str], separator: str) -> list[list[str]]:
    """Returns the cells of the first rows, without rows that are broken or cut."""
    placed = (("", line) for line in lines)
    return [cells for _, cells in split_lines(placed, separator) if isinstance(cells, list)]
