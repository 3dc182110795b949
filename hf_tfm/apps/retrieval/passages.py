"""Documents of files and folders, and the passages that they are cut into."""

import glob
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...core.errors import InputError
from ...data.files import MARKUP, PLAIN_TEXT, READABLE, DataFile, list_files
from ...data.forms.form import Reading
from ...data.forms.reader import FileReport, RecordReader
from ...data.plain_text import cut_text, read_plain_text
from ...data.sources import read_documents
from ...data.tables import ReadingOptions
from ...data.text import sentence_ends


INDEX_FILE = "index.json"  # a folder with this file is an index, and none of its files is a document
_SUFFIXES = frozenset({*READABLE, *MARKUP})


class Passage(NamedTuple):
    """
    A passage of a document.

    Attributes:
        document: number of the document.
        name: file of the document, with the line or record if the file has several documents.
        start, end: position of the text in the document, in characters.
    """

    text: str
    document: int
    name: str
    start: int
    end: int


def iter_documents(
    locations: str | Sequence[str],
    text_field: str | None = None,
    options: ReadingOptions | None = None,
    reports: list[FileReport] | None = None,
) -> Iterator[tuple[str, str]]:
    """
    Yield the name and the text of each document.

    Plain text and Markdown files are one document each; records are one document each. Blank documents and folders that
    are indexes are left out.

    Args:
        locations: a file, a folder or .zip (of every split), a glob or a `hub:` dataset, or several.
        text_field: field of a record that has its text; by default recognised.
        options: what the user says about the files.
        reports: a list that gets what was read of each table.

    Raises:
        InputError: as `read_records` does.
    """
    options = options or ReadingOptions()
    names = {"text": text_field} if text_field else {}
    for location in [locations] if isinstance(locations, str) else locations:
        if location.startswith("hub:"):
            for number, text in enumerate(read_documents(location, text_field=text_field, options=options), 1):
                yield f"{location}, record {number}", text
            continue
        reader = RecordReader(location, Reading("text", names, options, dashed=True))
        for file in list_documents(location):
            documents: Iterable[tuple[str, str]]
            if file.suffixes[0] in PLAIN_TEXT:
                documents = [(str(file), "".join(read_plain_text(file, options=options)))]
            else:
                documents = ((read.place, read.record["text"]) for read in reader.read_file(file))
            for place, text in documents:
                if text.strip():
                    yield place.replace(str(file.path), document_name(file.path, location), 1), text
        reader.refuse_bad_rows()
        if reports is not None:
            reports += reader.reports


def list_documents(location: str) -> list[DataFile]:
    """Return the files with documents at a location. Raises `InputError` if there are none."""
    files = list_files(location, "", _SUFFIXES)
    indexes = _index_folders(file.path for file in files)
    files = [file for file in files if indexes.isdisjoint(file.path.parents)]
    if not files:
        raise InputError(f"{location}: contains no documents, only an index")
    return files


def _index_folders(paths: Iterable[Path]) -> set[Path]:
    """Return the parent folders of these files that are indexes."""
    return {folder for folder in {parent for path in paths for parent in path.parents} if is_index(folder)}


def is_index(folder: Path) -> bool:
    """Whether a folder is an index, finished or not."""
    file = folder / INDEX_FILE
    return file.is_file() and '"made_from"' in file.read_text(encoding="utf-8", errors="replace")


def count_unreadable(locations: Iterable[str]) -> Counter[str]:
    """Return the numbers of files in folders that are not read, by suffix; hidden files and indexes do not count."""
    counts: Counter[str] = Counter()
    for folder in filter(os.path.isdir, locations):
        files = [path for path in Path(folder).rglob("*") if path.is_file() and path.suffix.lower() != ".zip"]
        files = [path for path in files if DataFile(path).suffixes[0] not in _SUFFIXES]
        files = [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
        indexes = _index_folders(files)
        counts.update(path.suffix or path.name for path in files if indexes.isdisjoint(path.parents))
    return counts


def document_name(path: Path, location: str) -> str:
    """Return a file's path relative to the given folder, or to the fixed part of a glob."""
    base = Path(os.path.expanduser(location))
    if not base.exists():
        base = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), base.parts))
    return str(path.relative_to(base)) if base.is_dir() else path.name


def cut_passages(text: str, tokenizer: Any, length: int, overlap: int = 0) -> list[tuple[int, int]]:
    """
    Return the start and end of each passage of a text, in characters.

    A passage has at most `length` tokens, and whole sentences where they fit. It begins with the last sentences of the
    previous passage if they have at most `overlap` tokens.
    """
    spans = []
    base = 0
    for part in cut_text(text):
        encoded = tokenizer(
            part, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        # Every token counts, even one of blanks alone, to which some tokenizers give no offsets of its own.
        tokens = np.maximum.accumulate(np.array(encoded["offset_mapping"], int).reshape(-1, 2))
        # Tokens of byte-level tokenizers begin with the blank before the word, so their ends are compared.
        bounds = np.searchsorted(tokens[:, 1], sentence_ends(part), side="right")
        bounds = sorted({0, len(tokens), *bounds.tolist()})
        pieces = [
            (start, min(start + length, end))
            for first, end in itertools.pairwise(bounds)
            for start in range(first, end, length)
        ]
        first = 0
        while first < len(pieces):
            last = first
            while last + 1 < len(pieces) and pieces[last + 1][1] - pieces[first][0] <= length:
                last += 1
            start, end = int(tokens[pieces[first][0], 0]), int(tokens[pieces[last][1] - 1, 1])
            if piece := part[start:end].strip():
                start = part.index(piece, start)
                spans.append((base + start, base + start + len(piece)))
            if last + 1 == len(pieces):
                break
            following = last + 1
            # Go back as far as the overlap allows and the next piece still fits; otherwise the passage has nothing new.
            while (
                following - 1 > first
                and pieces[last][1] - pieces[following - 1][0] <= overlap
                and pieces[last + 1][1] - pieces[following - 1][0] <= length
            ):
                following -= 1
            first = following
        base += len(part)
    return spans
