"""
How good a language model is: bits per byte of text, and which of two sentences it finds likelier.

Everything is counted from one thing, the log-probabilities of some tokens of some rows (`LanguageModel.score`). Rows of
one length are computed together and only what is asked for is projected to the vocabulary, so figures are the same
whatever the batch, and memory is bounded by the batch alone.
"""

import contextlib
import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .. import cpu
from ..core.errors import InputError
from ..core.limits import longest_input
from ..core.statistics import Estimate, bootstrap, proportion
from ..data.records import Records, iter_records
from ..data.sources import read_documents
from ..data.tokenizer import encode_text
from ..data.tokens import document_ends, encode_documents


# Logits that exist at one time, `(positions, vocabulary)`: 128 MB in fp32.
_MOST_LOGITS = 1 << 25
# How many batches of rows are sorted by length together.
_SORTED_BATCHES = 128


class Row(NamedTuple):
    """
    A row of tokens, and the tokens of it whose log-probabilities are asked for.

    Attributes:
        key: comes back with the result.
        ids: what the model reads.
        positions: in `ids`, whose outputs predict `targets`: of a causal LM the place before the target.
    """

    key: Any
    ids: Sequence[int] | np.ndarray
    positions: Sequence[int] | np.ndarray
    targets: Sequence[int] | np.ndarray


@dataclass
class LanguageModel:
    """
    A causal or masked LM with its tokenizer.

    Attributes:
        causal: the next token is predicted, rather than masked ones.
        batch_tokens: computed at once. The figures do not depend on it.
        bf16: compute in bf16 autocast: several times as fast where the hardware has it, and rounded to 3 digits.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    causal: bool
    batch_tokens: int = 2048
    bf16: bool = False

    def __post_init__(self) -> None:
        if not self.causal and self.tokenizer.mask_token_id is None:
            raise InputError("a masked LM is measured by masking, and this tokenizer has no mask token")
        self.plain = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        self.body = self.plain.base_model
        if self.body is self.plain:
            raise InputError(f"{type(self.plain).__name__} is no language model: it has no head")
        # BERT's pretraining head looks at the whole sequence too, to tell whether two segments follow one another.
        self.second_head = type(self.plain).__name__.endswith("ForPreTraining")
        rows = self.plain.get_input_embeddings().weight.shape[0]
        if max(self.tokenizer.get_vocab().values()) >= rows:
            raise InputError(f"the tokenizer has more tokens than the model has embeddings ({rows}): another model's")
        begin, end = document_ends(self.tokenizer)
        if self.causal:
            self.begin, self.end = begin or end, []  # GPT-2 and others have one token for both ends of a document
        else:
            self.begin = begin if self.tokenizer.cls_token_id is None else [self.tokenizer.cls_token_id]
            self.end = end if self.tokenizer.sep_token_id is None else [self.tokenizer.sep_token_id]

    @property
    def longest(self) -> int:
        """How many tokens a row may have."""
        return longest_input(self.plain.config) or 1 << 20

    def score(self, rows: Iterable[Row]) -> Iterator[tuple[Any, np.ndarray]]:
        """Key and log-probabilities in nats (float64) of each row, in an order of its own."""
        vocabulary = self.plain.config.vocab_size
        for several in _by_tokens(rows, _SORTED_BATCHES * self.batch_tokens):
            several.sort(key=lambda row: (len(row.ids), len(row.targets)))
            start = 0
            while start < len(several):
                end, predicted = start, 0
                # Rows are sorted: the last one is as long as the batch is wide.
                while end < len(several) and (
                    end == start
                    or (end + 1 - start) * len(several[end].ids) <= self.batch_tokens
                    and (predicted + len(several[end].targets)) * vocabulary <= _MOST_LOGITS
                ):
                    predicted += len(several[end].targets)
                    end += 1
                yield from self._score_batch(several[start:end])
                start = end

    @torch.inference_mode()
    def _score_batch(self, rows: list[Row]) -> Iterator[tuple[Any, np.ndarray]]:
        device, longest = self.plain.device, max(len(row.ids) for row in rows)
        # A causal LM does not see what stands behind a token, so its padding needs no mask.
        ids = np.full((len(rows), longest), self.tokenizer.pad_token_id or 0, np.int64)
        mask = np.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, : len(row.ids)] = row.ids
            mask[number, : len(row.ids)] = 1
        inputs: dict[str, Any] = {"input_ids": torch.from_numpy(ids).to(device)}
        if not self.causal and not mask.all():
            inputs["attention_mask"] = torch.from_numpy(mask).to(device)
        flat = [longest * number + position for number, row in enumerate(rows) for position in row.positions]
        flat, targets = (
            torch.tensor(several, device=device)
            for several in (flat, [target for row in rows for target in row.targets])
        )
        inputs |= {"use_cache": False} if self.causal else {}
        with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            if self.second_head:
                logits = self.model(**inputs).prediction_logits.flatten(0, 1)[flat]
            else:
                with only_at(self.body, flat):
                    logits = self.model(**inputs).logits[0]
        losses = F.cross_entropy(logits.float(), targets, reduction="none")
        ends = np.cumsum([len(row.targets) for row in rows])
        for row, nats in zip(rows, np.split(losses.double().cpu().numpy(), ends[:-1]), strict=True):
            yield row.key, -nats

    def pseudo_rows(
        self, key: Any, ids: Sequence[int] | np.ndarray, words: Sequence[Any] | None = None
    ) -> Iterator[Row]:
        """
        Rows for the pseudo-log-likelihood of a text (Salazar et al. 2020, https://huggingface.co/papers/1910.14659):
        each token masked in a row of its own. With `words`, the number of each token's word, what follows in the same
        word is masked too (PLL-word-l2r; Kauf & Ivanova 2023, https://huggingface.co/papers/2305.10588): else long
        words count as likely because their pieces give one another away.
        """
        whole = np.array([*self.begin, *ids, *self.end])
        first = len(self.begin)
        for place, target in enumerate(ids):
            masked = whole.copy()
            masked[first + place] = self.tokenizer.mask_token_id
            if words is not None and words[place] is not None:
                end = place + 1
                while end < len(ids) and words[end] == words[place]:
                    masked[first + end] = self.tokenizer.mask_token_id
                    end += 1
            yield Row(key, masked, [first + place], [target])


@contextlib.contextmanager
def only_at(body: torch.nn.Module, positions: torch.Tensor) -> Iterator[None]:
    """
    The model's head sees the states at some flat positions (`row * length + column`) as one row, and no others.

    Heads of language models look at one state at a time, so this gives the logits there, `(1, positions, vocabulary)`,
    from any model, and spares the output layer all others.
    """

    def gather(module: torch.nn.Module, arguments: Any, output: Any) -> Any:
        output["last_hidden_state"] = output[0].flatten(0, 1)[positions][None]
        return output

    hook = body.register_forward_hook(gather)
    try:
        yield
    finally:
        hook.remove()


def _by_tokens(rows: Iterable[Row], tokens: int) -> Iterator[list[Row]]:
    several, size = [], 0
    for row in rows:
        several.append(row)
        size += len(row.ids)
        if size >= tokens:
            yield several
            several, size = [], 0
    if several:
        yield several


def windows(length: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """
    How a text of `length` tokens, the first of them given, is read through a window: `(start, first, end)` says that
    tokens `first` to `end - 1` are predicted by a row that begins at `start` and holds `window` tokens at most.
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
    How many bits the model needs for a byte of text, which compares across tokenizers.

    A causal LM reads each document through a window that moves by `stride` tokens, so that every token (but a
    document's first ones) is predicted from at least `window - stride` others. A masked LM gets pieces of `window`
    tokens, each token masked in turn: its figures are pseudo-likelihoods, to compare with other masked LMs' alone.

    Args:
        documents: pairs of source and text, read once; memory grows by some 50 bytes a document.
        window: tokens; by default 1024 (causal) or 128 (masked), or what the model can take if that is less.
        stride: tokens; half the window by default.

    Returns: for `all` and for each source `bits_per_byte` (with an interval from documents drawn again; from pieces of
        it if there is one document only), `perplexity` of a token, and counts of `documents`, `tokens` and `bytes`.

    Raises:
        InputError: window or stride do not fit, or there is no text.
    """
    room = lm.longest - (0 if lm.causal else len(lm.begin) + len(lm.end))
    window = min(1024 if lm.causal else 128, room) if window is None else window
    stride = max(1, window // 2) if stride is None else stride
    if not 1 <= window <= room:
        raise InputError(f"window {window}: this model takes 1 to {room} tokens")
    if not 1 <= stride <= window:
        raise InputError(f"stride {stride} must lie between 1 and the window, {window}")

    sources: dict[str, int] = {}
    first_documents: list[int] = []  # of each source
    of_document: list[int] = []  # number of each document's source
    byte_counts: list[int] = []
    token_counts: list[int] = []
    nats: list[float] = []

    def rows() -> Iterator[Row]:
        numbered, labels = itertools.tee(documents)
        number = 0
        encoded = encode_documents((text for _, text in numbered), lm.tokenizer, wrap=False, num_proc=1)
        for chunk in encoded:
            pieces = np.split(chunk["tokens"].astype(np.int64), np.cumsum(chunk["lengths"])[:-1])
            for tokens, size in zip(pieces, chunk["byte_counts"].tolist(), strict=True):
                source = next(labels)[0]
                of_document.append(sources.setdefault(source, len(sources)))
                if len(first_documents) < len(sources):
                    first_documents.append(number)
                byte_counts.append(size)
                token_counts.append(len(tokens))
                nats.append(0.0)
                yield from document_rows(lm, number, tokens, window, stride)
                bar.update(len(tokens))
                number += 1

    pieces: dict[int, list[tuple[float, int]]] = defaultdict(list)  # of each source's first document
    with tqdm(desc="text", unit=" tokens", unit_scale=True, disable=None) as bar:
        for number, log_probabilities in lm.score(rows()):
            nats[number] -= log_probabilities.sum()
            if first_documents[of_document[number]] == number:
                pieces[of_document[number]].append((-log_probabilities.sum(), len(log_probabilities)))
    if not sum(token_counts):
        raise InputError("there is no text to measure: the documents are empty")

    columns = [np.array(column) for column in (nats, byte_counts, token_counts)]
    result = {"all": _text_figures(columns, pieces[0])}
    if len(sources) > 1:
        for source, source_number in sources.items():
            chosen = np.array(of_document) == source_number
            result[source] = _text_figures([column[chosen] for column in columns], pieces[source_number])
    return result


def read_text(path: str, text_field: str = "text", source_field: str | None = None) -> Iterator[tuple[str, str]]:
    """
    Pairs of source and text out of a file, for [`bits_per_byte`], in constant memory; without a `source_field` all are
    of one source.

    Raises:
        InputError: the file cannot be read, or a record lacks a field.
    """
    if source_field is None:
        yield from (("all", document) for document in read_documents(path, text_field))
        return
    for place, record in iter_records(path):
        for name in (source_field, text_field):
            if not isinstance(record.get(name), str):
                raise InputError(f"{place}: no text in field {name!r}, there are {', '.join(map(str, record))}")
        yield record[source_field], record[text_field]


def document_rows(lm: LanguageModel, key: Any, tokens: np.ndarray, window: int, stride: int) -> Iterator[Row]:
    """The rows in which a document's tokens are predicted, as [`bits_per_byte`] says."""
    if not lm.causal:
        for start in range(0, len(tokens), window):
            yield from lm.pseudo_rows(key, tokens[start : start + window])
        return
    tokens = np.concatenate([lm.begin[-1:], tokens])
    for start, first, end in windows(len(tokens), window, stride):
        yield Row(key, tokens[start : end - 1], np.arange(first - 1 - start, end - 1 - start), tokens[first:end])


def _text_figures(columns: list[np.ndarray], pieces: list[tuple[float, int]]) -> dict[str, Any]:
    """Figures out of nats, bytes and tokens of each document."""

    def figures(nats: np.ndarray, sizes: np.ndarray, tokens: np.ndarray) -> dict[str, float]:
        return {
            "bits_per_byte": nats.sum() / max(sizes.sum(), 1) / math.log(2),
            "perplexity": math.exp(min(nats.sum() / max(tokens.sum(), 1), 700.0)),
        }

    nats, byte_counts, token_counts = columns
    if len(nats) == 1:
        # One document drawn again is the same document: the next best units are the pieces it was read in.
        piece_nats, piece_tokens = (np.array(column) for column in zip(*pieces))
        columns = [piece_nats, piece_tokens * (byte_counts.sum() / token_counts.sum()), piece_tokens]
    value = figures(nats, byte_counts, token_counts)
    estimates = {
        name: replace(estimate, value=value[name], n=len(nats))
        for name, estimate in bootstrap(figures, *columns).items()
    }
    return {**estimates, "documents": len(nats), "tokens": int(token_counts.sum()), "bytes": int(byte_counts.sum())}


def minimal_pairs(lm: LanguageModel, pairs: Sequence[tuple[str, str]], by_word: bool = False) -> np.ndarray:
    """
    For which pairs of sentences the model gives the first one the higher probability (Warstadt et al. 2020, BLiMP,
    https://huggingface.co/papers/1912.00582); a tie is not a hit.

    A causal LM compares log-likelihoods, without the tokens that both sentences begin with, which count the same; a
    masked LM pseudo-log-likelihoods, see `LanguageModel.pseudo_rows`, with `by_word` in the variant PLL-word-l2r.

    Returns: bool, `(pairs,)`.

    Raises:
        InputError: a sentence is longer than what the model takes.
    """
    texts = list(itertools.chain.from_iterable(pairs))
    ids = encode_text(lm.tokenizer, texts)
    room = lm.longest - len(lm.begin) - len(lm.end)
    for text, tokens in zip(texts, ids, strict=True):
        if not 1 <= len(tokens) <= room:
            raise InputError(f"sentence {text[:60]!r} has {len(tokens)} tokens; this model takes 1 to {room}")
    words = None
    if by_word and not lm.causal:
        words = [encoding.word_ids for encoding in _encodings(lm.tokenizer, texts)]

    def rows() -> Iterator[Row]:
        for number in range(len(pairs)):
            good, bad = ids[2 * number], ids[2 * number + 1]
            if lm.causal:
                shared = _shared_prefix(good, bad)
                for which, tokens in enumerate((good, bad)):
                    if tokens[shared:]:
                        whole = [*lm.begin, *tokens]
                        first = len(lm.begin) + shared
                        positions = range(first - 1, len(whole) - 1)
                        yield Row((number, which), whole[:-1], positions, whole[first:])
            else:
                for which, tokens in enumerate((good, bad)):
                    own_words = words[2 * number + which] if words else None
                    yield from lm.pseudo_rows((number, which), tokens, own_words)

    scores = np.zeros((len(pairs), 2))
    for key, log_probabilities in lm.score(rows()):
        scores[key] += log_probabilities.sum()
    return scores[:, 0] > scores[:, 1]


def _encodings(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[Any]:
    return tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False).encodings


def _shared_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    for number, (a, b) in enumerate(zip(one, other)):
        if a != b:
            return number
    return min(len(one), len(other))


def group_rows(records: Records, field: str | None) -> dict[str, list[int]]:
    """Numbers of the records by what stands in a field, in the order of the file; all under `all` without one."""
    groups: dict[str, list[int]] = defaultdict(list)
    for number, (record, place) in enumerate(zip(records, records.places, strict=True)):
        if field is not None and field not in record:
            raise InputError(f"{place}: no field {field!r} to group by, there are {', '.join(map(str, record))}")
        groups["all" if field is None else str(record[field])].append(number)
    return dict(groups)


def accuracy_by_group(hits: dict[str, tuple[int, int]]) -> dict[str, Estimate]:
    """Hits and counts of each group as shares with Wilson's intervals, and first those of `all` together."""
    total = [sum(column) for column in zip(*hits.values())]
    return {"all": proportion(*total), **{name: proportion(*counts) for name, counts in hits.items() if len(hits) > 1}}


def generate_samples(
    lm: LanguageModel, prompts: Sequence[str], max_new_tokens: int = 80, seed: int = 0, **sampling: Any
) -> list[str]:
    """Each prompt with its continuation, drawn one by one with the seed; `sampling` as `generate` takes it."""
    from transformers import set_seed

    samples = []
    for prompt in prompts:
        ids = [*lm.begin, *encode_text(lm.tokenizer, [prompt])[0]]
        if len(ids) >= lm.longest:
            raise InputError(f"prompt {prompt[:40]!r} has {len(ids)} tokens and leaves no room in {lm.longest}")
        set_seed(seed)
        inputs = torch.tensor([ids], device=lm.plain.device)
        room = min(max_new_tokens, lm.longest - len(ids))
        with torch.inference_mode():
            out = cpu.generate(
                lm.model, inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=room,
                pad_token_id=lm.tokenizer.pad_token_id, **sampling,
            )  # fmt: skip
        samples.append(lm.tokenizer.decode(out[0], skip_special_tokens=True))
    return samples
