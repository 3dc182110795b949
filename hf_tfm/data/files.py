"""Finds data files, opens them through their compression, and explains what cannot be read."""

import bz2
import difflib
import glob
import gzip
import io
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..core.errors import InputError, explain, reason_of
from ..core.package_data import find_packaged


TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather")
WIKITEXT = (".tokens", ".raw")
SOURCE_CODE = tuple(
    ".py .pyi .c .h .cc .cpp .hpp .cs .java .kt .scala .js .jsx .ts .tsx .go .rs .rb .php .swift .lua .r .jl .pl .sh"
    " .sql .html .css .tex .lean .hs .ml .clj .ex .erl .zig .asm .f90 .vue".split()
)
MARKUP = (".md", ".markdown", ".rst")
PLAIN_TEXT = (".txt", *WIKITEXT, *MARKUP, *SOURCE_CODE)
# Suffixes that `list_files` lists. In a folder that has such files, the other kinds of plain text are about them.
READABLE = (*TABLES, ".txt", *WIKITEXT)
# Files of a folder that describe its data.
_METADATA = frozenset(
    "dataset_info.json dataset_infos.json dataset_dict.json state.json .gitattributes croissant.json"
    " labels.json".split()
)


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


def list_files(
    location: str | Path | Sequence[str | Path], split: str = "train", suffixes: Collection[str] | None = None
) -> list[DataFile]:
    """
    Returns the files of a location or of several, those of each one sorted by path.

    Args:
        location: A file, a folder (read recursively) or a glob; archives count as folders.
        split: In folders and archives, only files of this split, by their names or a folder's (`test.jsonl`, `dev/…`);
            files named for no split belong to "train". "" for all files.
        suffixes: Suffixes of the formats to list; by default `READABLE`, and in a folder that has none of these, any
            kind of plain text.

    Raises:
        InputError: There is none.
    """
    locations = [location] if isinstance(location, str | Path) else list(location)
    files = [file for one in locations for file in _list_location(str(one), split, suffixes)]
    return list(dict.fromkeys(files))


def _list_location(location: str, split: str, suffixes: Collection[str] | None) -> list[DataFile]:
    walked = [*_walk(location, split, suffixes)]
    suffixes = _folder_suffixes(walked) if suffixes is None else suffixes
    files = [file for file, in_split in walked if in_split and _is_listed(file, suffixes)]
    if not files and len(walked) == 1 and _is_metadata(walked[0][0]):
        raise InputError(f"{location}: holds metadata, which describe a data set or a model, no rows; leave it out")
    if not files:
        which = f"of the {split!r} split " if split else ""
        raise InputError(f"{location}: holds no file {which}whose name ends in {_readable_suffixes()}")
    return files


def list_skipped_files(location: str, split: str = "train") -> dict[str, list[Path]]:
    """
    Returns the files that `list_files` skips, except hidden ones, by reason: "named for another split", "about the
    data" (metadata of the Hub) and "of another kind". A file in an archive is `archive.zip/member`.
    """
    skipped: dict[str, list[Path]] = {}
    walked = [*_walk(location, split, None)]
    suffixes = _folder_suffixes(walked)
    for file, in_split in walked:
        suffix = file.suffixes[0]
        if _is_metadata(file):
            skipped.setdefault("about the data", []).append(Path(str(file)))
        elif not in_split and suffix in (*suffixes, ".zip"):
            skipped.setdefault("named for another split", []).append(Path(str(file)))
        elif suffix not in suffixes:
            skipped.setdefault("of another kind", []).append(Path(str(file)))
    return skipped


def _folder_suffixes(walked: list[tuple[DataFile, bool]]) -> Collection[str]:
    """Suffixes to list: any kind of plain text if there is no data that it may be about."""
    has_data = any(file.suffixes[0] in READABLE and not _is_metadata(file) for file, _ in walked)
    return READABLE if has_data else (*READABLE, *PLAIN_TEXT)


def _is_listed(file: DataFile, suffixes: Collection[str]) -> bool:
    return file.suffixes[0] in suffixes and not _is_metadata(file)


def _is_metadata(file: DataFile) -> bool:
    """Whether a file describes the data beside it; `save_to_disk` of `datasets` and the Hub write such files."""
    path = Path(file.member or file.path)
    if path.name in _METADATA:
        return True
    # Arrow files of intermediate results.
    return path.name.startswith("cache-") and path.suffix == ".arrow"


def named_split(path: Path) -> str | None:
    """Returns the split that a file's name, or the name of a folder above it, speaks of; None if there is none."""
    *folders, name = path.parts or ("",)
    if path.suffix in WIKITEXT:  # wiki.valid.tokens
        name = ".".join(reversed(path.stem.split(".")))
    for part in (name, *reversed(folders)):
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
    errors = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError)
    return explain(place, _unreadable_hint, *errors)


def _unreadable_hint(error: Exception) -> str:
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


def _walk(location: str, split: str, suffixes: Collection[str] | None) -> Iterator[tuple[DataFile, bool]]:
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
        raise InputError(
            f"{location}: no such file, folder or glob{_close_names(expanded)}; a dataset of the Hub is written "
            "hub:NAME"
        )
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
        elif not is_folder and DataFile(path).suffixes[0] not in (suffixes or {*READABLE, *PLAIN_TEXT}):
            raise InputError(f"{path}: unknown kind of file; the name must end in {_readable_suffixes()}")
        else:
            yield DataFile(path), in_split


def _close_names(location: str) -> str:
    """Names beside a missing file that are almost the same."""
    path = Path(location)
    try:
        names = {entry.name.lower(): entry.name for entry in path.parent.iterdir() if not entry.name.startswith(".")}
    except OSError:
        return ""
    close = [names[name] for name in difflib.get_close_matches(path.name.lower(), names, 3, 0.7)]
    return f" (there is {', '.join(close)})" if close else ""


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _belongs(path: Path, split: str) -> bool:
    return not split or (named_split(path) or "train") == _SPLIT_ALIASES.get(split, split)


def _readable_suffixes() -> str:
    return ", ".join(READABLE) + f" (also with {', '.join(DECOMPRESS)}) or .zip"
