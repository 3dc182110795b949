"""
Tokenises documents, into a store on disk or a stream of windows.

    sources ──read_documents──▶ texts ──TokenStore.build──▶ memory-mapped tokens ──packing.py──▶ batches
                                  └────TokenStream────────▶ windows of tokens ───────┘

A `TokenStore` is tokenised once and kept on disk, so that only the first run pays for it. A `TokenStream` is for text
that is too large for the disk: it is tokenised window by window while training reads it. Neither ever holds more than a
window of text in memory.
"""

import itertools
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast

from ..artifacts.tokenizer_files import tokenizer_fingerprint
from ..core.errors import InputError
from .cache import default_cache_dir, digest, file_hash, memo_path, open_arrays, write_arrays, write_memo
from .forms.reader import FileReport
from .plain_text import cut_text
from .sources import DocumentStream, Source, explain_hub, parse_sources


# Part of every cache key: raise it when the same text and tokenizer would give different tokens or a different layout.
_LAYOUT = 1


def document_ends(tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Returns the ids before and after a document: bos and eos; for tokenizers without these, cls and sep."""
    begin, end = _first_of(tokenizer, "bos", "cls"), _first_of(tokenizer, "eos", "sep")
    if end is None:
        raise InputError("the tokenizer has neither an eos nor a sep token to end documents; set tokenizer.eos_token")
    return ([] if begin is None else [begin]), [end]


def piece_ends(tokenizer: PreTrainedTokenizerFast) -> tuple[int, int]:
    """Returns the ids before and after a piece of text: cls and sep; for tokenizers without these, bos and eos."""
    begin, end = _first_of(tokenizer, "cls", "bos"), _first_of(tokenizer, "sep", "eos")
    if begin is None:
        raise InputError("the tokenizer has neither a bos nor a cls token to begin pieces; use wrap='document'")
    if end is None:
        raise InputError("the tokenizer has neither an eos nor a sep token to end pieces; set tokenizer.sep_token")
    return begin, end


def boundary_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Returns the ids that begin or end a text and are no text, as both functions above return them."""
    ids = (getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "cls", "sep"))
    return sorted({number for number in ids if number is not None})


def _first_of(tokenizer: PreTrainedTokenizerFast, *names: str) -> int | None:
    ids = (getattr(tokenizer, f"{name}_token_id") for name in names)
    return next((number for number in ids if number is not None), None)


def encode_documents(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerFast, *, wrap: bool = True, num_proc: int | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """
    Tokenises documents in parallel; the result does not depend on `num_proc`.

    The workers are threads, because the Rust tokenizer releases Python's lock: nothing has to be forked (unsafe once
    torch or CUDA have started) or pickled. Python's share of the work is 5 %, which is enough for some 20 cores.

    Args:
        texts: Documents. Special tokens in them are encoded as ordinary characters.
        wrap: Put bos before and eos after each document (those of them that the tokenizer has).
        num_proc: Number of workers; by default the cores that this process may use.

    Yields:
        For some documents at a time: `tokens` (uint16 if the vocabulary allows, else uint32), and each document's
        `lengths` in tokens and `byte_counts` in bytes of UTF-8 (int64).
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise InputError(f"{type(tokenizer).__name__} is not a fast tokenizer (no tokenizer.json); convert it first")
    # A copy: these settings must hold for all threads at once, and must not change the caller's tokenizer.
    backend = Tokenizer.from_str(backend.to_str())
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = True
    begin, end = document_ends(tokenizer) if wrap else ([], [])
    dtype = np.uint16 if max(backend.get_vocab().values()) < 1 << 16 else np.uint32

    def encode(texts: list[str]) -> dict[str, np.ndarray]:
        parts = [cut_text(text) for text in texts]
        encodings = iter(backend.encode_batch_fast(list(itertools.chain(*parts)), add_special_tokens=False))
        documents = [[begin, *(next(encodings).ids for _ in text), end] for text in parts]
        lengths = [sum(map(len, document)) for document in documents]
        ids = itertools.chain.from_iterable(itertools.chain.from_iterable(documents))
        return {
            "tokens": np.fromiter(ids, dtype, sum(lengths)),
            "lengths": np.array(lengths, np.int64),
            "byte_counts": np.array([len(text.encode()) for text in texts], np.int64),
        }

    num_proc = num_proc or _num_cores()
    with _serial_tokenizers(), ThreadPoolExecutor(num_proc) as pool:
        pending: deque[Future[dict[str, np.ndarray]]] = deque()
        for group in _groups(texts, 1 << 19):
            pending.append(pool.submit(encode, group))
            if len(pending) > 2 * num_proc:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _serial_tokenizers() -> Iterator[None]:
    """Lets each call of a tokenizer use one thread, because the calls run in parallel."""
    previous = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if previous is None:
            os.environ.pop("TOKENIZERS_PARALLELISM", None)
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = previous


def _groups(texts: Iterable[str], characters: int) -> Iterator[list[str]]:
    """Yields lists of consecutive documents that have at least so many characters."""
    group, size = [], 0
    for text in texts:
        group.append(text)
        size += len(text)
        if size >= characters:
            yield group
            group, size = [], 0
    if group:
        yield group


class TokenStore:
    """
    Documents as token ids, back to back in one array.

    Args:
        tokens: All ids, (num_tokens,).
        offsets: Starts of the documents, (num_documents + 1,), int64; the last one is `num_tokens`.
        byte_counts: Length of each document's text in bytes of UTF-8, (num_documents,), int64.
        meta: `num_bytes`, the sum of `byte_counts`, and `max_token_id`; computed if missing.
        folder: The folder of the memory-mapped arrays; `None` if they are in memory.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        offsets: np.ndarray,
        byte_counts: np.ndarray,
        meta: Mapping[str, Any] | None = None,
        folder: Path | None = None,
    ):
        self.tokens, self.offsets, self.byte_counts, self.folder = tokens, offsets, byte_counts, folder
        self.meta = meta or {"num_bytes": int(byte_counts.sum()), "max_token_id": int(tokens.max())}

    @classmethod
    def build(
        cls,
        sources: Any,
        tokenizer: PreTrainedTokenizerFast,
        *,
        wrap: bool = True,
        num_proc: int | None = None,
        cache_dir: str | Path | None = None,
        progress: bool = False,
    ) -> "TokenStore":
        """
        Tokenises sources, or opens the store of an earlier run.

        The cache is keyed by the contents of the files (not their names or dates), by the tokenizer, and by the other
        arguments that decide the tokens. See `read_documents` and `encode_documents` for these and for the errors.

        Args:
            cache_dir: Folder of the stores; by default `default_cache_dir()`.
            progress: Show a progress bar, in bytes of text.
        """
        sources = parse_sources(sources)
        cache_dir = Path(cache_dir or default_cache_dir())
        key = {
            "layout": _LAYOUT,
            "tokenizer": tokenizer_fingerprint(tokenizer),
            "wrap": document_ends(tokenizer) if wrap else None,
            "sources": [_content(source, cache_dir, num_proc or _num_cores()) for source in sources],
        }
        folder = cache_dir / "tokens" / digest(key)
        if not folder.exists():
            meta = {**key, "names": [source.name for source in sources]}
            stream = DocumentStream(sources)
            chunks = encode_documents(stream, tokenizer, wrap=wrap, num_proc=num_proc)
            write_arrays(folder, _as_store(chunks, meta, progress, stream.reports), meta)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: str | Path) -> "TokenStore":
        """Opens a store on disk without reading its tokens."""
        arrays, meta = open_arrays(Path(folder))
        return cls(**arrays, meta=meta, folder=Path(folder))

    @classmethod
    def from_texts(cls, texts: Iterable[str], tokenizer: PreTrainedTokenizerFast, **kwargs: Any) -> "TokenStore":
        """Tokenises texts into memory; `kwargs` as for `encode_documents`."""
        meta: dict[str, Any] = {}
        chunks = list(_as_store(encode_documents(texts, tokenizer, **kwargs), meta))
        arrays: dict[str, Any] = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
        return cls(**arrays, meta=meta)

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.byte_counts)

    def __getitem__(self, index: int) -> np.ndarray:
        """Returns the ids of one document, (length,)."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process maps the same files instead of receiving a copy.
        if self.folder is not None:
            return TokenStore.open, (self.folder,)
        return TokenStore, (self.tokens, self.offsets, self.byte_counts, self.meta)

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def num_bytes(self) -> int:
        return self.meta["num_bytes"]

    def check_vocab(self, vocab_size: int) -> None:
        """Raises `InputError` if the store has ids beyond a model's vocabulary."""
        _check_vocab("text", self.meta["max_token_id"], vocab_size)


def _check_vocab(what: str, max_token_id: int, vocab_size: int) -> None:
    if max_token_id >= vocab_size:
        raise InputError(
            f"the {what} has token id {max_token_id}, the model only {vocab_size} embeddings: this is the tokenizer of "
            "another model; take the model's own, or set the model's vocab_size by the tokenizer"
        )


def _as_store(
    chunks: Iterable[Mapping[str, np.ndarray]],
    meta: dict[str, Any],
    progress: bool = False,
    reports: Sequence[FileReport] = (),
) -> Iterator[dict[str, np.ndarray]]:
    """Turns lengths into offsets, and gathers the statistics that nobody should have to read all tokens for."""
    num_tokens, meta["num_bytes"], meta["max_token_id"] = 0, 0, -1
    with tqdm(unit="B", unit_scale=True, desc="Tokenizing", disable=not progress) as bar:
        for number, chunk in enumerate(chunks):
            ends = num_tokens + np.cumsum(chunk["lengths"])
            offsets = ends if number else np.concatenate([[0], ends])
            yield {"tokens": chunk["tokens"], "offsets": offsets, "byte_counts": chunk["byte_counts"]}
            num_tokens, num_bytes = int(ends[-1]), int(chunk["byte_counts"].sum())
            meta["num_bytes"] += num_bytes
            meta["max_token_id"] = max(meta["max_token_id"], int(chunk["tokens"].max(initial=0)))
            bar.update(num_bytes)
    meta["read"] = [line for report in reports for line in report.lines()]
    if not num_tokens:
        raise InputError("the texts have no tokens: they are empty, or the tokenizer drops all of their characters")


def _content(source: Source, cache_dir: Path, num_proc: int, streaming: bool = False) -> dict[str, Any]:
    """Returns everything that decides the documents of a source."""
    if source.hub:
        contents = [_hub_version(source, cache_dir), *source.hub]
    elif streaming:
        contents = _file_states(source)
    else:
        files = source.list_files()
        paths = list(dict.fromkeys(file.path for file in files))
        with ThreadPoolExecutor(num_proc) as pool:
            hashes = dict(zip(paths, pool.map(lambda path: file_hash(path, cache_dir), paths)))
        contents = [[hashes[file.path], file.member, *file.suffixes] for file in files]
    field = source.text_field or "text"
    decides = {"contents": contents, "field": field, "sample_by": source.text_unit, "limit": None}
    # Keys stay as in older versions, whose stores are found: a limit that exists no more, and settings only if given.
    settings = {
        "where": source.where,
        "part": None if source.is_whole else source.part,
        "strip_gutenberg": source.strip_gutenberg,
        # Version 0.1 read the quotes and separators of some of these files in another way.
        "reader": not source.hub and any(file.suffixes[0] in (".csv", ".tsv") for file in source.list_files()),
        **vars(source.options),
    }
    return {**decides, **{name: value for name, value in settings.items() if value}}


def _file_states(source: Source) -> list[list[Any]]:
    """Returns name, size and time of each file, not its contents, which a stream must not read in advance."""
    stats = ((file, file.path.stat()) for file in source.list_files())
    return [[str(file), stat.st_size, stat.st_mtime_ns] for file, stat in stats]


def contents_digest(sources: Any, cache_dir: Path, streaming: bool = False) -> str:
    """
    Returns a digest of the contents of sources' files; of names, sizes and times if they are streamed; of the version
    of a dataset.
    """
    parsed = parse_sources(sources)
    return digest([_content(source, cache_dir, _num_cores(), streaming) for source in parsed])


def _hub_version(source: Source, cache_dir: Path) -> str:
    """Returns the commit of a dataset (or a hash of its files); without a network, the last one known."""
    from datasets import load_dataset_builder

    assert source.hub is not None
    name, config, _ = source.hub
    memo = memo_path(cache_dir, f"hub:{name}:{config}")
    try:
        with explain_hub(source):
            version = load_dataset_builder(name, config).hash
    except InputError:
        if not memo.exists():
            raise
        return json.loads(memo.read_text())["version"]
    write_memo(memo, {"name": name, "config": config, "version": version})
    return version


class TokenStream:
    """
    Documents that are tokenised while they are read, window by window, in constant memory and endlessly.

    A window has the tokens of consecutive documents of `window_characters`. A position always gives the same window, so
    a list of positions is enough to return to any window.

    Args:
        sources, tokenizer, wrap, num_proc: As for `TokenStore.build`. The sources follow one another.
        window_characters: Size of a window; batches are shuffled within one.
        cache_dir: Folder of the notes on windows' positions; by default `default_cache_dir()`.
    """

    def __init__(
        self,
        sources: Any,
        tokenizer: PreTrainedTokenizerFast,
        *,
        wrap: bool = True,
        num_proc: int | None = 2,
        window_characters: int = 1 << 23,
        cache_dir: str | Path | None = None,
    ):
        self.sources = parse_sources(sources)
        self.tokenizer, self.wrap, self.num_proc = tokenizer, wrap, num_proc
        self.window_characters = window_characters
        self.cache_dir = Path(cache_dir or default_cache_dir())
        self._next: tuple[Mapping[str, Any] | None, DocumentStream, Iterator[str]] | None = None

    def key(self) -> str:
        """Returns a digest of everything that decides the windows."""
        parts = [_LAYOUT, tokenizer_fingerprint(self.tokenizer), self.wrap, self.window_characters]
        for source in self.sources:
            field = source.text_field or "text"
            parts.append([field, source.text_unit, None, source.hub, source.where, source.part])
            if reading := {name: value for name, value in vars(source.options).items() if value}:
                parts.append(reading)
            if source.hub:
                parts.append(_hub_version(source, self.cache_dir))
            else:
                parts += _file_states(source)
        return digest(parts)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_next": None}

    def close(self) -> None:
        """Closes the open files. The next window is found by its position."""
        self._next = None

    def check_vocab(self, vocab_size: int) -> None:
        """Raises `InputError` if the tokenizer has ids beyond a model's vocabulary."""
        _check_vocab("tokenizer", max(self.tokenizer.get_vocab().values()), vocab_size)

    def read_window(self, position: Mapping[str, Any] | None) -> tuple[TokenStore, dict[str, Any] | None]:
        """
        Returns the window at a position (`None`: the beginning) and the position of the next (`None` after the last).

        Reading consecutive windows needs no seeking.
        """
        if position is None or self._next is None or self._next[0] != position:
            stream = DocumentStream(self.sources, position)
            self._next = (position, stream, iter(stream))
        _, stream, documents = self._next
        texts = next(_groups(documents, self.window_characters))
        following: dict[str, Any] | None = stream.position()
        next_text = next(documents, None)
        if next_text is None:
            following, documents = None, iter(())
        else:
            documents = itertools.chain([next_text], documents)
        self._next = (following, stream, documents)
        return TokenStore.from_texts(texts, self.tokenizer, wrap=self.wrap, num_proc=self.num_proc), following
