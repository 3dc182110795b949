"""
A teacher's outputs for each distinct row of a student's data.

They are computed once, and memory-mapped from the cache on disk under a hash of the teacher and the rows.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..core.inference import evaluation_mode
from ..core.limits import refuse_diverged
from ..data.cache import digest, open_arrays, write_arrays
from .soft_labels import pad_logits, token_mask
from .task import Task


_BATCH_SIZE = 64
Row = Mapping[str, Any]
Collator = Callable[[Sequence[Row]], dict[str, torch.Tensor]]


def inputs_of(row: Row) -> dict[str, Any]:
    """Return an encoded row without its labels."""
    return {name: values for name, values in row.items() if name != "labels"}


def row_key(row: Row) -> str:
    """Return a hash of the inputs of an encoded row."""
    return hashlib.blake2b(json.dumps(inputs_of(row), sort_keys=True).encode(), digest_size=16).hexdigest()


@dataclass
class TeacherOutputs:
    """
    A teacher's outputs for rows.

    Attributes:
        task: knows the shape of a row's logits.
        numbers: the number of a row by its [`row_key`].
        logits: of all rows one after another, flat.
        logit_ends: where the logits of each row end.
        states: last hidden states of all tokens one after another, `(tokens, width)`; None if they are not wanted.
        token_ends: where the tokens of each row end.
    """

    task: Task[Any]
    numbers: dict[str, int]
    logits: np.ndarray
    logit_ends: np.ndarray
    states: np.ndarray | None
    token_ends: np.ndarray

    def __contains__(self, row: Row) -> bool:
        return row_key(row) in self.numbers

    def batch(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Return `soft_labels`, logits `(batch, outputs, classes)`, and `teacher_states` `(tokens, width)` of rows."""
        numbers = [self.numbers[row_key(row)] for row in rows]
        logits = [_part(self.logits, self.logit_ends, number) for number in numbers]
        heights = (self.task.soft_shape(row)[0] for row in rows)
        batch = {"soft_labels": pad_logits([flat.reshape(height, -1) for flat, height in zip(logits, heights)])}
        if self.states is not None:
            states = np.concatenate([_part(self.states, self.token_ends, number) for number in numbers])
            batch["teacher_states"] = torch.from_numpy(states)
        return batch


def _part(array: np.ndarray, ends: np.ndarray, number: int) -> np.ndarray:
    return array[ends[number - 1] if number else 0 : ends[number]]


def cached_outputs(
    model: PreTrainedModel,
    task: Task[Any],
    collate: Collator,
    rows: Mapping[str, Row],
    with_states: bool,
    bf16: bool,
    fingerprint: str,
    cache_dir: Path,
) -> TeacherOutputs:
    """
    Return a teacher's outputs for rows, from the cache if they are there.

    Args:
        collate: makes a batch of rows.
        rows: encoded for the teacher, by the keys of the student's rows of the same texts; similar lengths together.
        with_states: whether the last hidden states are wanted.
        bf16: whether the teacher computes in bf16.
        fingerprint: hash of the teacher's weights, configuration and tokenizer.
    """
    content = digest([fingerprint, bf16, with_states, [row_key(row) for row in rows.values()]])
    folder = cache_dir / "teachers" / content
    write_arrays(folder, _compute(model, task, collate, list(rows.values()), with_states, bf16), {})
    arrays, _ = open_arrays(folder)
    token_ends = np.cumsum(arrays["token_counts"])
    states = arrays["states"].reshape(int(token_ends[-1]), -1) if with_states else None
    numbers = {key: number for number, key in enumerate(rows)}
    return TeacherOutputs(task, numbers, arrays["logits"], np.cumsum(arrays["logit_counts"]), states, token_ends)


def _compute(
    model: PreTrainedModel, task: Task[Any], collate: Collator, rows: Sequence[Row], with_states: bool, bf16: bool
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the arrays of [`TeacherOutputs`] batch after batch."""
    device = model.device
    for start in tqdm(range(0, len(rows), _BATCH_SIZE), desc="teacher", unit="batch", leave=False, disable=None):
        batch_rows = rows[start : start + _BATCH_SIZE]
        batch = send_to_device(collate([inputs_of(row) for row in batch_rows]), device)
        with evaluation_mode(model), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            outputs = model(**batch, output_hidden_states=with_states)
        shapes = [task.soft_shape(row) for row in batch_rows]
        values = task.soft_outputs(outputs).cpu()
        refuse_diverged(values)
        logits = [table[:height, :width].numpy() for table, (height, width) in zip(values, shapes)]
        tokens = token_mask(batch["attention_mask"], pad_logits(logits).to(device))
        arrays = {
            "logits": np.concatenate([table.ravel() for table in logits]),
            "logit_counts": np.array([table.size for table in logits]),
            "token_counts": tokens.sum(-1).view(len(batch_rows), -1).sum(-1).cpu().numpy(),
        }
        if with_states:
            arrays["states"] = outputs["hidden_states"][-1][tokens].half().cpu().numpy().ravel()
        yield arrays
