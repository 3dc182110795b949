"""
What is predicted: the next token, masked tokens, masked tokens and the next sentence.

An objective turns a packed batch into a model's inputs and labels. Chance is drawn for each row from `(seed, row)`
alone, so a row is the same whenever it is made, by whichever process, and in whatever batch.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..core.errors import InputError
from .batches import IGNORED
from .vocabulary import word_starts


def causal(batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """
    Next-token prediction: the labels are the inputs (the model shifts them), without padding and without each
    document's first token, which nothing in front of it could predict.
    """
    input_ids, position_ids = batch["input_ids"], batch["position_ids"]
    labels = np.where((position_ids == 0) | (batch["sequence_ids"] == 0), IGNORED, input_ids)
    return _tensors(input_ids=input_ids, position_ids=position_ids, labels=labels)


@dataclass
class Masked:
    """
    Masked-token prediction (Devlin et al. 2019, https://huggingface.co/papers/1810.04805): of the chosen tokens 80 %
    become the mask token, 10 % a random one, 10 % stay.

    Args:
        tokenizer: Gives the mask token, the special tokens (never chosen) and where words start.
        rate: Share of a row's tokens to choose, as a number or as a function of the row. Wettig et al.
            (https://huggingface.co/papers/2202.08005) found more than BERT's 15 % to be better.
        unit: `token`; `word`, all pieces of a word at once; or `span`, runs of words whose number is drawn from a
            geometric distribution over 1 to 10, p = 0.2, with mean 3.8 (Joshi et al. 2020,
            https://huggingface.co/papers/1907.10529).
        seed: What is chosen in row `r` depends on `(seed, r)` alone.
        compact: Give the labels of the chosen tokens alone, and where they stand as `masked_positions`, for models that
            take these (ours): the output layer then computes nothing that is not predicted.

    Raises:
        InputError: the tokenizer has no mask token, or the rate is not between 0 and 1.
    """

    tokenizer: PreTrainedTokenizerBase
    rate: float | Callable[[np.ndarray], np.ndarray] = 0.15
    unit: Literal["token", "word", "span"] = "token"
    seed: int = 0
    compact: bool = False
    special: np.ndarray = field(init=False, repr=False)
    _starts_word: np.ndarray = field(init=False, repr=False)
    _ordinary: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.tokenizer.mask_token_id is None:
            raise InputError("masked-token prediction needs a tokenizer with a mask token; this one has none")
        if not callable(self.rate) and not 0 < self.rate < 1:
            raise InputError(f"the masking rate must lie between 0 and 1, not {self.rate}")
        if self.unit not in ("token", "word", "span"):
            raise InputError(f"the masking unit must be token, word or span, not {self.unit!r}")
        self.special = np.zeros(len(self.tokenizer), bool)
        self.special[self.tokenizer.all_special_ids] = True
        self._starts_word = self.special | word_starts(self.tokenizer)
        self._ordinary = np.flatnonzero(~self.special)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """`input_ids`, `labels` (-100 where nothing is predicted) and what else the batch has for the model."""
        input_ids, rows = batch["input_ids"], batch["rows"]
        chosen = self.choose(batch)
        fate = uniform(self.seed, rows, input_ids.shape[1], stream=0)
        drawn = self._ordinary[
            (uniform(self.seed, rows, input_ids.shape[1], stream=1) * len(self._ordinary)).astype(int)
        ]
        masked = np.where(chosen & (fate < 0.8), self.tokenizer.mask_token_id, input_ids)
        masked = np.where(chosen & (fate >= 0.9), drawn, masked)
        labels = np.where(chosen, input_ids, IGNORED)
        extra = {
            name: batch[name] for name in ("attention_mask", "token_type_ids", "next_sentence_label") if name in batch
        }
        labels = compact_labels(labels) if self.compact else {"labels": labels}
        return _tensors(input_ids=masked, position_ids=batch["position_ids"], **labels, **extra)

    def choose(self, batch: dict[str, np.ndarray]) -> np.ndarray:
        """
        Which tokens to predict, `(batch, length)` bool. Their number in a row is its share of the row's tokens, rounded
        up or down by chance; the last word or span may be taken in part.
        """
        input_ids, rows = batch["input_ids"], batch["rows"]
        candidates = ~self.special[input_ids] & (batch["sequence_ids"] > 0)
        share = candidates.sum(1) * (self.rate(rows) if callable(self.rate) else self.rate)
        wanted = np.floor(share + uniform(self.seed, rows, 1, stream=2)[:, 0]).astype(int)
        if isinstance(self.rate, DrawnRate):
            wanted = wanted.clip(min=1)  # a row drawn near 0 teaches something too

        priority = uniform(self.seed, rows, input_ids.shape[1], stream=3)
        if self.unit != "token":
            starts = self._starts_word[input_ids] | (batch["position_ids"] == 0) | ~candidates
            if self.unit == "span":
                starts = self._span_starts(starts, rows) | (batch["position_ids"] == 0)  # no span leaves its text
            # Every token of a unit has the priority of its first one.
            first = np.maximum.accumulate(np.where(starts, np.arange(input_ids.shape[1]), 0), axis=1)
            priority = np.take_along_axis(priority, first, axis=1)
        order = np.argsort(np.where(candidates, priority, 2.0), axis=1, kind="stable")
        chosen = np.zeros(input_ids.shape, bool)
        np.put_along_axis(chosen, order, np.arange(input_ids.shape[1]) < wanted[:, None], axis=1)
        return chosen & candidates

    def _span_starts(self, starts: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Of the word starts those that begin a span."""
        words = np.cumsum(starts, axis=1) - 1
        draws = uniform(self.seed, rows, starts.shape[1], stream=4)
        lengths = np.ceil(np.log1p(-draws * (1 - 0.8**10)) / np.log(0.8)).clip(1, 10)
        firsts = np.zeros((len(starts), starts.shape[1] + 1), bool)
        positions = np.cumsum(lengths, axis=1) - lengths
        np.put_along_axis(firsts, np.minimum(positions, starts.shape[1]).astype(int), True, axis=1)
        return starts & np.take_along_axis(firsts, np.maximum(words, 0), axis=1)


@dataclass
class Hybrid:
    """
    Next tokens in some batches, masked tokens in the others, by one set of weights: what was masked is predicted at the
    token before it, with the whole text in sight (GPT-BERT, https://huggingface.co/papers/2410.24159).

    Args:
        masked: What is masked and how.
        share: Of the batches that are masked ones, spread evenly over the run.
        parts: Over how many processes and accumulated batches the rows of a step are shared: all of them know the
            step's number by their rows.
    """

    masked: Masked
    share: float
    parts: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise InputError(f"the share of masked batches must lie between 0 and 1, not {self.share}")

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """What [`causal`] gives, or masked `input_ids` with their `labels` and `is_causal=False`."""
        number = int(batch["rows"].min()) // (len(batch["rows"]) * self.parts)
        if int((number + 1) * self.share) == int(number * self.share):
            return causal(batch)
        return masked_next_token(self.masked, batch)


def masked_next_token(masked: Masked, batch: dict[str, np.ndarray]) -> dict[str, Any]:
    """A masked batch for a causal LM, whose loss reads each label at the token before it."""
    inputs = masked(batch)
    labels = inputs["labels"].masked_fill(inputs["position_ids"] == 0, IGNORED)  # nothing stands before these
    return {**inputs, "labels": labels, "is_causal": False}


def uniform(seed: int, rows: np.ndarray, columns: int, stream: int) -> np.ndarray:
    """
    Random numbers in [0, 1), `(rows, columns)`, each a function of `(seed, row, column, stream)`: SplitMix64's mixing
    (Steele et al. 2014) of a counter, so that rows need no generator of their own.
    """
    with np.errstate(over="ignore"):
        key = _mix(np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(stream + 1))
        row_keys = _mix(rows.astype(np.uint64)[:, None] + key)
        mixed = _mix(row_keys + np.arange(columns, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return (mixed >> np.uint64(11)) * 2.0**-53


def _mix(x: Any) -> Any:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass
class CausalFirst:
    """
    Next tokens before masked ones, for an encoder: at first every token teaches and none is missing, so that the long
    plateau of masked prediction is left sooner (Gisserot-Boukhlef et al. 2025,
    https://huggingface.co/papers/2507.00994). Attention then looks to the left, in every layer, within a document.

    Args:
        masked: What follows.
        rows: How many rows of the run, its first ones, predict the next token: those of whole steps.
    """

    masked: Masked
    rows: int

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """As `Masked` gives it; while tokens are next ones also `attention_mask` `(batch, 1, length, length)`, bool."""
        if batch["rows"].min() >= self.rows:
            return self.masked(batch)
        input_ids, documents = batch["input_ids"], batch["sequence_ids"]
        following = np.pad(input_ids[:, 1:], ((0, 0), (0, 1)))
        goes_on = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] > 0)
        predicted = np.pad(goes_on, ((0, 0), (0, 1))) & ~self.masked.special[following]
        labels = np.where(predicted, following, IGNORED)
        labels = compact_labels(labels) if self.masked.compact else {"labels": labels}
        inputs = _tensors(input_ids=input_ids, position_ids=batch["position_ids"], **labels)
        mask = (documents[:, :, None] == documents[:, None, :]) & np.tri(documents.shape[1], dtype=bool)
        return {**inputs, "attention_mask": torch.from_numpy(mask[:, None])}


def compact_labels(labels: np.ndarray) -> dict[str, np.ndarray]:
    """
    The labels of the predicted tokens alone, and where they stand as `masked_positions`, of `(batch, length)` labels;
    filled up to a multiple of 64, so that compiled code meets few shapes.
    """
    positions = np.flatnonzero(labels != IGNORED)
    missing = -len(positions) % 64
    return {
        "labels": np.pad(labels.ravel()[positions], (0, missing), constant_values=IGNORED),
        "masked_positions": np.pad(positions, (0, missing)),
    }


@dataclass(frozen=True)
class RateSchedule:
    """A masking rate that goes linearly from `start` at row 0 to `end` at row `rows`."""

    start: float
    end: float
    rows: int

    def __post_init__(self) -> None:
        if not (0 < self.start < 1 and 0 < self.end < 1):
            raise InputError(f"masking rates must lie between 0 and 1, not {self.start} and {self.end}")

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return self.start + (self.end - self.start) * np.clip(rows / max(self.rows, 1), 0, 1)


@dataclass(frozen=True)
class DrawnRate:
    """
    A masking rate drawn anew for each row between `low` and `high`, for all of the documents packed into it; at least
    one token is chosen. Over the whole range, a masked LM learns to write from nearly nothing, as masked-diffusion
    models do (Nie et al. 2025, https://huggingface.co/papers/2502.09992); a tenth of what is chosen stays as it is and
    a tenth becomes other tokens here too.
    """

    low: float = 0.0
    high: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high <= 1:
            raise InputError(f"masking rates are drawn from a range within 0 and 1, not {self.low} to {self.high}")

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return self.low + (self.high - self.low) * uniform(self.seed, rows, 1, stream=5)[:, 0]


def _tensors(**arrays: np.ndarray) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)) for name, array in arrays.items()}
