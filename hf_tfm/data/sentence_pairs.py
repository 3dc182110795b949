"""Pairs of segments for next-sentence prediction and sentence order."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..core.errors import InputError
from .text import ends_sentence
from .tokens import TokenStore
from .vocabulary import token_texts


@dataclass
class SentencePairs:
    """
    Pairs of segments for next-sentence prediction (Devlin et al. 2019) or sentence order (Lan et al. 2020,
    https://huggingface.co/papers/1909.11942), as `[CLS] A [SEP] B [SEP]` with segment ids.

    A window of consecutive text is cut in two at the end of a sentence. In half of the rows (label 1) the second
    segment is text of about that length from another document, or, for sentence order, the segments are swapped.

    Args:
        store: Documents without special tokens (`TokenStore.build(..., wrap=False)`).
        tokenizer: Provides cls, sep and pad, and the text of each token.
        length: Tokens in a row, special tokens included.
        seed: Row `r` depends on `(seed, r)` alone.
        task: `next_sentence` or `sentence_order`.

    Raises:
        InputError: There are fewer than two documents of `SHORTEST` tokens, or the tokenizer has no cls or sep token.
    """

    store: TokenStore
    tokenizer: PreTrainedTokenizerBase
    length: int
    seed: int = 0
    task: Literal["next_sentence", "sentence_order"] = "next_sentence"
    _ends_sentence: np.ndarray = field(init=False, repr=False)

    SHORTEST = 16  # tokens in both segments together

    def __post_init__(self) -> None:
        if self.task not in ("next_sentence", "sentence_order"):
            raise InputError(f"the task must be next_sentence or sentence_order, not {self.task!r}")
        if self.tokenizer.cls_token_id is None or self.tokenizer.sep_token_id is None:
            raise InputError("sentence pairs need a tokenizer with a cls and a sep token; this one lacks them")
        long_enough = np.diff(self.store.offsets) >= self.SHORTEST
        if long_enough.sum() < 2:
            raise InputError(f"sentence pairs need two documents of at least {self.SHORTEST} tokens")
        texts = token_texts(self.tokenizer)
        self._ends_sentence = np.array([ends_sentence(text) for text in texts])

    def batch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the rows of these numbers: ids, positions, mask and segments `(batch, length)`, labels `(batch,)`."""
        batch_size = len(rows)
        pairs = [self._pair(np.random.default_rng((self.seed, int(row)))) for row in rows]
        input_ids = np.full((batch_size, self.length), self.tokenizer.pad_token_id or 0, np.int64)
        segments = np.zeros_like(input_ids)
        real = np.zeros_like(input_ids)
        cls, sep = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        for i, (first, second, _) in enumerate(pairs):
            tokens = [cls, *first, sep, *second, sep]
            input_ids[i, : len(tokens)] = tokens
            segments[i, len(first) + 2 : len(tokens)] = 1
            real[i, : len(tokens)] = 1
        positions = np.broadcast_to(np.arange(self.length), input_ids.shape)
        return {
            "input_ids": input_ids,
            "position_ids": positions,
            "sequence_ids": real,
            "attention_mask": real,
            "token_type_ids": segments,
            "next_sentence_label": np.array([label for *_, label in pairs]),
            "rows": rows,
        }

    def _pair(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int]:
        room = self.length - 3  # without cls and two sep tokens
        document, window = self._draw_window(rng, room)
        ends = 1 + np.flatnonzero(self._ends_sentence[window])
        cuts = ends[(ends >= 4) & (ends <= len(window) - 4)]
        if self.task == "sentence_order" and (whole := cuts <= ends.max(initial=0) - 4).any():
            window, cuts = window[: ends[-1]], cuts[whole]  # otherwise only one order would end with a sentence
        cut = int(rng.choice(cuts)) if len(cuts) else len(window) // 2
        first, second, label = window[:cut], window[cut:], int(rng.random() < 0.5)
        if label and self.task == "sentence_order":
            first, second = second, first
        elif label:
            candidates = [
                self._draw_from_another_document(
                    rng, document, len(second), room - len(first), at_end=len(window) < room
                )
                for _ in range(4)
            ]
            second = min(candidates, key=lambda candidate: abs(len(candidate) - len(second)))
        return first, second, label

    def _draw_from_another_document(
        self, rng: np.random.Generator, document: int, size: int, room: int, at_end: bool
    ) -> np.ndarray:
        """
        Returns text of another document in place of a continuation of `size` tokens. If the continuation may end with
        its document, so does this text; otherwise its last token or its length would give the label away.
        """
        other = document
        while other == document:
            other, text = self._draw_window(rng, size)
        if not at_end:
            return text
        begin, end = int(self.store.offsets[other]), int(self.store.offsets[other + 1])
        nearest = max(begin, end - room)
        starts = nearest + 1 + np.flatnonzero(self._ends_sentence[self.store.tokens[nearest : end - 4]])
        start = starts[np.abs(starts - (end - size)).argmin()] if len(starts) else max(begin, end - size)
        return self.store.tokens[start:end].astype(np.int64)

    def _draw_window(self, rng: np.random.Generator, room: int) -> tuple[int, np.ndarray]:
        """
        Draws a document by its share of the tokens, and returns it with text that starts at the document's start or
        after a sentence; anywhere if there is no end of a sentence.
        """
        offsets = self.store.offsets
        while True:
            start = int(rng.integers(self.store.num_tokens))
            document = int(np.searchsorted(offsets, start, side="right")) - 1
            begin, end = int(offsets[document]), int(offsets[document + 1])
            if end - begin < self.SHORTEST:
                continue
            start = min(start, end - self.SHORTEST)
            ends = np.flatnonzero(
                self._ends_sentence[self.store.tokens[start : min(start + room, end - self.SHORTEST)]]
            )
            if start - begin < room and not self._ends_sentence[self.store.tokens[begin:start]].any():
                start = begin
            elif len(ends):
                start += int(ends[0]) + 1
            else:
                start = max(begin, min(start, end - room))
            return document, self.store.tokens[start : min(start + room, end)].astype(np.int64)
