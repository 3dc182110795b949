"""
Passages of documents, indexed by what they mean to an encoder.

An index is a folder: `index.json` says what it was made from, `passages/` holds the texts and where they stand, and
`vectors.bin` a unit vector for each. Both are memory-mapped, so an index may be larger than the memory.
"""

import glob
import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from ...artifacts.open import auto_class_of, fingerprint, open_model
from ...core.errors import InputError
from ...core.files import write_atomically
from ...core.inference import is_bidirectional
from ...core.limits import longest_input
from ...data.cache import default_cache_dir, file_hash, open_arrays, write_arrays
from ...data.files import PLAIN_TEXT, READABLE, DataFile, cut_text, list_files, read_plain_text
from ...data.records import Records, read_record_file
from ...data.sources import read_documents
from ...data.text import sentence_ends
from ...evaluate.predict import Predictor, open_predictor
from .search import BM25, Hit, fuse, nearest


INDEX_FILE, PASSAGES, VECTORS = "index.json", "passages", "vectors.bin"
_CHUNK = 1024  # passages that are embedded and written at one time
_KINDS = frozenset({*READABLE, *PLAIN_TEXT})


class Passage(NamedTuple):
    """
    A piece of a document.

    Attributes:
        document: its number.
        name: of the document, for people: its file, and the line or record in it.
        start, end: where the text stands in the document, in characters.
    """

    text: str
    document: int
    name: str
    start: int
    end: int


def iter_documents(location: str, text_field: str = "text") -> Iterator[tuple[str, str]]:
    """
    Name and text of each document of a file, a folder or .zip (all of it, whatever split the names speak of), a glob or
    a `hub:` dataset. Plain text and Markdown files are one document each; blank ones are left out, and so are folders
    that are indexes. Raises `InputError` as `read_records` does.
    """
    if location.startswith("hub:"):
        for number, text in enumerate(read_documents(location, text_field), 1):
            yield f"{location}, record {number}", text
        return
    for file in _files(location):
        several: Iterable[tuple[str, str]]
        if file.suffixes[0] in PLAIN_TEXT:
            several = [(str(file), "".join(read_plain_text(file)))]
        else:
            several = ((place, _text(record, place, text_field)) for place, record in read_record_file(file))
        for place, text in several:
            if text.strip():
                yield place.replace(str(file.path), _name(file.path, location), 1), text


def _files(location: str) -> list[DataFile]:
    files = list_files(location, "", _KINDS)
    indexes = _indexes(file.path for file in files)
    files = [file for file in files if indexes.isdisjoint(file.path.parents)]
    if not files:
        raise InputError(f"{location}: holds no documents, only an index of some")
    return files


def _indexes(paths: Iterable[Path]) -> set[Path]:
    """Those of the folders above these files that are indexes."""
    return {folder for folder in {parent for path in paths for parent in path.parents} if _is_index(folder)}


def _is_index(folder: Path) -> bool:
    file = folder / INDEX_FILE
    return file.is_file() and '"made_from"' in file.read_text(encoding="utf-8", errors="replace")


def other_kinds(location: str) -> Counter[str]:
    """How many files of a folder are not read, by what their names end in; hidden ones and indexes do not count."""
    if not os.path.isdir(location):
        return Counter()
    inside = [path for path in Path(location).rglob("*") if path.is_file() and path.suffix.lower() != ".zip"]
    inside = [path for path in inside if DataFile(path).suffixes[0] not in _KINDS]
    inside = [path for path in inside if not any(part.startswith(".") for part in path.relative_to(location).parts)]
    indexes = _indexes(inside)
    return Counter(path.suffix or path.name for path in inside if indexes.isdisjoint(path.parents))


def _text(record: dict[str, Any], place: str, field: str) -> str:
    if isinstance(text := record.get(field), str) and not text.strip():
        return ""
    return Records([record], [place], place).texts(field, "text-field")[0]


def _name(path: Path, location: str) -> str:
    """A file's name below the folder that was given, or the fixed part of a glob: the same wherever these are."""
    base = Path(os.path.expanduser(location))
    if not base.exists():
        base = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), base.parts))
    return str(path.relative_to(base)) if base.is_dir() else path.name


def cut_passages(text: str, tokenizer: Any, length: int, overlap: int = 0) -> list[tuple[int, int]]:
    """
    Where passages begin and end in a text, in characters: whole sentences as long as these fit, and at most `length`
    tokens. A passage begins with the last sentences of the one before if these have at most `overlap` tokens.
    """
    spans = []
    base = 0
    for part in cut_text(text):
        encoded = tokenizer(
            part, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        # Every token counts, also one of blanks alone, which some tokenizers give no place of its own.
        tokens = np.maximum.accumulate(np.array(encoded["offset_mapping"], int).reshape(-1, 2))
        # A token of a byte-level tokenizer begins with the blank in front of its word: it counts by its end.
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
            # As far back as the overlap goes, and as long as the piece behind still fits: else nothing new is in it.
            while (
                following - 1 > first
                and pieces[last][1] - pieces[following - 1][0] <= overlap
                and pieces[last + 1][1] - pieces[following - 1][0] <= length
            ):
                following -= 1
            first = following
        base += len(part)
    return spans


def open_encoder(path: str, trust_remote_code: bool = False, **batching: Any) -> Predictor:
    """
    An encoder of texts, pooled as its folder says; without a word on it the mean, or of a causal model the last token.

    Args:
        path: folder or Hub name of any model, a language model included.
        batching: `batch_tokens`, `bf16`.
    """
    if auto_class_of(path, trust_remote_code) == "AutoModel":
        encoder = open_predictor(path, trust_remote_code=trust_remote_code)
    else:
        model, tokenizer = open_model(path, "AutoModel", trust_remote_code=trust_remote_code)
        if torch.accelerator.is_available():
            model = model.to(torch.accelerator.current_accelerator())
        encoder = Predictor(model, tokenizer, "AutoModel", pooling="mean" if is_bidirectional(model) else "last")
        encoder.max_length = min(tokenizer.model_max_length, longest_input(model.config, 512), 512)
    return replace(encoder, normalize=True, batching=batching)


def embed(encoder: Predictor, texts: Sequence[str], prompt: str = "") -> np.ndarray:
    """Unit vectors `(texts, width)` in fp32; `prompt` is put in front of each text."""
    records = Records(({"text": prompt + text} for text in texts), map(str, range(len(texts))), "texts")
    return np.array([output["embedding"] for output in encoder(records)], np.float32)


def prompts_of(path: str) -> dict[str, str]:
    """What an encoder was trained to find in front of a `query` and a `passage`, by sentence-transformers' file."""
    file = Path(path) / "config_sentence_transformers.json"
    told = (json.loads(file.read_text(encoding="utf-8")).get("prompts") or {}) if file.is_file() else {}
    names = {"query": ("query",), "passage": ("passage", "document")}
    return {kind: next((told[name] for name in several if told.get(name)), "") for kind, several in names.items()}


def build_index(
    location: str,
    target: str | Path,
    encoder_path: str,
    passage_length: int = 160,
    overlap: int | None = None,
    text_field: str = "text",
    trust_remote_code: bool = False,
    **batching: Any,
) -> "Index":
    """
    Cut documents into passages, embed these, and write both. Stopped at any time, the same call goes on with it.

    Args:
        location: what `iter_documents` takes.
        target: folder to write.
        passage_length, overlap: in tokens of the encoder; they overlap by a fifth by default.
        batching: `batch_tokens`, `bf16`.

    Raises:
        InputError: there is no document, a passage is longer than what the encoder takes, or `target` holds anything
            else than the beginning of this very index.
    """
    folder = Path(target)
    encoder = open_encoder(encoder_path, trust_remote_code, **batching)
    prompts = prompts_of(encoder_path)
    special = len(encoder.tokenizer(prompts["passage"])["input_ids"])
    if not 8 <= passage_length <= encoder.max_length - special:
        raise InputError(f"passage length {passage_length}: {encoder_path} takes 8 to {encoder.max_length - special}")
    overlap = passage_length // 5 if overlap is None else overlap
    if not 0 <= overlap < passage_length:
        raise InputError(f"overlap {overlap} must be at least 0 and less than the passage length, {passage_length}")
    made_from = {
        "documents": _digest(location, text_field),
        "bf16": bool(batching.get("bf16")),
        "encoder": fingerprint(encoder.model, encoder.tokenizer),
        "pooling": encoder.pooling,
        "prompts": prompts,
        "passage_length": passage_length,
        "overlap": overlap,
    }
    width = _width(encoder)
    here = os.path.abspath(encoder_path) if os.path.isdir(encoder_path) else encoder_path
    facts = {"made_from": made_from, "location": location, "encoder": here, "width": width}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=0):
            _claim(folder, facts)
            if not (folder / PASSAGES).exists():
                write_arrays(folder / PASSAGES, _passages(location, text_field, encoder, passage_length, overlap), {})
            _embed_passages(folder, encoder, prompts["passage"], width)
    except Timeout:
        raise InputError(f"{folder}: another process writes this index") from None
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror or error}); mend that or give another folder"
        ) from None
    return Index(folder)


def _digest(location: str, text_field: str) -> str:
    files = [] if location.startswith("hub:") else _files(location)
    paths = dict.fromkeys(file.path for file in files)
    contents = [(_name(path, location), file_hash(path, default_cache_dir())) for path in paths]
    return hashlib.sha256(json.dumps([contents or location, text_field]).encode()).hexdigest()


def _width(encoder: Predictor) -> int:
    return len(encoder(Records([{"text": "a"}], ["a text"], "a text"))[0]["embedding"])


def _claim(folder: Path, facts: dict[str, Any]) -> None:
    """Make a folder this index's own, or see that it is."""
    file = folder / INDEX_FILE
    begun = (folder / PASSAGES).exists() or (folder / VECTORS).exists()
    if not file.exists() or not begun and _is_index(folder):  # what was wrong with the documents may be mended by now
        if any(not path.name.startswith((".", f"{PASSAGES}.")) and path != file for path in folder.iterdir()):
            raise InputError(f"{folder}: holds something else than an index; give a new folder")
        write_atomically(file, json.dumps(facts, indent=1))
        return
    before = {"bf16": False, **_facts_of(folder)["made_from"]}
    for name, value in facts["made_from"].items():
        if before.get(name) != value:
            told = f" ({before.get(name)}, now {value})" if isinstance(value, int) else ""
            which = f"other {name}" if name in ("documents", "prompts") else f"another {name.replace('_', ' ')}"
            raise InputError(f"{folder}: holds an index made with {which}{told}; delete it or give a new folder")


def _facts_of(folder: Path) -> dict[str, Any]:
    """What `index.json` says. Raises `InputError` if it is damaged."""
    file = folder / INDEX_FILE
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        facts["made_from"]["encoder"], facts["made_from"]["prompts"]["query"], facts["encoder"], facts["width"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: is damaged ({error!r}); delete the folder and index again") from error
    return facts


def _passages(
    location: str, text_field: str, encoder: Predictor, length: int, overlap: int
) -> Iterator[dict[str, np.ndarray]]:
    """What `write_arrays` writes: texts and names as bytes with their lengths, and where each passage stands."""
    count = 0
    for number, (name, text) in enumerate(
        tqdm(iter_documents(location, text_field), "cut", unit=" documents", disable=None)
    ):
        spans = cut_passages(text, encoder.tokenizer, length, overlap)
        texts = [text[start:end].encode() for start, end in spans]
        count += len(spans)
        yield {
            "texts": np.frombuffer(b"".join(texts), np.uint8),
            "text_lengths": np.array([len(one) for one in texts], np.int64),
            "places": np.array([(number, start, end) for start, end in spans], np.int64).reshape(-1),
            "names": np.frombuffer(name.encode(), np.uint8),
            "name_lengths": np.array([len(name.encode())], np.int64),
        }
    if not count:
        raise InputError(f"{location}: holds no text; every document in it is empty")


def _embed_passages(folder: Path, encoder: Predictor, prompt: str, width: int) -> None:
    """Write `vectors.bin`, behind what is there of it; within a chunk, passages of similar length go together."""
    if (folder / VECTORS).exists():
        return
    texts = _Strings(open_arrays(folder / PASSAGES)[0], "texts", "text_lengths")
    partial = folder / f".{VECTORS}"
    row = 4 * width
    with open(partial, "ab") as file, tqdm(total=len(texts), desc="embed", unit=" passages", disable=None) as bar:
        # A chunk that was written in part is embedded again as a whole: so chunks are the same as without a stop.
        done = file.tell() // (row * _CHUNK) * _CHUNK
        file.truncate(done * row)
        bar.update(done)
        for start in range(done, len(texts), _CHUNK):
            several = [texts[number] for number in range(start, min(start + _CHUNK, len(texts)))]
            embed(encoder, several, prompt).tofile(file)
            file.flush()
            os.fsync(file.fileno())
            bar.update(len(several))
    os.replace(partial, folder / VECTORS)


class _Strings(Sequence[str]):
    """Texts back to back in one array of bytes."""

    def __init__(self, arrays: dict[str, np.ndarray], name: str, lengths: str):
        self.bytes = arrays[name]
        self.ends = np.cumsum(arrays[lengths])

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> str:  # type: ignore[override]  # no slices
        start = self.ends[number - 1] if number else 0
        return self.bytes[start : self.ends[number]].tobytes().decode()


class Index(Sequence[Passage]):
    """
    An index on disk: a sequence of passages that can be searched.

    Attributes:
        facts: what `index.json` says.
        vectors: `(passages, width)`, memory-mapped, of length 1.

    Raises:
        InputError: there is no index, or it is not finished.
    """

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        if not (folder / INDEX_FILE).is_file():
            raise InputError(f"{folder}: is no index; `hf-tfm index` makes one")
        self.facts = _facts_of(folder)
        if not (folder / VECTORS).is_file():
            raise InputError(f"{folder}: is not finished; the same `hf-tfm index` goes on with it")
        try:
            arrays, _ = open_arrays(folder / PASSAGES)
        except InputError as error:
            raise InputError(f"{folder}: {PASSAGES} is damaged ({error}): delete the folder and index again") from None
        self._texts = _Strings(arrays, "texts", "text_lengths")
        self._names = _Strings(arrays, "names", "name_lengths")
        self._places = arrays["places"].reshape(-1, 3)
        shape = (len(self._texts), self.facts["width"])
        if (folder / VECTORS).stat().st_size != 4 * shape[0] * shape[1]:
            raise InputError(f"{folder}: {VECTORS} is damaged; delete the folder and index again")
        self.vectors = np.asarray(np.memmap(folder / VECTORS, np.float32, "r", shape=shape))

    @property
    def documents(self) -> np.ndarray:
        """The number of each passage's document `(passages,)`, ascending."""
        return self._places[:, 0]

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, number: int) -> Passage:  # type: ignore[override]  # no slices
        document, start, end = self._places[number].tolist()
        return Passage(self._texts[number], document, self._names[document], start, end)

    def open_encoder(self, path: str | None = None, trust_remote_code: bool = False, **batching: Any) -> Predictor:
        """The encoder that made the vectors, from `path` if it has moved. Raises `InputError` for another one."""
        given, path = path, path or self.facts["encoder"]
        try:
            encoder = open_encoder(path, trust_remote_code, **batching)
        except InputError as error:
            if given:
                raise
            raise InputError(f"{error} (the index's encoder was there: give --encoder if it has moved)") from None
        if fingerprint(encoder.model, encoder.tokenizer) != self.facts["made_from"]["encoder"]:
            raise InputError(f"{path}: is not the encoder that this index was made with; give that one or index again")
        return encoder

    def search(self, encoder: Predictor, questions: Sequence[str], k: int, by: str = "encoder") -> list[list[Hit]]:
        """
        The `k` passages that go best with each question, the best first.

        Args:
            by: `encoder` (the cosine of their vectors), `words` (BM25, which reads all passages into memory), or `both`
                rankings made one.
        """
        if by == "words":
            return BM25([passage.text for passage in self]).search(questions, k)
        if by == "both":  # what is far down in one ranking may be first in the other
            several = (self.search(encoder, questions, max(k, 100), way) for way in ("encoder", "words"))
            return [fuse(*pair, k=k) for pair in zip(*several)]
        queries = embed(encoder, questions, self.facts["made_from"]["prompts"]["query"])
        return nearest(self.vectors, queries, k)
