"""
The blocks of a store or a stream by their running numbers, pass by pass.

    pass 0      3 1 4 0 2 | pass 1   2 0 3 1 | pass 2   …
    number      0 1 2 3 4            5 6 7 8            …

Each pass has a plan of its own, which cuts and packs the documents anew, and an order of its own, which is evaluated
for the numbers of a batch alone.
"""

import bisect
import contextlib
import functools
import json
import math
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from .packing_plan import BlockPlan
from .step_batches import Batch
from .tokens import TokenStore, TokenStream


_PAGE = 256


def assemble(
    tokens: np.ndarray,
    plan: BlockPlan,
    blocks: np.ndarray,
    pad_token_id: int,
    piece_ids: tuple[int, int] | None = None,
) -> Batch:
    """
    Returns blocks as arrays.

    Args:
        tokens: A store's tokens.
        blocks: Numbers of blocks in the plan, (batch,).
        piece_ids: Two ids to put around each piece; the plan must have been made with `extra=2`.

    Returns:
        `input_ids`, `position_ids`, `sequence_ids` and `token_numbers`, each (batch, length) int64, and `num_tokens`
        and `num_bytes` of text, each (batch,) int64. Positions start at 0 in each piece, in the padding too.
        `sequence_ids` numbers the pieces of a row from 1 and is 0 in padding: recognise padding by it, never by its id.
        `token_numbers` says which of the store's tokens it is, -1 for padding and `piece_ids`.
    """
    first, last = plan.offsets[blocks], plan.offsets[blocks + 1]
    counts = last - first
    row_starts = np.cumsum(counts) - counts  # of each row's first segment among all segments of the batch
    within = np.arange(counts.sum()) - np.repeat(row_starts, counts)
    segments = np.repeat(first, counts) + within
    starts, lengths = plan.starts[segments], plan.lengths[segments]
    begins = np.cumsum(lengths) - lengths

    position_ids = np.arange(len(blocks) * int(lengths[: counts[0]].sum())) - np.repeat(begins, lengths)
    sequence_ids = np.repeat(np.where(starts < 0, 0, within + 1), lengths)
    num_before = 0 if piece_ids is None else 1
    token_numbers = np.repeat(starts - num_before, lengths) + position_ids
    # Padding reads arbitrary tokens, which are overwritten below.
    input_ids = tokens.take(token_numbers, mode="clip").astype(np.int64)
    if piece_ids is not None:
        ends = begins + lengths - 1
        input_ids[begins], input_ids[ends] = piece_ids
        token_numbers[begins] = token_numbers[ends] = -1
    is_padding = sequence_ids == 0
    input_ids[is_padding], token_numbers[is_padding] = pad_token_id, -1

    shape = (len(blocks), -1)
    sequence_ids = sequence_ids.reshape(shape)
    return {
        "input_ids": input_ids.reshape(shape),
        "position_ids": position_ids.reshape(shape),
        "sequence_ids": sequence_ids,
        "token_numbers": token_numbers.reshape(shape),
        "num_tokens": np.count_nonzero(sequence_ids, axis=1),
        "num_bytes": np.add.reduceat(plan.byte_counts[segments], row_starts, dtype=np.int64),
    }


def permute(numbers: np.ndarray, size: int, seed: tuple[int, ...]) -> np.ndarray:
    """
    Returns some numbers under a random permutation of `range(size)`, without computing the others: a Feistel network.

    The network permutes the next power of two; numbers outside of `size` are permuted again until they are inside
    (cycle walking; Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
    """
    bits = max(6, (size - 1).bit_length())  # a network of fewer bits mixes badly
    low_width, high_width = np.uint64(bits // 2), np.uint64(bits - bits // 2)
    low_mask = (np.uint64(1) << low_width) - np.uint64(1)
    result = numbers.astype(np.uint64)
    outside = np.arange(len(numbers))
    while len(outside):
        x = result[outside]
        high, low = x >> low_width, x & low_mask
        for add, multiply in _round_keys(seed):
            high ^= ((low + add) * multiply) >> (np.uint64(64) - high_width)
            low ^= ((high + multiply) * add) >> (np.uint64(64) - low_width)
        result[outside] = x = (high << low_width) | low
        outside = outside[x >= size]
    return result.astype(np.int64)


@functools.lru_cache(maxsize=64)
def _round_keys(seed: tuple[int, ...]) -> list[tuple[np.uint64, np.uint64]]:
    keys = np.random.default_rng(seed).integers(1 << 63, size=(3, 2), dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    return [tuple(pair) for pair in keys]


@functools.lru_cache(maxsize=64)
def _block_order(size: int, seed: tuple[int, ...], page: int) -> np.ndarray:
    """Returns a page of a permutation of blocks, (up to `_PAGE`,); many at once cost hardly more than one."""
    return permute(np.arange(page * _PAGE, min((page + 1) * _PAGE, size)), size, seed)


class StoreBlocks:
    """
    The blocks of one store, numbered consecutively over the epochs, each of which has its own plan and order.

    Args:
        make_plan: `BlockPlan.of` with its settings.
        first_pass: Number of the first pass over the text.
        copies: Number of passes in an epoch.
    """

    def __init__(
        self,
        store: TokenStore,
        make_plan: Callable[..., BlockPlan],
        seed: tuple[int, ...],
        first_pass: int = 0,
        copies: int = 1,
        **layout: Any,
    ):
        self.store, self.make_plan, self.seed, self.layout = store, make_plan, seed, layout
        self.first_pass, self.copies = first_pass, copies
        self.plans: dict[int, BlockPlan] = {}  # of the epoch that is read, and of its neighbours
        self.firsts, self.tokens = [0], [0]  # numbers of blocks and tokens before each known epoch
        self._epoch(0)

    def __len__(self) -> int:
        """Number of blocks of the first epoch."""
        return self.firsts[1]

    def plan(self, epoch: int) -> BlockPlan:
        """Returns the plan of an epoch."""
        if epoch not in self.plans:
            first = self.first_pass + epoch * self.copies
            plan = self.make_plan(self.store, passes=range(first, first + self.copies), seed=self.seed)
            neighbours = {number: self.plans[number] for number in (epoch - 1, epoch + 1) if number in self.plans}
            self.plans = {**neighbours, epoch: plan}
        return self.plans[epoch]

    def _epoch(self, number: int) -> int:
        """Returns the epoch of a block; epochs up to there are planned once, to know how many blocks they have."""
        while self.firsts[-1] <= number:
            plan = self.plan(len(self.firsts) - 1)
            self.firsts.append(self.firsts[-1] + len(plan))
            self.tokens.append(self.tokens[-1] + int(plan.filled().sum()))
        return bisect.bisect_right(self.firsts, number) - 1

    def rows(self, numbers: np.ndarray) -> Batch:
        """Returns blocks by their running numbers, (batch,), ascending."""
        parts = []
        while len(numbers):
            epoch = self._epoch(int(numbers[0]))
            plan, seed = self.plan(epoch), (*self.seed, epoch)
            inside = numbers[numbers < self.firsts[epoch + 1]] - self.firsts[epoch]
            pages = inside // _PAGE
            blocks = [
                _block_order(len(plan), seed, page)[inside[pages == page] - page * _PAGE]
                for page in range(int(pages[0]), int(pages[-1]) + 1)
            ]
            parts.append(assemble(self.store.tokens, plan, np.concatenate(blocks), **self.layout))
            numbers = numbers[len(inside) :]
        return _join(parts)

    def passes(self, num_blocks: float) -> float:
        """Returns the number of passes over the text in the first `num_blocks` blocks."""
        epoch = self._epoch(max(0, math.ceil(num_blocks) - 1))
        return self.copies * (epoch + (num_blocks - self.firsts[epoch]) / len(self.plan(epoch)))

    def count_tokens(self, num_blocks: int) -> int:
        """Returns the number of tokens of the first `num_blocks` blocks, without padding."""
        epoch = self._epoch(max(0, num_blocks - 1))
        filled = self.plan(epoch).filled()
        blocks = permute(np.arange(num_blocks - self.firsts[epoch]), len(filled), (*self.seed, epoch))
        return self.tokens[epoch] + int(filled[blocks].sum())


def _join(parts: list[Batch]) -> Batch:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class StreamBlocks:
    """
    The blocks of a stream: those of its first window, then those of the next, shuffled and packed within each.

    The start of each window is noted in a file when it becomes known. The notes only save reading from the beginning: a
    process gets the same rows with and without them.
    """

    def __init__(
        self,
        stream: TokenStream,
        make_plan: Callable[..., BlockPlan],
        key: str,
        seed: tuple[int, ...],
        **layout: Any,
    ):
        self.stream, self.make_plan, self.seed, self.layout = stream, make_plan, seed, layout
        self.firsts = [0]  # number of each known window's first block
        self.positions: list[dict[str, Any] | None] = [None]
        self.notes = stream.cache_dir / "streams" / f"{stream.key()}-{key}.jsonl"
        if self.notes.exists():
            with contextlib.suppress(ValueError):  # a process was killed while it wrote the last line
                for line in self.notes.read_text().splitlines():
                    self._learn(**json.loads(line))
        self.process: int | None = None
        self.worker: ThreadPoolExecutor | None = None
        self.windows: dict[int, Future[StoreBlocks]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "process": None, "worker": None, "windows": {}}

    def _learn(self, window: int, first: int, position: dict[str, Any] | None) -> bool:
        """Stores the start of the next window; returns False if it was known."""
        if window != len(self.firsts):
            return False
        self.positions.append(position)
        self.firsts.append(first)
        return True

    def rows(self, numbers: np.ndarray) -> Batch:
        """Returns blocks by their running numbers, (batch,), ascending."""
        parts = []
        while len(numbers):
            index = bisect.bisect_right(self.firsts, int(numbers[0])) - 1
            window = self._window(index)
            inside = numbers - self.firsts[index]
            in_window = inside < len(window)
            if in_window.any():
                parts.append(window.rows(inside[in_window]))
            numbers = numbers[~in_window]
        return _join(parts)

    def _window(self, index: int) -> StoreBlocks:
        if self.process != os.getpid():  # neither threads nor positions in open files survive a fork
            self.stream.close()
            self.process, self.worker, self.windows = os.getpid(), ThreadPoolExecutor(1), {}
        assert self.worker is not None
        # The next window is made while this one is used.
        self.windows = {
            number: self.windows.get(number) or self.worker.submit(self._make_window, number)
            for number in (index, index + 1)
        }
        return self.windows[index].result()

    def _make_window(self, index: int) -> StoreBlocks:
        store, following = self.stream.read_window(self.positions[index])
        first_pass = self.positions[1 : index + 1].count(None)
        blocks = StoreBlocks(store, self.make_plan, (*self.seed, index), first_pass, **self.layout)
        note: dict[str, Any] = {"window": index + 1, "first": self.firsts[index] + len(blocks), "position": following}
        if self._learn(**note):
            with contextlib.suppress(OSError):  # a full disk: the notes save time and decide nothing
                self.notes.parent.mkdir(parents=True, exist_ok=True)
                with open(self.notes, "a") as file:
                    file.write(json.dumps(note) + "\n")
        return blocks
