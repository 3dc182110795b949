"""
An index of passages by the vectors of an encoder.

An index is a folder: `index.json` says how it was made, `passages/` contains the texts and their positions, and
`vectors.bin` a unit vector for each passage. Both are memory-mapped, so an index may be larger than the memory.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from ...artifacts.open import fingerprint
from ...core.atomic_files import write_atomically
from ...core.errors import InputError
from ...data.cache import default_cache_dir, file_hash, open_arrays, write_arrays
from ...data.forms.reader import FileReport
from ...data.tables import ReadingOptions
from ...evaluate.predict import Predictor
from .passages import INDEX_FILE, Passage, cut_passages, document_name, is_index, iter_documents, list_documents
from .ranking import Hit, WordIndex, fuse_rankings, nearest_vectors
from .text_encoder import embed, embedding_width, open_encoder, read_prompts


PASSAGES, VECTORS = "passages", "vectors.bin"
_PASSAGES_AT_ONCE = 1024  # embedded and written together; a stopped command resumes behind them


def build_index(
    location: str | Sequence[str],
    target: str | Path,
    encoder_path: str,
    passage_length: int = 160,
    overlap: int | None = None,
    text_field: str | None = None,
    options: ReadingOptions | None = None,
    reports: list[FileReport] | None = None,
    trust_remote_code: bool = False,
    **batching: Any,
) -> "Index":
    """
    Cut documents into passages, embed these, and write both. Stopped at any time, the same call goes on with it.

    Args:
        location, text_field, options, reports: what `iter_documents` takes.
        target: folder to write.
        passage_length, overlap: in tokens of the encoder; they overlap by a fifth by default.
        batching: `batch_tokens`, `bf16`.

    Raises:
        InputError: there is no document, a passage is longer than what the encoder takes, or `target` holds anything
            else than the beginning of this very index.
    """
    folder = Path(target)
    encoder = open_encoder(encoder_path, trust_remote_code, **batching)
    prompts = read_prompts(encoder_path)
    special = len(encoder.tokenizer(prompts["passage"])["input_ids"])
    if not 8 <= passage_length <= encoder.max_length - special:
        raise InputError(f"passage length {passage_length}: {encoder_path} accepts 8 to {encoder.max_length - special}")
    overlap = passage_length // 5 if overlap is None else overlap
    if not 0 <= overlap < passage_length:
        raise InputError(f"overlap {overlap} must be at least 0 and less than the passage length, {passage_length}")
    made_from = {
        "documents": _digest(location, text_field, options),
        "bf16": bool(batching.get("bf16")),
        "encoder": fingerprint(encoder.model, encoder.tokenizer),
        "pooling": encoder.pooling,
        "prompts": prompts,
        "passage_length": passage_length,
        "overlap": overlap,
    }
    width = embedding_width(encoder)
    here = os.path.abspath(encoder_path) if os.path.isdir(encoder_path) else encoder_path
    facts = {"made_from": made_from, "location": location, "encoder": here, "width": width}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=0):
            _claim(folder, facts)
            if not (folder / PASSAGES).exists():
                documents = iter_documents(location, text_field, options, reports)
                write_arrays(folder / PASSAGES, _passages(documents, encoder, passage_length, overlap), {})
            _embed_passages(folder, encoder, prompts["passage"], width)
    except Timeout:
        raise InputError(f"{folder}: another process writes this index") from None
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror or error}); mend that or give another folder"
        ) from None
    return Index(folder)


def _digest(locations: str | Sequence[str], text_field: str | None, options: ReadingOptions | None) -> str:
    contents: list[Any] = []
    for location in [locations] if isinstance(locations, str) else locations:
        files = [] if location.startswith("hub:") else list_documents(location)
        paths = dict.fromkeys(file.path for file in files)
        contents += [(document_name(path, location), file_hash(path, default_cache_dir())) for path in paths]
        contents += [location] * (not paths)
    reading = [] if options in (None, ReadingOptions()) else [repr(options)]
    return hashlib.sha256(json.dumps([contents, text_field or "text", *reading]).encode()).hexdigest()


def _claim(folder: Path, facts: dict[str, Any]) -> None:
    """Reserve a folder for this index, or check that it has one of the same documents, encoder and settings."""
    file = folder / INDEX_FILE
    begun = (folder / PASSAGES).exists() or (folder / VECTORS).exists()
    if not file.exists() or not begun and is_index(folder):  # documents with faults may have been corrected
        if any(not path.name.startswith((".", f"{PASSAGES}.")) and path != file for path in folder.iterdir()):
            raise InputError(f"{folder}: contains something other than an index; give a new folder")
        write_atomically(file, json.dumps(facts, indent=1))
        return
    existing = {"bf16": False, **_facts_of(folder)["made_from"]}
    for name, value in facts["made_from"].items():
        if existing.get(name) != value:
            change = f" ({existing.get(name)}, now {value})" if isinstance(value, int) else ""
            which = f"other {name}" if name in ("documents", "prompts") else f"another {name.replace('_', ' ')}"
            raise InputError(f"{folder}: holds an index made with {which}{change}; delete it or give a new folder")


def _facts_of(folder: Path) -> dict[str, Any]:
    """Read `index.json`. Raises `InputError` if it is damaged."""
    file = folder / INDEX_FILE
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        facts["made_from"]["encoder"], facts["made_from"]["prompts"]["query"], facts["encoder"], facts["width"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: is damaged ({error!r}); delete the folder and index again") from error
    return facts


def _passages(
    documents: Iterable[tuple[str, str]], encoder: Predictor, length: int, overlap: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yield arrays for `write_arrays`: texts and names as bytes with their lengths, and positions of passages."""
    count = 0
    for number, (name, text) in enumerate(tqdm(documents, "cut", unit=" documents", disable=None)):
        spans = cut_passages(text, encoder.tokenizer, length, overlap)
        texts = [text[start:end].encode() for start, end in spans]
        count += len(spans)
        yield {
            "texts": np.frombuffer(b"".join(texts), np.uint8),
            "text_lengths": np.array([len(passage) for passage in texts], np.int64),
            "places": np.array([(number, start, end) for start, end in spans], np.int64).reshape(-1),
            "names": np.frombuffer(name.encode(), np.uint8),
            "name_lengths": np.array([len(name.encode())], np.int64),
        }
    if not count:
        raise InputError("the documents contain no text; every one of them is empty")


def _embed_passages(folder: Path, encoder: Predictor, prompt: str, width: int) -> None:
    """Write `vectors.bin`, behind the vectors that exist; within a chunk, passages are batched by length."""
    if (folder / VECTORS).exists():
        return
    texts = _Strings(open_arrays(folder / PASSAGES)[0], "texts", "text_lengths")
    partial = folder / f".{VECTORS}"
    row = 4 * width
    with open(partial, "ab") as file, tqdm(total=len(texts), desc="embed", unit=" passages", disable=None) as bar:
        # A chunk that was written in part is embedded again, so that batches are those of an uninterrupted command.
        done = file.tell() // (row * _PASSAGES_AT_ONCE) * _PASSAGES_AT_ONCE
        file.truncate(done * row)
        bar.update(done)
        for start in range(done, len(texts), _PASSAGES_AT_ONCE):
            chunk = [texts[number] for number in range(start, min(start + _PASSAGES_AT_ONCE, len(texts)))]
            embed(encoder, chunk, prompt).tofile(file)
            file.flush()
            os.fsync(file.fileno())
            bar.update(len(chunk))
    os.replace(partial, folder / VECTORS)


class _Strings(Sequence[str]):
    """Texts concatenated in one array of bytes."""

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
        facts: content of `index.json`.
        vectors: unit vectors (passages, width), memory-mapped.

    Raises:
        InputError: there is no index, or it is damaged or not finished.
    """

    def __init__(self, folder: str | Path):
        folder = Path(folder)
        if not (folder / INDEX_FILE).is_file():
            raise InputError(f"{folder}: is not an index; `hf-tfm index` creates one")
        self.facts = _facts_of(folder)
        if not (folder / VECTORS).is_file():
            raise InputError(f"{folder}: is not finished; the same `hf-tfm index` command resumes it")
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
        """The number of each passage's document (passages,), in ascending order."""
        return self._places[:, 0]

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, number: int) -> Passage:  # type: ignore[override]  # no slices
        document, start, end = self._places[number].tolist()
        return Passage(self._texts[number], document, self._names[document], start, end)

    def open_encoder(self, path: str | None = None, trust_remote_code: bool = False, **batching: Any) -> Predictor:
        """Open the encoder of the vectors, from `path` if it has moved. Raises `InputError` for another encoder."""
        location = path or self.facts["encoder"]
        try:
            encoder = open_encoder(location, trust_remote_code, **batching)
        except InputError as error:
            if path:
                raise
            raise InputError(f"{error} (the encoder of the index was there: give --encoder if it has moved)") from None
        if fingerprint(encoder.model, encoder.tokenizer) != self.facts["made_from"]["encoder"]:
            raise InputError(f"{location}: is not the encoder of this index; give that one or index again")
        return encoder

    def search(self, encoder: Predictor, questions: Sequence[str], k: int, by: str = "encoder") -> list[list[Hit]]:
        """
        Return the `k` passages that match each question best, the best first.

        Args:
            by: `encoder` (the cosine of the vectors), `words` (BM25, which reads all passages into memory), or `both`
                (the two rankings fused).
        """
        if by == "words":
            return WordIndex([passage.text for passage in self]).search(questions, k)
        if by == "both":  # a passage far down in one ranking may be the first of the other
            rankings = (self.search(encoder, questions, max(k, 100), way) for way in ("encoder", "words"))
            return [fuse_rankings(*pair, k=k) for pair in zip(*rankings)]
        queries = embed(encoder, questions, self.facts["made_from"]["prompts"]["query"])
        return nearest_vectors(self.vectors, queries, k)
