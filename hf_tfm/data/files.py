"""Finds data files, opens them through their compression, and explains what cannot be read."""

import bz2
import glob
import gzip
import io
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..core.errors import InputError, explain, reason_of
from ..core.package_data import find_packaged


TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
PLAIN_TEXT = (".txt", ".md", ".markdown", ".rst")
# Suffixes that `list_files` lists. In a folder of training text, files of the other kinds of plain text are about it.
READABLE = (*TABLES, ".txt")


class DataFile(NamedTuple):
    """A data file, perhaps inside a zip archive."""

    path: Path
    member: str | None = None

    def __str__(self) -> str:
        return f"{self.path}/{self.member}" if self.member else str(self.path)

    @property
    def suffixes(self) -> tuple[str, str]:
        """The suffix of the format, and that of the compression ("" if there is none)."""
        suffixes = Path(self.member or self.path).suffixes[-2:]
        compression = suffixes.pop().lower() if suffixes and suffixes[-1].lower() in DECOMPRESS else ""
        return (suffixes[-1].lower() if suffixes else ""), compression


def list_files(location: str, split: str = "train", suffixes: Collection[str] | None = None) -> list[DataFile]:
    """
    Returns the files of a location, sorted by path.

    Args:
        location: A file, a folder (read recursively) or a glob; archives count as folders.
        split: In folders and archives, only files of this split, by their names or a folder's (`test.jsonl`, `dev/…`);
            files named for no split belong to "train". "" for all files.
        suffixes: Suffixes of the formats to list, `READABLE` by default.

    Raises:
        InputError: There is none.
    """
    suffixes = READABLE if suffixes is None else suffixes
    files = [file for file, in_split in _walk(location, split, suffixes) if in_split and file.suffixes[0] in suffixes]
    if not files:
        which = f"of the {split!r} split " if split else ""
        raise InputError(f"{location}: holds no file {which}whose name ends in {_readable_suffixes()}")
    return files


def list_skipped_files(location: str, split: str = "train") -> dict[str, list[Path]]:
    """
    Returns the files that `list_files` skips, except hidden ones, by reason: "named for another split" and "of another
    kind". A file in an archive is `archive.zip/member`.
    """
    skipped: dict[str, list[Path]] = {}
    for file, in_split in _walk(location, split, READABLE):
        suffix = file.suffixes[0]
        if not in_split and suffix in (*READABLE, ".zip"):
            skipped.setdefault("named for another split", []).append(Path(str(file)))
        elif suffix not in READABLE:
            skipped.setdefault("of another kind", []).append(Path(str(file)))
    return skipped


def named_split(path: Path) -> str | None:
    """Returns the split that a file's name, or the name of a folder above it, speaks of; None if there is none."""
    for part in reversed(path.parts):
        match = re.match(r"([a-z]*)(?:[-_.]|$)", part.lower())
        split = _SPLIT_ALIASES.get(match[1], match[1]) if match else None
        if split in ("train", "validation", "test"):
            return split
    return None


@contextmanager
def open_file(file: DataFile) -> Iterator[BinaryIO]:
    """Open a file's decompressed bytes. Raises `InputError` if they cannot be read, at the start or later."""
    _, compression = file.suffixes
    with explain_unreadable(file), ExitStack() as stack:
        stream: Any
        if file.member is None:
            stream = stack.enter_context(open(file.path, "rb"))
        else:
            stream = stack.enter_context(stack.enter_context(zipfile.ZipFile(file.path)).open(file.member))
        if compression:
            stream = io.BufferedReader(stack.enter_context(DECOMPRESS[compression](stream)), 1 << 20)
        yield stream


def explain_unreadable(place: object) -> AbstractContextManager[None]:
    """Turns errors of damaged and unreadable files into an `InputError`."""
    # RuntimeError: an encrypted zip file.
    errors = (UnicodeDecodeError, OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError)
    return explain(place, _unreadable_hint, *errors)


def _unreadable_hint(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        byte = error.object[error.start]
        return f"is not UTF-8 text (byte 0x{byte:02x}); convert it, for instance with `iconv -t utf-8`"
    return f"cannot be read ({reason_of(error)}); mend the file or fetch it again"


def _decompress_zstd(stream: BinaryIO) -> BinaryIO:
    import pyarrow

    return pyarrow.CompressedInputStream(stream, "zstd")


DECOMPRESS: dict[str, Callable[[Any], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _decompress_zstd,
}

_SPLIT_ALIASES = {"valid": "validation", "val": "validation", "dev": "validation", "eval": "test", "training": "train"}


def _walk(location: str, split: str, suffixes: Collection[str]) -> Iterator[tuple[DataFile, bool]]:
    """Yields all files of a location except hidden ones, sorted by path, and whether each belongs to the split."""
    expanded = find_packaged(os.path.expanduser(location))
    is_folder = os.path.isdir(expanded)
    if is_folder:
        paths = sorted(Path(expanded).rglob("*"))
    elif os.path.isfile(expanded):
        paths = [Path(expanded)]
    else:
        paths = [Path(path) for path in sorted(glob.glob(expanded, recursive=True))]
    paths = [path for path in paths if path.is_file()]
    if not (paths or is_folder):
        raise InputError(f"{location}: no such file, folder or glob; a dataset of the Hub is written hub:NAME")
    for path in paths:
        inner_path = path.relative_to(expanded) if is_folder else Path()
        if _is_hidden(inner_path):
            continue
        in_split = not is_folder or _belongs(inner_path, split)  # a file that is named is read whatever it is called
        if path.suffix.lower() == ".zip" and in_split:
            with explain_unreadable(path), zipfile.ZipFile(path) as archive:
                members = sorted(name for name in archive.namelist() if not name.endswith("/"))
            visible = (name for name in members if not _is_hidden(Path(name)))
            yield from ((DataFile(path, name), _belongs(Path(name), split)) for name in visible)
        elif not is_folder and DataFile(path).suffixes[0] not in suffixes:
            raise InputError(f"{path}: unknown kind of file; the name must end in {_readable_suffixes()}")
        else:
            yield DataFile(path), in_split


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _belongs(path: Path, split: str) -> bool:
    return not split or (named_split(path) or "train") == _SPLIT_ALIASES.get(split, split)


def _readable_suffixes() -> str:
    return ", ".join(READABLE) + f" (also with {', '.join(DECOMPRESS)}) or .zip"
