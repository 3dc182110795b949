"""
Reads documents: from files, folders, archives and datasets of the Hub, in constant memory.

Whatever a person can get wrong here (a missing file, another field name, a damaged archive, a record without text)
ends in one line that says where it is and how to mend it.
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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..core.errors import InputError
from ..core.packaged import find_packaged


# A text file may be one document of any size. Past this many characters it is cut at a line end; sooner where some of
# the text is held out, so that a single file has something to hold out.
MAX_CHARACTERS = 1 << 20
HELD_OUT_CHARACTERS = 1 << 14

# Files that are one text each. Those behind the first are read where they are asked for: in a folder of training text
# they are about the text.
PLAIN_TEXT = (".txt", ".md", ".markdown", ".rst")
# Where sentences end, with the blanks behind; without blanks in scripts that have none there.
SENTENCE_END = r"""[.!?…]+["'”’»)\]]*\s+|[。！？।॥]+["'”’」』）]*\s*"""


@dataclass(frozen=True)
class Source:
    """
    One place that text comes from.

    Args:
        location: A file, a folder (read recursively), a glob, or a dataset of the Hub as `hub:NAME[:CONFIG[:SPLIT]]`.
            Files are .jsonl, .json (an array or lines), .csv, .tsv, .parquet and .txt, or any of these with .gz, .bz2,
            .xz, .zst behind it or inside a .zip.
        weight: Share of the tokens of a mixture, relative to the other sources' weights. `None` for all sources:
            every document once per epoch, whichever source it is from.
        text_field: The field or column that holds the text.
        split: Which part of a Hub dataset or of a folder. In a folder, files named for a split (`test.jsonl`,
            `valid-0001.parquet`, `dev/…`) belong to it, all others to "train". "" for all files of a folder.
        name: How the source is called in reports; by default the location.
        sample_by: What is a document in a .txt file: "document" (the whole file), "paragraph" (set apart by blank
            lines) or "line".
        limit: Read this many documents at most.
        where: Read only records that have one of these values in these fields: `{"source": ["news", "books"]}`.
        part: Read only documents whose hash, as a share of all hashes, lies between these two. (0, 0.05) and (0.05, 1)
            hold out a twentieth: what stands in the text twice is in one part with both. Plain text read as one
            document a file is then cut into documents of 16,384 characters.
    """

    location: str
    weight: float | None = None
    text_field: str = "text"
    split: str = "train"
    name: str = ""
    sample_by: str = "document"
    limit: int | None = None
    where: Mapping[str, Sequence[str]] | None = None
    part: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.weight is not None and not (isinstance(self.weight, (int, float)) and 0 < self.weight < float("inf")):
            raise InputError(f"source {self.location}: weight {self.weight} is not a positive number")
        if self.sample_by not in ("document", "paragraph", "line"):
            raise InputError(
                f"source {self.location}: sample_by {self.sample_by!r} must be document, paragraph or line"
            )
        if self.limit is not None and not (isinstance(self.limit, int) and self.limit > 0):
            raise InputError(f"source {self.location}: limit {self.limit} is not a number of documents, 1 or more")
        values = self.where.values() if isinstance(self.where, Mapping) else [self.where or []]
        if any(isinstance(value, str) or not isinstance(value, Sequence) for value in values):
            raise InputError(f"source {self.location}: where must give each field a list of values, not {self.where!r}")
        try:
            low, high = self.part
            sound = 0 <= low < high <= 1
        except (TypeError, ValueError):
            sound = False
        if not sound:
            raise InputError(f"source {self.location}: part {self.part} is not two shares of its documents (0.05, 1)")
        if not self.name:
            object.__setattr__(self, "name", self.location)

    @property
    def whole(self) -> bool:
        """Whether all documents are read."""
        return tuple(self.part) == (0, 1)  # a recipe has a list

    def takes(self, text: str) -> bool:
        """Whether a document belongs to this part of the source."""
        return self.whole or self.part[0] <= zlib.crc32(text.encode()) / 2**32 < self.part[1]

    @property
    def hub(self) -> tuple[str, str | None, str] | None:
        """Name, configuration and split of a Hub dataset; `None` for files."""
        if not self.location.startswith("hub:"):
            return None
        name, config, split = (self.location[4:].split(":") + ["", ""])[:3]
        return name, config or None, split or self.split or "train"


def parse_source(spec: str | Path | Mapping[str, Any] | Source, text_field: str = "text") -> Source:
    """
    A source from its short form `[NAME=]LOCATION[?FIELD=VALUE,VALUE][#FIELD][@WEIGHT]`, or from a mapping of `Source`'s
    fields.

        data/books                      a folder, weight not given
        data/wiki.jsonl.gz@0.7          7 of 10 tokens, if the other weights sum to 0.3
        mix.jsonl?source=news,books     the records whose `source` is one of the two
        code=src/*.parquet#content@0.3  named "code", the text in the column "content"
        hub:roneneldan/TinyStories::validation

    A string that names an existing file or folder is taken as it stands, whatever characters it has.
    """
    if isinstance(spec, Source):
        return spec
    if isinstance(spec, Mapping):
        known = [field.name for field in fields(Source)]
        if "location" not in spec or not set(spec) <= set(known):
            raise InputError(f"source {dict(spec)}: needs location, may have {', '.join(known[1:])}")
        return Source(**{"text_field": text_field, **spec})
    spec = os.fspath(spec)
    if os.path.exists(spec):
        return Source(spec, text_field=text_field)
    name, location, key, values, field, weight = re.fullmatch(
        r"(?:([\w.-]+)=)?(.*?)(?:\?([\w.-]+)=([^#@/]+))?(?:#([^#@/]+))?(?:@([\d.eE+-]+))?", spec, flags=re.DOTALL
    ).groups()
    try:
        share = None if weight is None else float(weight)
    except ValueError:
        raise InputError(f"source {spec!r}: {weight!r} behind the @ is not a number") from None
    where = {key: values.split(",")} if key else None
    return Source(location, weight=share, text_field=field or text_field, name=name or "", where=where)


def parse_sources(specs: Any, text_field: str = "text") -> list[Source]:
    """Sources from one or several of what `parse_source` takes. Either all of them have a weight, or none has."""
    several = isinstance(specs, Iterable) and not isinstance(specs, (str, Mapping))
    sources = [parse_source(spec, text_field) for spec in (specs if several else [specs])]
    if not sources:
        raise InputError("no source of text given: name a file, a folder or a hub: dataset")
    without = [source.name for source in sources if source.weight is None]
    if without and len(without) < len(sources):
        raise InputError(f"source {without[0]} has no weight but others have: give @WEIGHT to all sources or to none")
    return sources


class TextFile(NamedTuple):
    """A file of text, perhaps inside a zip archive."""

    path: Path
    member: str | None = None

    def __str__(self) -> str:
        return f"{self.path}/{self.member}" if self.member else str(self.path)

    @property
    def suffixes(self) -> tuple[str, str]:
        """The suffix that tells the format, and that of the compression ("" if there is none)."""
        suffixes = Path(self.member or self.path).suffixes[-2:]
        packed = suffixes.pop().lower() if suffixes and suffixes[-1].lower() in DECOMPRESS else ""
        return (suffixes[-1].lower() if suffixes else ""), packed


def list_files(source: Source, kinds: Collection[str] | None = None) -> list[TextFile]:
    """The files of a source, of all kinds or these, sorted by path. Raises `InputError` if there is none."""
    kinds = READERS if kinds is None else kinds
    files = [file for file, of_split in _every_file(source, kinds) if of_split and file.suffixes[0] in kinds]
    if not files:
        which = f"of the {source.split!r} split " if source.split else ""
        raise InputError(f"{source.location}: holds no file {which}whose name ends in {_known_suffixes()}")
    return files


def left_out(source: Source) -> dict[str, list[Path]]:
    """
    By reason, the files that `list_files` passes over, but for hidden ones: those "named for another split" and those
    "of another kind". One in an archive is `archive.zip/member`; of a dataset of the Hub nothing is left out.
    """
    reasons: dict[str, list[Path]] = {}
    for file, of_split in [] if source.hub else _every_file(source, READERS):
        suffix = file.suffixes[0]
        if not of_split and suffix in (*READERS, ".zip"):
            reasons.setdefault("named for another split", []).append(Path(str(file)))
        elif suffix not in READERS:
            reasons.setdefault("of another kind", []).append(Path(str(file)))
    return reasons


def _every_file(source: Source, kinds: Collection[str]) -> Iterator[tuple[TextFile, bool]]:
    """All files of a source but hidden ones, sorted by path, and whether they are of its split."""
    location = find_packaged(os.path.expanduser(source.location))
    in_folder = os.path.isdir(location)
    if in_folder:
        found = sorted(Path(location).rglob("*"))
    elif os.path.isfile(location):
        found = [Path(location)]
    else:
        found = [Path(path) for path in sorted(glob.glob(location, recursive=True))]
    found = [path for path in found if path.is_file()]
    if not (found or in_folder):
        raise InputError(f"{source.location}: no such file, folder or glob; a dataset of the Hub is written hub:NAME")
    for path in found:
        inside = path.relative_to(location) if in_folder else Path()
        if _is_hidden(inside):
            continue
        of_split = not in_folder or _belongs(inside, source.split)  # a file that is named is read whatever it is called
        if path.suffix.lower() == ".zip" and of_split:
            with readable(path), zipfile.ZipFile(path) as archive:
                members = sorted(name for name in archive.namelist() if not name.endswith("/"))
            visible = (name for name in members if not _is_hidden(Path(name)))
            yield from ((TextFile(path, name), _belongs(Path(name), source.split)) for name in visible)
        elif not in_folder and TextFile(path).suffixes[0] not in kinds:
            raise InputError(f"{path}: unknown kind of file; the name must end in {_known_suffixes()}")
        else:
            yield TextFile(path), of_split


_SPLIT_ALIASES = {"valid": "validation", "val": "validation", "dev": "validation", "eval": "test", "training": "train"}


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _belongs(path: Path, split: str) -> bool:
    """Whether a file of a folder is of the split, by its name or a folder's."""
    return not split or (named_split(path) or "train") == _SPLIT_ALIASES.get(split, split)


def named_split(path: Path) -> str | None:
    """The split that a file's name, or a folder's above it, says it is of."""
    for part in reversed(path.parts):
        word = re.match(r"[a-z]*", part.lower()).group()
        rest = part[len(word) :]
        word = _SPLIT_ALIASES.get(word, word)
        if word in ("train", "validation", "test") and (not rest or rest[0] in "-_."):
            return word
    return None


def _known_suffixes() -> str:
    return ", ".join(READERS) + f" (also with {', '.join(DECOMPRESS)}) or .zip"


@contextmanager
def readable(label: object) -> Iterator[None]:
    """Turns what damaged or unreadable files raise into one line."""
    try:
        yield
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise InputError(
            f"{label}: is not UTF-8 text (byte 0x{byte:02x}); convert it, for instance with `iconv -t utf-8`"
        ) from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError) as error:
        # RuntimeError: an encrypted zip
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{label}: cannot be read ({reason}); mend the file or fetch it again") from None


def _zstd(stream: BinaryIO) -> BinaryIO:
    import pyarrow

    return pyarrow.CompressedInputStream(stream, "zstd")


DECOMPRESS: dict[str, Callable[[Any], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _zstd}


@contextmanager
def open_file(file: TextFile) -> Iterator[Any]:
    """The bytes of a file, unpacked. Raises `InputError` if they cannot be read, at first or later."""
    _, packed = file.suffixes
    with ExitStack() as stack, readable(file):
        if file.member is None:
            stream: Any = stack.enter_context(open(file.path, "rb"))
        else:
            stream = stack.enter_context(stack.enter_context(zipfile.ZipFile(file.path)).open(file.member))
        if packed:
            stream = io.BufferedReader(stack.enter_context(DECOMPRESS[packed](stream)), 1 << 20)
        yield stream


def read_file(file: TextFile, source: Source) -> Iterator[str]:
    """The texts of one file. Raises `InputError` with the file and the line or record where it is broken."""
    suffix, _ = file.suffixes
    if source.where and suffix in PLAIN_TEXT:
        raise InputError(f"{file}: plain text has no fields to choose records by {', '.join(source.where)}")
    with open_file(file) as stream:
        if suffix in PLAIN_TEXT:
            longest = MAX_CHARACTERS if source.whole else HELD_OUT_CHARACTERS
            yield from _read_txt(stream, file, source.sample_by, longest)
        else:
            for place, record in READERS[suffix](stream, file, [source.text_field, *(source.where or {})]):
                yield _text_of(record, source, place)


def _text_of(record: Any, source: Source, place: str) -> str:
    """The text of a record; "" for one that the source leaves out."""
    field = source.text_field
    if not isinstance(record, Mapping):
        raise InputError(f"{place}: is a {type(record).__name__}, not an object with a field {field!r}")
    for key, values in (source.where or {}).items():
        if key not in record:
            raise InputError(
                f"{place}: no field {key!r} to choose by; it has {', '.join(map(str, record)) or 'nothing'}"
            )
        if str(record[key]) not in map(str, values):
            return ""
    if field not in record:
        there = ", ".join(map(str, record)) or "nothing"
        raise InputError(f"{place}: no field {field!r}; it has {there}: name the right one as text_field")
    text = record[field]
    if not isinstance(text, str):
        kind = "null" if text is None else f"a {type(text).__name__}"
        raise InputError(f"{place}: field {field!r} is {kind}, not text; mend or drop this record")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{place}: field {field!r} has half of a surrogate pair; mend or drop this record") from None
    return text


def _read_jsonl(stream: BinaryIO, file: TextFile, columns: list[str] | None) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(stream, 1):
        place = f"{file}, line {number}"
        with readable(place):
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        if text and not text.isspace():
            try:
                yield place, json.loads(text.rstrip("\r\n"))  # behind which an error's column would count anew
            except (ValueError, RecursionError) as error:
                fault = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
                raise InputError(f"{place}: broken JSON ({fault}); mend or drop this line") from None


def _read_json(stream: BinaryIO, file: TextFile, columns: list[str] | None) -> Iterator[tuple[str, Any]]:
    """An array of records, parsed one record at a time; or else one record a line, or one over several lines."""
    stream = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(stream)  # type: ignore[type-var]
    start = stream.peek(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    if not start.startswith(b"["):
        if re.match(rb"\{[ \t]*\r?\n", start):
            yield from _read_whole(stream, file)
        else:
            yield from _read_jsonl(stream, file, columns)
        return
    text = io.TextIOWrapper(stream, encoding="utf-8-sig")
    decoder, buffer, at, number = json.JSONDecoder(), text.read(MAX_CHARACTERS).lstrip()[1:], 0, 1
    first, between = re.compile(r"\s*(\])?"), re.compile(r"\s*(?:(\])|,\s*)")
    while not (gap := (first if number == 1 else between).match(buffer, at)) or not gap[1]:
        try:
            if not gap:
                raise ValueError("Expecting ',' or ']' before it")
            record, at = decoder.raw_decode(buffer, gap.end())
        except (ValueError, RecursionError) as error:
            # Either the record goes on beyond what has been read, or it is broken.
            more = text.read(max(MAX_CHARACTERS, len(buffer) - at))
            if not more or len(buffer) - at > 64 * MAX_CHARACTERS:
                fault = getattr(error, "msg", error)
                raise InputError(f"{file}, record {number}: broken JSON ({fault})") from None
            buffer, at = buffer[at:] + more, 0
            continue
        yield f"{file}, record {number}", record
        number += 1
    if buffer[gap.end() :].strip() or text.read(MAX_CHARACTERS).strip():
        raise InputError(f"{file}: broken JSON (text behind the ] that ends {number - 1} records); mend it")


def _read_whole(stream: BinaryIO, file: TextFile) -> Iterator[tuple[str, Any]]:
    """One record, indented over the lines of the file, as SQuAD's own files are when somebody has looked into them."""
    with readable(file):
        text = stream.read().decode("utf-8-sig")
    try:
        yield f"{file}, record 1", json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: broken JSON ({error}); mend it") from None


def _read_csv(stream: BinaryIO, file: TextFile, columns: list[str] | None) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(2**31 - 1)  # the default forbids texts over 128 KiB
    lines = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
    rows = csv.DictReader(lines, delimiter="\t" if file.suffixes[0] == ".tsv" else ",", strict=True)
    begun = 1
    try:
        names = list(rows.fieldnames or [])
        if twice := [name for name in columns or names if name and names.count(name) > 1]:
            raise InputError(f"{file}: has {names.count(twice[0])} columns called {twice[0]!r}; rename all but one")
        begun = rows.line_num + 1
        for row in rows:
            place = f"{file}, line {rows.line_num}"
            if None in row:
                raise InputError(f"{place}: has more cells than the header names; quote cells that hold the separator")
            yield place, row
            begun = rows.line_num + 1
    except csv.Error as error:
        fault = str(error).replace("\t", "\\t")
        raise InputError(
            f"{file}, line {rows.reader.line_num}: cannot be read ({fault}); mend the quotes from line {begun} on"
        ) from None


def _read_parquet(stream: BinaryIO, file: TextFile, columns: list[str] | None) -> Iterator[tuple[str, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(stream)
        names = table.schema_arrow.names
        if not set(columns or ()) <= set(names):
            yield str(file), dict.fromkeys(names)
        numbers = itertools.count(1)
        for batch in table.iter_batches(batch_size=256, columns=columns):
            for number, record in zip(numbers, batch.to_pylist()):
                yield f"{file}, record {number}", record
    except pyarrow.ArrowException as error:
        raise OSError(error) from None


def _read_txt(stream: BinaryIO, file: TextFile, sample_by: str, longest: int = MAX_CHARACTERS) -> Iterator[str]:
    lines = io.TextIOWrapper(stream, encoding="utf-8-sig")
    if sample_by == "line":
        texts = (line.rstrip("\n") for line in lines)
    elif sample_by == "paragraph":
        groups = itertools.groupby(lines, key=str.isspace)
        texts = ("".join(group).rstrip("\n") for blank, group in groups if not blank)
    else:
        texts = _cut_stream(lines, longest)
    for text in texts:
        if "\0" in text:
            raise InputError(f"{file}: is not text (it has zero bytes); leave it out")
        yield text


def _cut_stream(lines: io.TextIOWrapper, longest: int) -> Iterator[str]:
    rest = ""
    while chunk := lines.read(longest):
        *whole, rest = cut_text(rest + chunk, longest)
        yield from whole
    if rest:
        yield rest


def cut_text(text: str, longest: int = MAX_CHARACTERS) -> list[str]:
    """Cuts a text into parts of at most `longest` characters, at line ends, else at spaces, else anywhere."""
    parts, start = [], 0
    while len(text) - start > longest:
        half, full = start + longest // 2, start + longest
        end = text.rfind("\n", half, full) + 1 or text.rfind(" ", half, full) + 1 or full
        parts.append(text[start:end])
        start = end
    return [*parts, text[start:]]


# Each gives places and records of a stream, with these columns at least (None: with all).
READERS: dict[str, Callable[..., Iterator[Any]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    ".txt": _read_txt,
}


class DocumentStream:
    """
    Iterates over the documents of sources, one source after the other, and knows where it is.

    `position()` after a document is a small JSON-able dictionary; a new stream that is given it goes on with the next
    document. Files before the position are not opened, within its file records are skipped.
    """

    def __init__(self, sources: Sequence[Source], position: Mapping[str, Any] | None = None):
        self.sources = sources
        self._at = {"source": 0, "documents": 0, "file": 0, "record": 0, **(position or {})}
        self._hub_state = self._at.pop("hub", None)
        self._hub_dataset: Any = None

    def position(self) -> dict[str, Any]:
        """Where the next document is read from."""
        if self._hub_dataset is None:
            return dict(self._at)
        return {**self._at, "hub": self._hub_dataset.state_dict()}

    def __iter__(self) -> Iterator[str]:
        at = self._at
        any_taken = at["source"] > 0 or at["documents"] > 0
        for source in self.sources[at["source"] :]:
            any_text = False
            for text in self._hub_texts(source) if source.hub else self._file_texts(source):
                if source.limit is not None and at["documents"] >= source.limit:
                    break
                if text and not text.isspace():
                    any_text = True
                    if source.takes(text):
                        at["documents"] += 1
                        any_taken = True
                        yield text
            if not (at["documents"] or any_text):
                fault = f"no record where {dict(source.where)}" if source.where else "every document in it is empty"
                raise InputError(f"{source.location}: holds no text; {fault}")
            self._hub_dataset = None
            at.update(source=at["source"] + 1, documents=0, file=0, record=0)
        if not any_taken:
            share = max(source.part[1] - source.part[0] for source in self.sources)
            raise InputError(
                f"{', '.join(source.location for source in self.sources)}: too few documents for a share of "
                f"{share:.3g}; ask for a larger one, or give a file of its own"
            )

    def _file_texts(self, source: Source) -> Iterator[str]:
        at = self._at
        for file in list_files(source)[at["file"] :]:
            for text in itertools.islice(read_file(file, source), at["record"], None):
                at["record"] += 1
                yield text
            at.update(file=at["file"] + 1, record=0)

    def _hub_texts(self, source: Source) -> Iterator[str]:
        self._hub_dataset = _open_hub(source)
        if self._hub_state is not None:
            self._hub_dataset.load_state_dict(self._hub_state)
            self._hub_state = None
        for number, record in enumerate(self._hub_dataset, 1):
            yield _text_of(record, source, f"{source.location}, record {number}")


def _open_hub(source: Source) -> Any:
    """A Hub dataset as a stream (`datasets.IterableDataset`)."""
    from datasets import load_dataset

    name, config, split = source.hub
    with hub_errors(source):
        return load_dataset(name, config, split=split, streaming=True)


@contextmanager
def hub_errors(source: Source) -> Iterator[None]:
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (OSError, ValueError, DatasetsError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{source.location}: cannot be opened ({reason}); written hub:NAME:CONFIG:SPLIT") from None


def read_documents(sources: Any, text_field: str = "text", limit: int | None = None) -> Iterator[str]:
    """
    The texts of one or several sources, in order, in constant memory. Documents without any letter are left out.

    Args:
        sources: What `parse_source` takes, or a list of these. Weights are not looked at.
        text_field: For sources that do not name their own.
        limit: Stop after this many documents in all.

    Raises:
        InputError: A file or folder is missing, empty, damaged or of an unknown kind; a record has no such field, or
            something other than text in it.
    """
    return itertools.islice(DocumentStream(parse_sources(sources, text_field)), limit)
