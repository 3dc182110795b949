"""The batches of a run: rows of a step, shared by processes, at the lengths of a schedule."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..core.errors import InputError


Batch = dict[str, np.ndarray]


def shorten(batch: Batch, length: int) -> Batch:
    """Cuts each row into rows of `length` tokens, which must divide the rows' length. No token is lost."""
    rows, full_length = batch["input_ids"].shape
    pieces = full_length // length
    if full_length % length:
        raise InputError(f"rows of {full_length} tokens cannot be cut into rows of {length}; it has to divide them")
    names = ("input_ids", "position_ids", "sequence_ids", "token_numbers")
    cut = {name: batch[name].reshape(-1, length) for name in names}
    # A piece that continues from the previous row starts again at 0; one that starts within the row keeps its
    # positions.
    columns = np.arange(length)
    position_ids = cut["position_ids"]
    cut["position_ids"] = np.where(position_ids == position_ids[:, :1] + columns, columns, position_ids)
    cut["num_tokens"] = np.count_nonzero(cut["sequence_ids"], axis=1)
    shares = batch["num_bytes"][:, None] * np.arange(pieces + 1) // pieces
    cut["num_bytes"] = np.diff(shares, axis=1).reshape(-1)
    cut["rows"] = (batch["rows"][:, None] * pieces + np.arange(pieces)).reshape(-1)
    return cut


def own_rows(step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> np.ndarray:
    """Returns the numbers of the rows that one of many processes has in the batch of a step."""
    if batch_size % world_size:
        raise InputError(f"a batch of {batch_size} rows cannot be shared evenly by {world_size} processes")
    per_process = batch_size // world_size
    return np.arange(per_process) + (step * batch_size + rank * per_process)


@dataclass(frozen=True)
class LengthSchedule:
    """
    Short rows first: steps are cheaper while a model learns patterns of short range.

    Args:
        phases: `((0.0, 128), (0.3, 256))` means rows of 128 tokens from the start and of 256 after 30 % of the steps.
            The number of tokens of a batch stays the same.
        block_length: Length of the rows before they are cut.
    """

    phases: Sequence[tuple[float, int]]
    block_length: int

    def __post_init__(self) -> None:
        starts = [start for start, _ in self.phases]
        if not starts or starts[0] != 0 or sorted(set(starts)) != starts or starts[-1] >= 1:
            raise InputError(f"length schedule {self.phases}: phases must start at 0.0 and rise, below 1.0")
        for _, length in self.phases:
            if length < 1 or self.block_length % length:
                raise InputError(f"length schedule: {length} does not divide the block length, {self.block_length}")

    def length(self, progress: float) -> int:
        """Returns the length of rows when this share of the steps is done."""
        return [length for start, length in self.phases if start <= progress][-1]


class StepBatches(Dataset[dict[str, Any]]):
    """
    A run's batches as a dataset whose item i is the batch of step i, for a `DataLoader` or transformers' Trainer.

    With gradient accumulation a step here is a micro step: `num_steps` counts all of them, and `batch_size` is the size
    of one. The rows are the same however a batch is split into micro steps and processes.

    Args:
        make: Rows by their numbers in the run: `PackedBlocks.rows`.
        batch_size: Rows of a step, over all processes, before a schedule cuts them.
        num_steps: Number of steps of the run.
        schedule: Lengths of rows; by default those of `make`.
        planned_step: Maps a step to the one whose length it has, in a run whose plan may change.
        transform: The objective, which turns a batch into the inputs of the model.
        accumulation: Micro steps of an optimizer step, all of which have rows of one length.
        rank, world_size: Number of this process and of all processes; each gets its part of the rows.
    """

    def __init__(
        self,
        make: Callable[[np.ndarray], Batch],
        batch_size: int,
        num_steps: int,
        *,
        accumulation: int = 1,
        schedule: LengthSchedule | None = None,
        planned_step: Callable[[int], float] | None = None,
        transform: Callable[[Batch], dict[str, Any]] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.make, self.num_steps, self.schedule, self.transform = make, num_steps, schedule, transform
        self.accumulation, self.planned_step = accumulation, planned_step
        self.split = functools.partial(own_rows, batch_size=batch_size, rank=rank, world_size=world_size)
        self.split(0)  # raises now rather than at the first step

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        if not 0 <= step < self.num_steps:
            raise IndexError(step)
        batch = self.make(self.split(step))
        if self.schedule is not None:
            first_micro_step = step // self.accumulation * self.accumulation
            planned = first_micro_step if self.planned_step is None else self.planned_step(first_micro_step)
            batch = shorten(batch, self.schedule.length(planned / self.num_steps))
        if self.transform is not None:
            batch = self.transform(batch)
        return {name: torch.from_numpy(rows) if isinstance(rows, np.ndarray) else rows for name, rows in batch.items()}

    def loader(self, start: int = 0, **kwargs: Any) -> DataLoader[dict[str, Any]]:
        """
        Returns a loader of the batches of steps `start`, `start + 1`, …; `kwargs` as for `DataLoader`.

        In a Trainer, return it from `get_train_dataloader` without preparing it by accelerate, because the rows are
        already those of this process. A resumed Trainer skips the steps that are done without making their batches.
        """
        return DataLoader(self, batch_size=1, sampler=range(start, len(self)), collate_fn=_only, **kwargs)


def _only(items: list[Any]) -> Any:
    (item,) = items
    return item
