"""
Figures of language models: bits per byte of text, perplexity, accuracy on minimal pairs, samples.

All of them but the samples are computed from `LanguageModel.score` (tasks/likelihood.py).
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase, set_seed

from .. import cpu
from ..core.errors import InputError
from ..core.statistics import Estimate, bootstrap, proportion, to_bits_per_byte
from ..data.forms.reader import FileReport, RecordReader
from ..data.records import Records
from ..data.sources import DocumentStream, parse_sources
from ..data.tokenizer import encode_text
from ..data.tokens import encode_documents
from ..tasks.likelihood import LanguageModel, Row


def sliding_windows(length: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """
    Yield `(start, first, end)` for each window over `length` tokens, the first of which is given.

    The row that begins at `start` and has at most `window` tokens predicts the tokens `first` to `end - 1`.
    """
    start, first, end = 0, 1, min(window + 1, length)
    while first < end:
        yield start, first, end
        first, end = end, min(end + stride, length)
        start = max(0, end - 1 - window)


def bits_per_byte(
    lm: LanguageModel,
    documents: Iterable[tuple[str, str]],
    window: int | None = None,
    stride: int | None = None,
) -> dict[str, dict[str, Any]]:
    """
    Return the bits that the model needs for a byte of text, a figure that compares across tokenizers.

    A causal LM reads each document through a window that moves by `stride` tokens, so that every token except a
    document's first ones is predicted from at least `window - stride` others. A masked LM reads pieces of `window`
    tokens with each token masked in turn: these figures are pseudo-likelihoods, comparable among masked LMs only.

    Args:
        documents: pairs of source and text, read once; memory grows by some 50 bytes per document.
        window: tokens; by default 1024 (causal) or 128 (masked), or the model's maximum if that is less.
        stride: tokens; half the window by default.

    Returns: for `all` and for each source `bits_per_byte` (with an interval from resampled documents, or from resampled
        pieces of a single document), `perplexity` per token, and counts of `documents`, `tokens` and `bytes`.

    Raises:
        InputError: window or stride do not fit, or there is no text.
    """
    window = lm.default_window if window is None else window
    stride = max(1, window // 2) if stride is None else stride
    if not 1 <= window <= lm.max_window:
        raise InputError(f"window {window}: this model takes 1 to {lm.max_window} tokens")
    if not 1 <= stride <= window:
        raise InputError(f"stride {stride} must lie between 1 and the window, {window}")

    source_numbers: dict[str, int] = {}
    first_documents: list[int] = []  # the first document of each source
    document_sources: list[int] = []
    byte_counts: list[int] = []
    token_counts: list[int] = []
    nats: list[float] = []

    def rows() -> Iterator[Row]:
        texts, labels = itertools.tee(documents)
        number = 0
        for chunk in encode_documents((text for _, text in texts), lm.tokenizer, wrap=False, num_proc=1):
            token_rows = np.split(chunk["tokens"].astype(np.int64), np.cumsum(chunk["lengths"])[:-1])
            for tokens, size in zip(token_rows, chunk["byte_counts"].tolist(), strict=True):
                source = next(labels)[0]
                document_sources.append(source_numbers.setdefault(source, len(source_numbers)))
                if len(first_documents) < len(source_numbers):
                    first_documents.append(number)
                byte_counts.append(size)
                token_counts.append(len(tokens))
                nats.append(0.0)
                yield from document_rows(lm, number, tokens, window, stride)
                progress.update(len(tokens))
                number += 1

    pieces: dict[int, list[tuple[float, int]]] = defaultdict(list)  # nats and tokens of each source's first document
    with tqdm(desc="text", unit=" tokens", unit_scale=True, disable=None) as progress:
        for number, log_probabilities in lm.score(rows()):
            nats[number] -= log_probabilities.sum()
            if first_documents[document_sources[number]] == number:
                pieces[document_sources[number]].append((-log_probabilities.sum(), len(log_probabilities)))
    if not sum(token_counts):
        raise InputError("there is no text to measure: the documents are empty")

    columns = [np.array(nats), np.array(byte_counts), np.array(token_counts)]
    figures = {"all": _text_figures(columns, pieces[0])}
    if len(source_numbers) > 1:
        for source, source_number in source_numbers.items():
            of_source = np.array(document_sources) == source_number
            figures[source] = _text_figures([column[of_source] for column in columns], pieces[source_number])
    return figures


class TextReader:
    """
    Iterates over pairs of source and text of a file, for [`bits_per_byte`], in constant memory.

    Args:
        source_field: field of a record with its source; without it, the source of every text is `all`.
        settings: fields of a `Source`, such as `text_field` and `options`.

    Attributes:
        reports: what was read of each file so far.

    Raises:
        InputError: the file cannot be read, or a record lacks a field.
    """

    def __init__(self, path: str, source_field: str | None = None, **settings: Any):
        self.source_field = source_field
        sources = parse_sources(path, **settings)
        self._reader: DocumentStream | RecordReader = DocumentStream(sources)
        if source_field is not None:
            self._reader = RecordReader(path, sources[0].reading)

    @property
    def reports(self) -> list[FileReport]:
        return self._reader.reports

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for read in self._reader:
            if isinstance(read, str):
                yield "all", read
                continue
            source = read.row.get(str(self.source_field))
            if not isinstance(source, str):
                names = ", ".join(map(str, read.row))
                raise InputError(f"{read.place}: no text in field {self.source_field!r}, there are {names}")
            yield source, read.record["text"]


def document_rows(lm: LanguageModel, key: Any, tokens: np.ndarray, window: int, stride: int) -> Iterator[Row]:
    """Yield the rows that predict a document's tokens, as [`bits_per_byte`] describes."""
    if not lm.causal:
        for start in range(0, len(tokens), window):
            yield from lm.pseudo_likelihood_rows(key, tokens[start : start + window])
        return
    tokens = np.concatenate([lm.prefix_ids[-1:], tokens])
    for start, first, end in sliding_windows(len(tokens), window, stride):
        yield Row(key, tokens[start : end - 1], np.arange(first - 1 - start, end - 1 - start), tokens[first:end])


def _text_figures(columns: list[np.ndarray], pieces: list[tuple[float, int]]) -> dict[str, Any]:
    """Return figures from the nats, bytes and tokens of each document."""

    def figures(nats: np.ndarray, sizes: np.ndarray, tokens: np.ndarray) -> dict[str, float]:
        return {
            "bits_per_byte": to_bits_per_byte(nats.sum(), max(sizes.sum(), 1)),
            "perplexity": math.exp(min(nats.sum() / max(tokens.sum(), 1), 700.0)),
        }

    nats, byte_counts, token_counts = columns
    if len(nats) == 1:
        # A single document has no others to resample: its pieces are resampled instead, in an order without the batch.
        piece_nats, piece_tokens = (np.array(column) for column in zip(*sorted(pieces)))
        columns = [piece_nats, piece_tokens * (byte_counts.sum() / token_counts.sum()), piece_tokens]
    value = figures(nats, byte_counts, token_counts)
    estimates = {
        name: replace(estimate, value=value[name], n=len(nats))
        for name, estimate in bootstrap(figures, *columns).items()
    }
    return {**estimates, "documents": len(nats), "tokens": int(token_counts.sum()), "bytes": int(byte_counts.sum())}


def minimal_pairs(lm: LanguageModel, pairs: Sequence[tuple[str, str]], by_word: bool = False) -> np.ndarray:
    """
    Return for each pair of sentences whether the model finds the first one likelier; a tie counts as a miss.

    BLiMP: Warstadt et al. 2020, https://huggingface.co/papers/1912.00582. A causal LM compares log-likelihoods, without
    the tokens that both sentences begin with, which count the same; a masked LM compares pseudo-log-likelihoods (see
    `LanguageModel.pseudo_likelihood_rows`), with `by_word` in the variant PLL-word-l2r.

    Returns: bool, `(pairs,)`.

    Raises:
        InputError: a sentence is longer than the model's maximum.
    """
    texts = list(itertools.chain.from_iterable(pairs))
    ids = encode_text(lm.tokenizer, texts)
    max_tokens = lm.max_length - len(lm.prefix_ids) - len(lm.suffix_ids)
    for text, tokens in zip(texts, ids, strict=True):
        if not 1 <= len(tokens) <= max_tokens:
            raise InputError(f"sentence {text[:60]!r} has {len(tokens)} tokens; this model takes 1 to {max_tokens}")
    words = _word_numbers(lm.tokenizer, texts) if by_word and not lm.causal else None

    def rows() -> Iterator[Row]:
        for number in range(len(pairs)):
            good, bad = ids[2 * number], ids[2 * number + 1]
            shared = _shared_prefix(good, bad) if lm.causal else 0
            for side, tokens in enumerate((good, bad)):
                if not lm.causal:
                    word_numbers = words[2 * number + side] if words else None
                    yield from lm.pseudo_likelihood_rows((number, side), tokens, word_numbers)
                elif tokens[shared:]:
                    sentence = [*lm.prefix_ids, *tokens]
                    first = len(lm.prefix_ids) + shared
                    yield Row((number, side), sentence[:-1], range(first - 1, len(sentence) - 1), sentence[first:])

    scores = np.zeros((len(pairs), 2))
    for key, log_probabilities in lm.score(rows()):
        scores[key] += log_probabilities.sum()
    return np.greater(scores[:, 0], scores[:, 1])


def _word_numbers(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int | None]]:
    """Return the number of each token's word, for each text."""
    encodings = tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False).encodings
    return [encoding.word_ids for encoding in encodings]


def _shared_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two rows begin with alike."""
    differences = (number for number, (a, b) in enumerate(zip(one, other)) if a != b)
    return next(differences, min(len(one), len(other)))


def group_rows(records: Records, field: str | None) -> dict[str, list[int]]:
    """Return the numbers of the records by the value of a field, in file order; without a field all under `all`."""
    groups: dict[str, list[int]] = defaultdict(list)
    for number, (record, place) in enumerate(zip(records, records.places, strict=True)):
        if field is not None and field not in record:
            raise InputError(f"{place}: no field {field!r} to group by, there are {', '.join(map(str, record))}")
        groups["all" if field is None else str(record[field])].append(number)
    return dict(groups)


def accuracy_by_group(hits: dict[str, tuple[int, int]]) -> dict[str, Estimate]:
    """Return the accuracy of `all` and of each group, with Wilson intervals, from pairs of hits and records."""
    total = [sum(column) for column in zip(*hits.values())]
    return {"all": proportion(*total), **{name: proportion(*counts) for name, counts in hits.items() if len(hits) > 1}}


def generate_samples(
    lm: LanguageModel, prompts: Sequence[str], max_new_tokens: int = 80, seed: int = 0, **sampling: Any
) -> list[str]:
    """
    Return each prompt with its continuation; each starts from the same seed.

    Args:
        sampling: arguments of `generate`.

    Raises:
        InputError: a prompt leaves no room for a continuation.
    """
    samples = []
    for prompt in prompts:
        ids = [*lm.prefix_ids, *encode_text(lm.tokenizer, [prompt])[0]]
        if len(ids) >= lm.max_length:
            raise InputError(f"prompt {prompt[:40]!r} has {len(ids)} tokens and leaves no room in {lm.max_length}")
        set_seed(seed)
        inputs = torch.tensor([ids], device=lm.base_model.device)
        with torch.inference_mode():
            output = cpu.generate(
                lm.model,
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=min(max_new_tokens, lm.max_length - len(ids)),
                pad_token_id=lm.tokenizer.pad_token_id,
                **sampling,
            )
        samples.append(lm.tokenizer.decode(output[0], skip_special_tokens=True))
    return samples
