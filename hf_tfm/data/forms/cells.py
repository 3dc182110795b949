"""Cells of a table that hold lists and mappings, and tables without a header."""

import ast
import csv
import json
from collections.abc import Iterator, Sequence
from typing import Any

from ..tables import BadRow
from .form import Placed


def read_cell(text: str) -> Any:
    """
    Returns the list or mapping in a cell, in the syntax of JSON or as Python and NumPy print it.

    Raises:
        ValueError: The cell holds neither.
    """
    text = text.strip()
    if text[:1] not in ("{", "["):
        raise ValueError("neither a list nor a mapping")
    try:
        return json.loads(text)
    except ValueError as error:
        try:
            return ast.literal_eval(_ArraysAsLists().visit(ast.parse(text, mode="eval")))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise error from None


class _ArraysAsLists(ast.NodeTransformer):
    """NumPy's arrays are printed with their name: array(['Ann'], dtype=object)."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        is_array = isinstance(node.func, ast.Name) and node.func.id == "array" and len(node.args) == 1
        return self.visit(node.args[0]) if is_array else node


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
