"""Labelled records for fine-tuning: read, checked and split. Every complaint names the file and the record."""

import ast
import contextlib
import hashlib
import json
import random
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import InputError
from ..core.privacy import public_name
from .files import DataFile, list_files, named_split, read_rows


class Records(list[dict[str, Any]]):
    """
    The records of one split as dictionaries.

    Attributes:
        path: where they were read from, the first place of several.
        more_paths: the other places.
        places: where each stands, `file, line 3`, for messages.
    """

    def __init__(
        self, records: Iterable[dict[str, Any]], places: Iterable[str], path: str, more_paths: Iterable[str] = ()
    ):
        super().__init__(records)
        self.places = list(places)
        self.path = path
        self.more_paths = list(more_paths)

    def subset(self, numbers: Iterable[int]) -> "Records":
        numbers = list(numbers)
        return Records([self[n] for n in numbers], [self.places[n] for n in numbers], self.path, self.more_paths)

    def values(self, field: str, option: str) -> list[Any]:
        """
        One field of all records.

        Raises:
            InputError: a record lacks the field (`option` is what names it on the command line), or holds null in it.
        """
        values = []
        for record, place in zip(self, self.places):
            if field not in record:
                there = ", ".join(map(str, record)) or "nothing"
                raise InputError(f"{place}: no field {field!r}, there are {there}: name the right one with --{option}")
            value = record[field]
            if value is None or value != value:  # NaN
                raise InputError(f"{place}: field {field!r} is {'null' if value is None else value}; mend or drop it")
            values.append(value)
        return values

    def texts(self, field: str, option: str) -> list[str]:
        """A text field of all records. Raises `InputError` where it is missing, blank or no text."""
        texts = self.values(field, option)
        for text, place in zip(texts, self.places):
            if not isinstance(text, str):
                raise InputError(f"{place}: field {field!r} is a {type(text).__name__}, not text; mend or drop it")
            if not text.strip():
                raise InputError(f"{place}: field {field!r} is blank; mend or drop this record")
            if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
                raise InputError(f"{place}: field {field!r} has half of a surrogate pair; mend or drop this record")
        return texts


def read_records(path: str | Path | Sequence[str | Path], split: str = "train") -> Records:
    """
    All records of one file or several: .jsonl, .json (an array or lines), .csv, .tsv or .parquet, also compressed or in
    a .zip. Of a folder those of the split are read, if names in it say which files are of which.

    Raises:
        InputError: a file is missing, damaged, of an unknown kind or without records; the message names the line.
    """
    paths = [path] if isinstance(path, str | Path) else list(path)
    records: list[dict[str, Any]] = []
    places: list[str] = []
    for one in paths:
        before = len(records)
        for place, record in iter_records(one, split):
            records.append(record)
            places.append(place)
        if len(records) == before:
            raise InputError(f"{one}: holds no records")
    return Records(records, places, str(paths[0]), map(str, paths[1:]))


def iter_records(path: str | Path, split: str = "train") -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and record of what [`read_records`] reads, one at a time. Raises `InputError` as it does."""
    for file in record_files(path, split):
        yield from read_record_file(file)


def record_files(path: str | Path, split: str = "train") -> list[DataFile]:
    """The files that [`read_records`] reads. Raises `InputError` if there is none."""
    folder = Path(path).expanduser()
    if not folder.is_dir() or not any(named_split(file.relative_to(folder)) for file in folder.rglob("*")):
        split = "train"
    return list_files(str(path), split)


def read_record_file(file: DataFile) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and record of one file. Raises `InputError` where it is damaged, or plain text."""
    for place, record in read_rows(file):
        if not isinstance(record, Mapping):
            raise InputError(f"{place}: is a {type(record).__name__}, not a record with named fields")
        yield place, dict(record)


def read_list(text: str) -> list[Any] | None:
    """A list that a cell of CSV holds, as JSON or as Python (and pandas and datasets) writes it; None if it is none."""
    if text.lstrip().startswith("["):
        with contextlib.suppress(ValueError):
            return json.loads(text)
        # What Python reads is its own writing only if it would write the same again: NumPy's has no commas.
        with contextlib.suppress(ValueError, SyntaxError):
            found = ast.literal_eval(text.strip())
            if isinstance(found, list) and repr(found) == text.strip():
                return found
    return None


def split_list(value: Any) -> Any:
    """A list out of a cell of CSV as [`read_list`] reads it, or with blanks between its entries; all else as it is."""
    if not isinstance(value, str):
        return value
    if (several := read_list(value)) is not None:
        return several
    # Quoted entries in brackets that cannot be read are a list all the same, and no words.
    return value if re.fullmatch(r"""\s*\[\s*(['"]).*['"]\s*\]\s*""", value, re.DOTALL) else value.split()


def carve(
    records: Records, fraction: float, seed: int, keys: Sequence[Hashable], strata: Sequence[Hashable] | None = None
) -> tuple[Records, Records]:
    """
    What stays and a random share for validation, the same for the same seed.

    Args:
        fraction: the share to carve out, between 0 and 1.
        keys: records with equal keys (the same text twice) go to the same side.
        strata: the share is taken from each stratum (label), none of which is ever emptied.

    Raises:
        InputError: there are too few records for the share to hold any.
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
    for several in by_stratum.values():
        draw.shuffle(several)
        for group in several[: min(round(fraction * len(several)), len(several) - 1)]:
            carved.update(group)
    if not carved:
        raise InputError(
            f"{records.path}: {len(records)} records are too few to carve {fraction:.0%} out for validation: give a "
            "--validation_file or a larger --validation_fraction"
        )
    stay = (number for number in range(len(records)) if number not in carved)
    return records.subset(stay), records.subset(sorted(carved))


def data_facts(split: str, records: Records) -> dict[str, Any]:
    """What the run record says about a split: files' names with their folders', records, SHA-256 of what they hold."""
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
