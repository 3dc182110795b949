"""Reads, checks and splits records for fine-tuning. Every error message names the file and the record."""

import ast
import contextlib
import hashlib
import io
import itertools
import json
import random
import re
import tokenize
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import InputError
from ..core.secret_scan import public_name
from .files import DataFile, list_files, named_split
from .tables import read_rows


class Records(list[dict[str, Any]]):
    """
    The records of one split as dictionaries.

    Attributes:
        path: The file or folder they were read from, the first of several.
        more_paths: The other files and folders.
        places: Place of each record, `file, line 3`, for messages.
        reports: What was read of each file, and what was not.
        names: Names of the job's fields in the file.
        rows: The files' own row of each record.
    """

    def __init__(
        self,
        records: Iterable[dict[str, Any]],
        places: Iterable[str],
        path: str,
        more_paths: Iterable[str] = (),
        reports: Iterable[Any] = (),
        names: Mapping[str, Any] | None = None,
        rows: Iterable[dict[str, Any]] | None = None,
    ):
        super().__init__(records)
        self.places = list(places)
        self.path = path
        self.more_paths = list(more_paths)
        self.reports = list(reports)
        self.names = dict(names or {})
        self.rows = list(self if rows is None else rows)

    def classes(self, field: str) -> list[str] | None:
        """Returns the names of classes in the order of their numbers, if the files tell them."""
        names = dict.fromkeys(name for report in self.reports for name in report.classes.get(field, ()))
        return list(names) or None

    def name_of(self, field: str) -> str:
        """Returns the name of a field in the file, for messages."""
        name = self.names.get(field, field)
        return name if isinstance(name, str) else field

    def subset(self, numbers: Iterable[int]) -> "Records":
        numbers = list(numbers)
        return Records(
            [self[n] for n in numbers],
            [self.places[n] for n in numbers],
            self.path,
            self.more_paths,
            self.reports,
            self.names,
            [self.rows[n] for n in numbers],
        )

    def values(self, field: str, option: str | None = None) -> list[Any]:
        """
        Returns one field of all records.

        Raises:
            InputError: A record lacks the field or has null in it. `option` is the field's option on the command line.
        """
        values = []
        for record, place in zip(self, self.places):
            if field not in record:
                present = ", ".join(map(str, record)) or "nothing"
                advice = f": name the right one with --{option}" if option else ""
                raise InputError(f"{place}: no field {field!r}, there are {present}{advice}")
            value = record[field]
            if value is None or value != value:  # NaN
                raise InputError(f"{place}: field {field!r} is {'null' if value is None else value}; mend or drop it")
            values.append(value)
        return values

    def texts(self, field: str, option: str | None = None) -> list[str]:
        """Returns a text field of all records. Raises `InputError` where it is missing, blank or no text."""
        texts = self.values(field, option)
        for text, place in zip(texts, self.places):
            if not isinstance(text, str):
                raise InputError(f"{place}: field {field!r} is a {type(text).__name__}, not text; mend or drop it")
            if not text.strip():
                raise InputError(f"{place}: field {field!r} is blank; mend or drop this record")
            if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
                raise InputError(f"{place}: field {field!r} has half of a surrogate pair; mend or drop this record")
        return texts


def read_table(path: str | Path | Sequence[str | Path], split: str = "train") -> Records:
    """
    Returns all records of one file or several: .jsonl, .json (an array or lines), .csv, .tsv or .parquet, also
    compressed or in a .zip. From a folder, files of the split are read if any file there is named for a split.

    Raises:
        InputError: A file is missing, damaged, of an unknown kind or without records; the message names the line.
    """
    paths = [path] if isinstance(path, str | Path) else list(path)
    records: list[dict[str, Any]] = []
    places: list[str] = []
    for path in paths:
        count = len(records)
        for place, record in iter_table(path, split):
            records.append(record)
            places.append(place)
        if len(records) == count:
            raise InputError(f"{path}: holds no records")
    return Records(records, places, str(paths[0]), map(str, paths[1:]))


def iter_table(path: str | Path, split: str = "train") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields place and record of what [`read_table`] reads, one at a time. Raises `InputError` as it does."""
    for file in record_files(path, split):
        yield from read_record_file(file)


def record_files(path: str | Path, split: str = "train") -> list[DataFile]:
    """Returns the files that [`read_table`] reads. Raises `InputError` if there is none."""
    folder = Path(path).expanduser()
    if not folder.is_dir() or not any(named_split(file.relative_to(folder)) for file in folder.rglob("*")):
        split = "train"
    return list_files(str(path), split)


def read_record_file(file: DataFile) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields place and record of one file. Raises `InputError` where it is damaged, or plain text."""
    for place, record in read_rows(file):
        if not isinstance(record, Mapping):
            raise InputError(f"{place}: is a {type(record).__name__}, not a record with named fields")
        yield place, dict(record)


def read_cell(text: str) -> Any:
    """
    Returns the list or mapping in a cell of CSV, in the syntax of JSON or as Python prints it.

    Raises:
        ValueError: The cell holds neither, or texts without commas, as NumPy prints them: Python would join them.
    """
    text = text.strip()
    if text[:1] not in ("{", "["):
        raise ValueError("neither a list nor a mapping")
    try:
        return json.loads(text)
    except ValueError as error:
        try:
            value = ast.literal_eval(_ArraysAsLists().visit(ast.parse(text, mode="eval")))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise error from None
    kinds = [token.type for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type != tokenize.NL]
    if (tokenize.STRING, tokenize.STRING) in itertools.pairwise(kinds):
        raise ValueError("texts without commas between them")
    return value


class _ArraysAsLists(ast.NodeTransformer):
    """NumPy's arrays inside a mapping are printed with their name: array(['Ann'], dtype=object)."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        is_array = isinstance(node.func, ast.Name) and node.func.id == "array" and len(node.args) == 1
        return self.visit(node.args[0]) if is_array else node


def read_list(text: str) -> list[Any] | None:
    """Returns the list in a cell of CSV as [`read_cell`] reads it; None if there is none."""
    with contextlib.suppress(ValueError):
        value = read_cell(text)
        return value if isinstance(value, list) else None
    return None


def as_list(value: Any) -> list[Any] | None:
    """Returns the list that a value is, or that a cell of CSV holds; None for anything else."""
    return value if isinstance(value, list) else read_list(value) if isinstance(value, str) else None


def split_list(value: Any) -> Any:
    """Returns the list in a cell of CSV as [`read_list`] reads it, or its words; any other value unchanged."""
    if not isinstance(value, str):
        return value
    if (entries := read_list(value)) is not None:
        return entries
    return value if is_damaged_list(value) else value.split()


def is_damaged_list(text: str) -> bool:
    """Whether a text has quoted entries in brackets, but cannot be read as a list."""
    return read_list(text) is None and bool(re.fullmatch(r"""\s*\[\s*(['"]).*['"]\s*\]\s*""", text, re.DOTALL))


def carve(
    records: Records, fraction: float, seed: int, keys: Sequence[Hashable], strata: Sequence[Hashable] | None = None
) -> tuple[Records, Records]:
    """
    Returns the records for training, and a random share for validation, the same for the same seed.

    Args:
        fraction: The share for validation, between 0 and 1.
        keys: Records with equal keys (the same text twice) go to the same side.
        strata: The share is taken from each stratum (label), and no stratum is emptied.

    Raises:
        InputError: There are too few records for this share.
    """
    if not 0 < fraction < 1:
        raise InputError(f"validation_fraction {fraction} must lie between 0 and 1")
    groups: dict[Hashable, list[int]] = {}
    for number, key in enumerate(keys):
        groups.setdefault(key, []).append(number)
    by_stratum: dict[Hashable, list[list[int]]] = {}
    for group in groups.values():
        by_stratum.setdefault(strata[group[0]] if strata else None, []).append(group)
    draw = random.Random(seed)
    carved: set[int] = set()
    for stratum in by_stratum.values():
        draw.shuffle(stratum)
        for group in stratum[: min(round(fraction * len(stratum)), len(stratum) - 1)]:
            carved.update(group)
    if not carved:
        too_few = "1 record is too few" if len(records) == 1 else f"{len(records)} records are too few"
        can_carve = any(len(stratum) > 1 for stratum in by_stratum.values())
        raise InputError(
            f"{records.path}: {too_few} to carve {fraction:.0%} out for validation: give a --validation_file"
            + (" or a larger --validation_fraction" if can_carve else "")
        )
    remaining = (number for number in range(len(records)) if number not in carved)
    return records.subset(remaining), records.subset(sorted(carved))


def data_facts(split: str, records: Records) -> dict[str, Any]:
    """Returns a split's entry in the run record: file names, number of records, SHA-256 of the files."""
    paths = [Path(path) for path in (records.path, *records.more_paths)]
    names = [public_name(path) for path in paths]
    facts = {"name": " + ".join(names), "split": split, "records": len(records)}
    if all(path.is_file() for path in paths):
        digest = hashlib.sha256()
        for path in paths:
            with open(path, "rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
        facts["sha256"] = digest.hexdigest()
    return facts
