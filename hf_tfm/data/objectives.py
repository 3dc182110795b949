"""
Objectives: next-token prediction, masked-token prediction, and mixtures of the two.

An objective turns a packed batch into a model's inputs and labels. Random numbers of a row depend on `(seed, row)`
alone, so a row is the same in every process and every batch.
"""

from collections.abc import Callable, Mapping, Sequence
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
    Next-token prediction: the labels are the inputs (the model shifts them), except padding and each document's first
    token, which has no context.
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
        tokenizer: Provides the mask token, the special tokens (never chosen) and the starts of words.
        rate: Share of a row's tokens to choose, as a number or a function of the rows' numbers. Wettig et al.
            (https://huggingface.co/papers/2202.08005) found more than BERT's 15 % to be better.
        unit: `token`; `word`, all pieces of a word at once; or `span`, runs of words whose number is drawn from a
            geometric distribution over 1 to 10, p = 0.2, with mean 3.8 (Joshi et al. 2020,
            https://huggingface.co/papers/1907.10529).
        seed: The chosen tokens of row `r` depend on `(seed, r)` alone.
        compact: Return the labels of the chosen tokens alone, with their positions as `masked_positions`, for models
            that take these (ours): the output layer then computes predicted tokens only.

    Attributes:
        weights: `(vocabulary,)`, how readily a token is chosen, relative to the others of its row; a word or span has
            the mean weight of its tokens. None: all alike.

    Raises:
        InputError: The tokenizer has no mask token, or the rate is not between 0 and 1.
    """

    tokenizer: PreTrainedTokenizerBase
    rate: float | Callable[[np.ndarray], np.ndarray] = 0.15
    unit: Literal["token", "word", "span"] = "token"
    seed: int = 0
    compact: bool = False
    weights: np.ndarray | None = field(default=None, init=False, repr=False)
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
        """Returns `input_ids`, `labels` (-100 where nothing is predicted) and the batch's other inputs of a model."""
        input_ids, rows = batch["input_ids"], batch["rows"]
        chosen = self.choose(batch)
        fate = uniform(self.seed, rows, input_ids.shape[1], stream=0)
        drawn = _draw(self._ordinary, uniform(self.seed, rows, input_ids.shape[1], stream=1))
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
        Returns the tokens to predict, `(batch, length)` bool. Their number in a row is the rate times the row's tokens,
        randomly rounded up or down; the last word or span may be chosen in part.
        """
        input_ids, rows = batch["input_ids"], batch["rows"]
        candidates = ~self.special[input_ids] & (batch["sequence_ids"] > 0)
        share = candidates.sum(1) * (self.rate(rows) if callable(self.rate) else self.rate)
        num_chosen = np.floor(share + uniform(self.seed, rows, 1, stream=2)[:, 0]).astype(int)
        if isinstance(self.rate, DrawnRate):
            num_chosen = num_chosen.clip(min=1)  # also in a row whose rate is near 0

        priority = uniform(self.seed, rows, input_ids.shape[1], stream=3)
        if self.unit != "token":
            starts = self._starts_word[input_ids] | (batch["position_ids"] == 0) | ~candidates
            if self.unit == "span":
                starts = self._span_starts(starts, rows) | (batch["position_ids"] == 0)  # no span leaves its text
            # Every token of a unit has the priority of its first one.
            first = np.maximum.accumulate(np.where(starts, np.arange(input_ids.shape[1]), 0), axis=1)
            priority = np.take_along_axis(priority, first, axis=1)
        if self.weights is not None:
            # The smallest of exponential variables with these rates (Efraimidis and Spirakis 2006).
            weights = self.weights[input_ids]
            priority = -np.log1p(-priority) / (weights if self.unit == "token" else _mean_of_units(weights, first))
        order = np.argsort(np.where(candidates, priority, np.inf), axis=1, kind="stable")
        chosen = np.zeros(input_ids.shape, bool)
        np.put_along_axis(chosen, order, np.arange(input_ids.shape[1]) < num_chosen[:, None], axis=1)
        return chosen & candidates

    def _span_starts(self, starts: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Returns the word starts that begin a span, `(batch, length)` bool."""
        words = np.cumsum(starts, axis=1) - 1
        draws = uniform(self.seed, rows, starts.shape[1], stream=4)
        lengths = np.ceil(np.log1p(-draws * (1 - 0.8**10)) / np.log(0.8)).clip(1, 10)
        firsts = np.zeros((len(starts), starts.shape[1] + 1), bool)
        positions = np.cumsum(lengths, axis=1) - lengths
        np.put_along_axis(firsts, np.minimum(positions, starts.shape[1]).astype(int), True, axis=1)
        return starts & np.take_along_axis(firsts, np.maximum(words, 0), axis=1)


def _mean_of_units(values: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Return at each token the mean of the values of its unit, `(batch, length)`, from the unit's first column."""
    rows = np.arange(len(values))[:, None]
    sums, sizes = np.zeros(values.shape), np.zeros(values.shape)
    np.add.at(sums, (rows, first), values)
    np.add.at(sizes, (rows, first), 1)
    return sums[rows, first] / sizes[rows, first]


@dataclass
class Hybrid:
    """
    Next-token prediction in some batches and masked-token prediction in the others, by one set of weights: a masked
    token is predicted at the token before it, with the whole text visible (GPT-BERT,
    https://huggingface.co/papers/2410.24159).

    Args:
        masked: The masked-token objective.
        share: Share of masked batches, spread evenly over the run.
        parts: Number of processes times accumulated batches that share the rows of a step; all of them derive the
            step's number from their rows.
    """

    masked: Masked
    share: float
    parts: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise InputError(f"the share of masked batches must lie between 0 and 1, not {self.share}")

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Returns the inputs of [`causal`], or masked `input_ids` with `labels` and `is_causal=False`."""
        number = int(batch["rows"].min()) // (len(batch["rows"]) * self.parts)
        if int((number + 1) * self.share) == int(number * self.share):
            return causal(batch)
        return masked_next_token(self.masked, batch)


def masked_next_token(masked: Masked, batch: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns a masked batch for a causal LM, whose loss shifts labels by one token."""
    inputs = masked(batch)
    labels = inputs["labels"].masked_fill(inputs["position_ids"] == 0, IGNORED)  # no token precedes these
    return {**inputs, "labels": labels, "is_causal": False}


@dataclass
class TokenNoise:
    """
    Replaces a share of the input tokens by random ones and leaves the labels alone: a regularizer for text that is
    read many times (Xie et al. 2017, https://huggingface.co/papers/1703.02573). Special tokens stay, and so do batches
    of masked tokens.

    Args:
        objective: Next-token prediction: [`causal`], or [`Hybrid`].
        tokenizer: Provides the special tokens.
        share: Share of the tokens to replace.
        seed: The replaced tokens of row `r` depend on `(seed, r)` alone, so each pass over the text has others.
    """

    objective: Callable[[dict[str, np.ndarray]], dict[str, Any]]
    tokenizer: PreTrainedTokenizerBase
    share: float
    seed: int = 0
    _ordinary: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise InputError(f"the share of replaced tokens must lie between 0 and 1, not {self.share}")
        self._ordinary = np.setdiff1d(np.arange(len(self.tokenizer)), self.tokenizer.all_special_ids)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Returns the inputs of the objective with other `input_ids`."""
        inputs = self.objective(batch)
        if "is_causal" in inputs:
            return inputs
        input_ids, rows = batch["input_ids"], batch["rows"]
        chosen = uniform(self.seed, rows, input_ids.shape[1], stream=6) < self.share
        chosen &= ~np.isin(input_ids, self.tokenizer.all_special_ids)
        drawn = _draw(self._ordinary, uniform(self.seed, rows, input_ids.shape[1], stream=7))
        noisy = np.where(chosen, drawn, input_ids)
        return {**inputs, **_tensors(input_ids=noisy)}


def uniform(seed: int, rows: np.ndarray, columns: int, stream: int) -> np.ndarray:
    """
    Returns random numbers in [0, 1), `(rows, columns)`, each a function of `(seed, row, column, stream)`: the mixing
    function of SplitMix64 (Steele et al. 2014) applied to a counter, so that no row needs its own generator.
    """
    with np.errstate(over="ignore"):
        key = _mix(np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(stream + 1))
        row_keys = _mix(rows.astype(np.uint64)[:, None] + key)
        mixed = _mix(row_keys + np.arange(columns, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return (mixed >> np.uint64(11)) * 2.0**-53


def _draw(ids: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Returns one of `ids` for each random number in [0, 1)."""
    return ids[(numbers * len(ids)).astype(int)]


def _mix(x: Any) -> Any:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass
class CausalFirst:
    """
    Next-token prediction before masked-token prediction, for an encoder: at first every token is predicted and none is
    missing, which shortens the long plateau of masked prediction (Gisserot-Boukhlef et al. 2025,
    https://huggingface.co/papers/2507.00994). In this phase attention is causal, in every layer, within a document.

    Args:
        masked: The objective of the later rows.
        rows: Number of the run's first rows that predict the next token; a multiple of the rows of a step.
    """

    masked: Masked
    rows: int

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """Returns the inputs of `Masked`; at first, next-token labels and a causal `attention_mask`."""
        if batch["rows"].min() >= self.rows:
            return self.masked(batch)
        input_ids, documents = batch["input_ids"], batch["sequence_ids"]
        next_ids = np.pad(input_ids[:, 1:], ((0, 0), (0, 1)))
        same_document = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] > 0)
        predicted = np.pad(same_document, ((0, 0), (0, 1))) & ~self.masked.special[next_ids]
        labels = np.where(predicted, next_ids, IGNORED)
        labels = compact_labels(labels) if self.masked.compact else {"labels": labels}
        inputs = _tensors(input_ids=input_ids, position_ids=batch["position_ids"], **labels)
        mask = (documents[:, :, None] == documents[:, None, :]) & np.tri(documents.shape[1], dtype=bool)
        return {**inputs, "attention_mask": torch.from_numpy(mask[:, None])}


def spread_labels(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns inputs whose labels have the shape of `input_ids`: the inverse of `compact_labels`."""
    spread = {name: value for name, value in inputs.items() if name != "masked_positions"}
    if "masked_positions" in inputs:
        chosen = inputs["labels"] != IGNORED
        labels = torch.full_like(inputs["input_ids"], IGNORED)
        labels.view(-1)[inputs["masked_positions"][chosen]] = inputs["labels"][chosen]
        spread["labels"] = labels
    return spread


def compact_labels(labels: np.ndarray) -> dict[str, np.ndarray]:
    """
    Returns the labels of the predicted tokens alone and their flat positions as `masked_positions`, from `(batch,
    length)` labels; padded to a multiple of 64, so that compiled code meets few shapes.
    """
    positions = np.flatnonzero(labels != IGNORED)
    missing = -len(positions) % 64
    return {
        "labels": np.pad(labels.ravel()[positions], (0, missing), constant_values=IGNORED),
        "masked_positions": np.pad(positions, (0, missing)),
    }


@dataclass(frozen=True)
class RateSchedule:
    """
    A masking rate that changes linearly from one of `rates` to the next, evenly spread from row 0 to row `rows`.

    >>> RateSchedule([0.3, 0.15, 0.05], rows=1000)(np.array([0, 250, 500, 1000]))
    array([0.3  , 0.225, 0.15 , 0.05 ])
    """

    rates: Sequence[float]
    rows: int

    def __post_init__(self) -> None:
        if not self.rates or not all(0 < rate < 1 for rate in self.rates):
            raise InputError(f"masking rates must lie between 0 and 1, not {', '.join(map(str, self.rates))}")

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        return np.interp(rows, np.linspace(0, max(self.rows, 1), len(self.rates)), self.rates)


@dataclass(frozen=True)
class DrawnRate:
    """
    A masking rate drawn for each row between `low` and `high`, for all documents packed into it; at least one token is
    chosen. With the range from 0 to 1 a masked LM learns to generate from nearly nothing, as masked-diffusion models do
    (Nie et al. 2025, https://huggingface.co/papers/2502.09992). As always, a tenth of the chosen tokens stays and a
    tenth becomes random.
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
    return {name: torch.from_numpy(np.array(array, dtype=np.int64)) for name, array in arrays.items()}
