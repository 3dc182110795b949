"""Batches of encoded records: their lengths, padding, and order in training and evaluation."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase
from transformers.data.data_collator import pad_without_fast_tokenizer_warning
from transformers.trainer_pt_utils import LengthGroupedSampler


# The label of a token that is not predicted.
IGNORED = -100
# Tensor cores want such lengths; on a CPU short texts would take a fifth longer.
PAD_TO_MULTIPLE_OF = 8 if torch.accelerator.is_available() else None


def length_of(record: Mapping[str, Any]) -> int:
    """Returns the number of tokens of an encoded record; of its longest row if it has several."""
    rows = record["input_ids"]
    return max(map(len, rows)) if isinstance(rows[0], list) else len(rows)


def in_order(predictions: np.ndarray, records: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Returns predictions, made in the order of `longest_first`, in the order of the encoded records."""
    ordered = np.empty_like(predictions)
    ordered[longest_first(records)] = predictions
    return ordered


def longest_first(records: Sequence[Mapping[str, Any]]) -> list[int]:
    """Returns record numbers, the longest record first, so that a batch too large for the memory fails at once."""
    return sorted(range(len(records)), key=lambda number: -length_of(records[number]))


@dataclass
class RightPadding:
    """
    A collator that pads on the right, whatever the tokenizer's side, because labels may be columns of the row.

    `labels` may be a list with an entry for each token, padded with -100, or values of the same shape in all records.
    Records of several rows (the options of a choice) become `(records, options, length)`; where a record has fewer
    options than another, its last one is repeated.
    """

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, records: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        names = [name for name in records[0] if name != "labels"]
        rows = [{name: record[name] for name in names} for record in records]
        has_options = isinstance(rows[0]["input_ids"][0], list)
        if has_options:
            num_options = max(len(row["input_ids"]) for row in rows)
            rows = [
                {name: row[name][min(i, len(row[name]) - 1)] for name in names}
                for row in rows
                for i in range(num_options)
            ]
        batch = dict(
            pad_without_fast_tokenizer_warning(
                self.tokenizer, rows, pad_to_multiple_of=PAD_TO_MULTIPLE_OF, padding_side="right", return_tensors="pt"
            )
        )
        if has_options:
            batch = {name: tensor.unflatten(0, (-1, num_options)) for name, tensor in batch.items()}
        if "labels" in records[0]:
            labels = [record["labels"] for record in records]
            if isinstance(labels[0], list):
                length = batch["input_ids"].shape[-1]
                labels = [row + [IGNORED] * (length - len(row)) for row in labels]
            batch["labels"] = torch.tensor(labels)
        return batch


class SeededLengthGroups(LengthGroupedSampler):
    """Samples record numbers so that a batch has similar lengths; the order depends on seed and epoch alone."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths, generator=torch.Generator())
        self.seed = seed
        self.epoch = 0

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(1_000_003 * self.seed + self.epoch)
        return super().__iter__()
