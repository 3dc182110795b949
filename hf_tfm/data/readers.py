"""
Opens any data file and yields its rows, each with its place (`file, line 3`), in constant memory.

`read_rows` is the one door for tables (`.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`), `read_plain_text` the one for
plain text; both read through `.gz`, `.bz2`, `.xz`, `.zst` and `.zip`. `list_files` finds the files. Documents for
pretraining (`sources.py`) and records for fine-tuning (`records.py`) are read through them.

Whatever a user can get wrong here (a missing file, a damaged archive, broken JSON) is reported in one line that names
the place and the way to mend it.
"""

import bz2
import csv
import glob
import gzip
import io
import itertools
import json
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


# Longer documents of plain text are cut, in characters.
MAX_CHARACTERS = 1 << 20
# A JSON array is read as a whole: one that takes a larger share of the machine's memory is refused.
_MAX_SHARE_OF_MEMORY = 0.25

# A row's place and the row: a dictionary in tables, or any other JSON value in a file that has others.
Row = tuple[str, Any]


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


def read_rows(file: DataFile, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """
    Yield place and row of each row of a table.

    Args:
        columns: The columns that are used; other ones may be left out. None for all.

    Raises:
        InputError: The file is plain text, or damaged; the message names the line or record.
    """
    suffix, _ = file.suffixes
    if suffix in PLAIN_TEXT:
        raise InputError(f"{file}: plain text has no fields; give .jsonl, .json, .csv, .tsv or .parquet")
    with open_file(file) as stream:
        yield from _ROW_READERS[suffix](stream, file, columns)


def read_plain_text(file: DataFile, sample_by: str = "document", longest: int | None = None) -> Iterator[str]:
    """
    Yield the documents of a file of plain text.

    Args:
        sample_by: What a document is: "document" (the file), "paragraph" (between blank lines) or "line".
        longest: A longer file is cut at line ends into documents of so many characters, `MAX_CHARACTERS` by default.

    Raises:
        InputError: The file cannot be read or is not text.
    """
    with open_file(file) as stream:
        lines = io.TextIOWrapper(stream, encoding="utf-8-sig")
        texts: Iterator[str]
        if sample_by == "line":
            texts = (line.rstrip("\n") for line in lines)
        elif sample_by == "paragraph":
            groups = itertools.groupby(lines, key=str.isspace)
            texts = ("".join(group).rstrip("\n") for is_blank, group in groups if not is_blank)
        else:
            texts = _cut_stream(lines, longest or MAX_CHARACTERS)
        for text in texts:
            if "\0" in text:
                raise InputError(f"{file}: is not text (it has zero bytes); leave it out")
            yield text


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


def cut_text(text: str, longest: int = MAX_CHARACTERS) -> list[str]:
    """Returns a text in parts of at most `longest` characters, cut at line ends, else at spaces, else anywhere."""
    parts, start = [], 0
    while len(text) - start > longest:
        half, full = start + longest // 2, start + longest
        end = text.rfind("\n", half, full) + 1 or text.rfind(" ", half, full) + 1 or full
        parts.append(text[start:end])
        start = end
    return [*parts, text[start:]]


def _cut_stream(lines: io.TextIOWrapper, longest: int) -> Iterator[str]:
    rest = ""
    while chunk := lines.read(longest):
        *whole, rest = cut_text(rest + chunk, longest)
        yield from whole
    if rest:
        yield rest


def _read_jsonl(stream: BinaryIO, file: DataFile, columns: Sequence[str] | None) -> Iterator[Row]:
    for number, line in enumerate(stream, 1):
        place = f"{file}, line {number}"
        with explain(place, _line_hint, ValueError, RecursionError):
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")  # for the column of an error
            if not text or text.isspace():
                continue
            row = json.loads(text)
        yield place, row


def _line_hint(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return _unreadable_hint(error)
    column = f", column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
    return f"broken JSON ({_json_reason(error)}{column}); mend or drop this line"


def _json_reason(error: Exception) -> str:
    return getattr(error, "msg", None) or str(error)


def _read_json(stream: BinaryIO, file: DataFile, columns: Sequence[str] | None) -> Iterator[Row]:
    """Reads an array of records, or one record over several lines, or one record a line."""
    stream = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(stream)  # type: ignore[type-var]
    start = stream.peek(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"["):
        yield from _read_array(_read_whole(stream, file), file)
    elif re.match(rb"\{[ \t]*\r?\n", start):
        with explain(file, lambda error: f"broken JSON ({error}); mend it", ValueError, RecursionError):
            record = json.loads(_read_whole(stream, file))
        yield f"{file}, record 1", record
    else:
        yield from _read_jsonl(stream, file, columns)


def _read_array(text: str, file: DataFile) -> Iterator[Row]:
    """Records of an array one by one, so that an error names the record."""
    decoder, position, number = json.JSONDecoder(), text.index("[") + 1, 1
    first, between = re.compile(r"\s*(\])?"), re.compile(r"\s*(?:(\])|,\s*)")
    while True:
        place = f"{file}, record {number}"
        with explain(place, lambda error: f"broken JSON ({_json_reason(error)})", ValueError, RecursionError):
            gap = (first if number == 1 else between).match(text, position)
            if not gap:
                raise ValueError("Expecting ',' or ']' before it")
            if gap[1]:
                break
            record, position = decoder.raw_decode(text, gap.end())
        yield place, record
        number += 1
    if text[gap.end() :].strip():
        raise InputError(f"{file}: broken JSON (text behind the ] that ends {number - 1} records); mend it")


def _read_whole(stream: BinaryIO, file: DataFile) -> str:
    limit = int(_MAX_SHARE_OF_MEMORY * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    content = stream.read(limit + 1)
    if len(content) > limit:
        raise InputError(
            f"{file}: this JSON file is too large for the memory of this machine; convert it to .jsonl, one record a "
            "line, for instance with `jq -c '.[]'`"
        )
    with explain_unreadable(file):
        return content.decode("utf-8-sig")


def _read_csv(stream: BinaryIO, file: DataFile, columns: Sequence[str] | None) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)  # the default forbids texts over 128 KiB
    lines = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    rows = csv.DictReader(lines, delimiter="\t" if file.suffixes[0] == ".tsv" else ",", strict=True)
    first_line = 1  # of the row that is being read
    try:
        names = list(rows.fieldnames or [])
        if repeated := [name for name in columns or names if name and names.count(name) > 1]:
            name = repeated[0]
            raise InputError(f"{file}: has {names.count(name)} columns called {name!r}; rename all but one")
        first_line = rows.line_num + 1
        for row in rows:
            place = f"{file}, line {rows.line_num}"
            if None in row:
                raise InputError(f"{place}: has more cells than the header names; quote cells that hold the separator")
            yield place, row
            first_line = rows.line_num + 1
    except csv.Error as error:
        reason = str(error).replace("\t", "\\t")
        raise InputError(
            f"{file}, line {rows.reader.line_num}: cannot be read ({reason}); mend the quotes from line {first_line} on"
        ) from None


def _read_parquet(stream: BinaryIO, file: DataFile, columns: Sequence[str] | None) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    with explain(file, "cannot be read ({reason}); mend the file or fetch it again", pyarrow.ArrowException):
        table = parquet.ParquetFile(stream)
        names = table.schema_arrow.names
        if not set(columns or ()) <= set(names):
            yield str(file), dict.fromkeys(names)  # the caller names the missing column
        numbers = itertools.count(1)
        for batch in table.iter_batches(batch_size=256, columns=columns):
            for number, record in zip(numbers, batch.to_pylist()):
                yield f"{file}, record {number}", record


def _decompress_zstd(stream: BinaryIO) -> BinaryIO:
    import pyarrow

    return pyarrow.CompressedInputStream(stream, "zstd")


DECOMPRESS: dict[str, Callable[[Any], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _decompress_zstd,
}
_ROW_READERS: dict[str, Callable[[BinaryIO, DataFile, Sequence[str] | None], Iterator[Row]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
PLAIN_TEXT = (".txt", ".md", ".markdown", ".rst")
# Suffixes that `list_files` lists. In a folder of training text, files of the other kinds of plain text are about it.
READABLE = (*_ROW_READERS, ".txt")

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
