"""
Packs blocks into batches that are a pure function of (seed, step).

    blocks      AAAAAA | AAAADD | CCCC·· | …     from `packing_plan`
    positions   012345 | 012301 | 012301 | …     start again with every piece, so that none sees its neighbour

A batch is a few numbers of blocks, from a permutation that is evaluated for these alone, and one gather from
memory-mapped tokens. There is no state: a run resumes at any step immediately, and each process computes its own rows
of the batch.
"""

import bisect
import contextlib
import functools
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerFast

from .packing_plan import PLAN_LAYOUT, BlockPlan
from .sources import parse_sources
from .step_batches import Batch, own_rows, shorten
from .tokens import TokenStore, TokenStream, piece_ends


# A mixture's sources take turns by a table of about so many entries, so that shares are exact to 1 in 10,000.
_TURNS = 1 << 14

# A store of fewer blocks has more than a hundredth of padding in its last one.
_FEW_BLOCKS = 100

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


class _StoreBlocks:
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
        self.plans: dict[int, BlockPlan] = {}  # of the two epochs that were read last
        self.firsts, self.tokens = [0], [0]  # numbers of blocks and tokens before each known epoch
        self._locate(0)

    def __len__(self) -> int:
        """Number of blocks of the first epoch."""
        return self.firsts[1]

    def plan(self, epoch: int) -> BlockPlan:
        """Returns the plan of an epoch."""
        plan = self.plans.pop(epoch, None)
        if plan is None:
            first = self.first_pass + epoch * self.copies
            plan = self.make_plan(self.store, passes=range(first, first + self.copies), seed=self.seed)
        self.plans = {**dict(list(self.plans.items())[-1:]), epoch: plan}
        return plan

    def _locate(self, number: int) -> tuple[int, int]:
        """Returns the epoch of a block and its number in that; epochs up to there are planned when first needed."""
        while self.firsts[-1] <= number:
            plan = self.plan(len(self.firsts) - 1)
            self.firsts.append(self.firsts[-1] + len(plan))
            self.tokens.append(self.tokens[-1] + int(plan.filled().sum()))
        epoch = bisect.bisect_right(self.firsts, number) - 1
        return epoch, number - self.firsts[epoch]

    def rows(self, numbers: np.ndarray) -> Batch:
        """Returns blocks by their running numbers, (batch,), ascending."""
        parts = []
        while len(numbers):
            epoch, _ = self._locate(int(numbers[0]))
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
        epoch, rest = self._locate(max(0, math.ceil(num_blocks) - 1))
        return self.copies * (epoch + (num_blocks - self.firsts[epoch]) / len(self.plan(epoch)))

    def count_tokens(self, num_blocks: int) -> int:
        """Returns the number of tokens of the first `num_blocks` blocks, without padding."""
        epoch, last = self._locate(max(0, num_blocks - 1))
        filled = self.plan(epoch).filled()
        blocks = permute(np.arange(num_blocks - self.firsts[epoch]), len(filled), (*self.seed, epoch))
        return self.tokens[epoch] + int(filled[blocks].sum())


def _join(parts: list[Batch]) -> Batch:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


class _StreamBlocks:
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
        self.windows: dict[int, Future[_StoreBlocks]] = {}

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

    def _window(self, index: int) -> _StoreBlocks:
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

    def _make_window(self, index: int) -> _StoreBlocks:
        store, following = self.stream.read_window(self.positions[index])
        first_pass = self.positions[1 : index + 1].count(None)
        blocks = _StoreBlocks(store, self.make_plan, (*self.seed, index), first_pass, **self.layout)
        note: dict[str, Any] = {"window": index + 1, "first": self.firsts[index] + len(blocks), "position": following}
        if self._learn(**note):
            with contextlib.suppress(OSError):  # a full disk: the notes save time and decide nothing
                self.notes.parent.mkdir(parents=True, exist_ok=True)
                with open(self.notes, "a") as file:
                    file.write(json.dumps(note) + "\n")
        return blocks


class PackedBlocks:
    """
    Batches of packed documents, each a pure function of (seed, step).

    Args:
        stores: A store or a stream, or several for a mixture.
        block_length: Tokens of a block.
        seed: Seed of the order of the blocks.
        pad_token_id: Id of padding. `sequence_ids` marks padding, so other tokens may have this id too.
        weights: Share of the tokens of each store, relative to the others; equal by default.
        piece_ids: Two ids, such as cls and sep, to put around each piece, for stores without ends around documents.
        max_padding: See `BlockPlan.of`.
        blocks_read: Number of blocks that will be read. A store of few blocks that is read several times is packed
            several times at once, because otherwise its last block would be mostly padding each time; an epoch then is
            as many passes.

    Each pass over a text shuffles its documents, cuts and packs them anew; see `BlockPlan`.
    """

    def __init__(
        self,
        stores: TokenStore | TokenStream | Sequence[TokenStore | TokenStream],
        block_length: int,
        *,
        seed: int = 0,
        pad_token_id: int = 0,
        weights: Sequence[float] | None = None,
        piece_ids: tuple[int, int] | None = None,
        max_padding: float = 0.01,
        blocks_read: int = 0,
    ):
        self.block_length, self.seed = block_length, seed
        self.stores = [stores] if isinstance(stores, (TokenStore, TokenStream)) else list(stores)
        shares = np.array(weights or [1.0] * len(self.stores))
        shares = shares / shares.sum()
        extra = 0 if piece_ids is None else 2
        make_plan = functools.partial(BlockPlan.of, block_length=block_length, extra=extra, max_padding=max_padding)
        layout: dict[str, Any] = {"pad_token_id": pad_token_id, "piece_ids": piece_ids}
        key = f"{PLAN_LAYOUT}-{block_length}-{extra}-{max_padding}"
        self._parts = [
            _StoreBlocks(store, make_plan, (seed, number), copies=_copies(store, read, block_length), **layout)
            if isinstance(store, TokenStore)
            else _StreamBlocks(store, make_plan, f"{key}-{seed}-{number}", (seed, number), **layout)
            for number, (store, read) in enumerate(zip(self.stores, shares * blocks_read))
        ]
        sizes = [store.num_tokens if isinstance(store, TokenStore) else 0 for store in self.stores]
        self._first_tokens = np.cumsum(sizes) - sizes
        self._per_turn = np.maximum(1, np.rint(shares * _TURNS)).astype(np.int64)
        # Each source is spread evenly over the table, so that every batch has its share of it.
        source = np.repeat(np.arange(len(shares)), self._per_turn)
        nth = np.concatenate([np.arange(count) for count in self._per_turn])
        order = np.argsort((nth + 0.5) / self._per_turn[source], kind="stable")
        self._turn_source, self._turn_nth = source[order], nth[order]

    @classmethod
    def from_sources(
        cls,
        sources: Any,
        tokenizer: PreTrainedTokenizerFast,
        block_length: int,
        *,
        wrap: Literal["document", "piece", "none"] = "document",
        streaming: bool = False,
        seed: int = 0,
        max_padding: float = 0.01,
        blocks_read: int = 0,
        **kwargs: Any,
    ) -> "PackedBlocks":
        """
        Tokenises and packs sources, as a user names them.

        Args:
            sources: What `parse_sources` takes. With weights a mixture; without, each document once per epoch.
            wrap: Put bos and eos around documents, or cls and sep around each piece (for encoders, which always see
                them), or nothing. A tokenizer with only one of these pairs uses it for both.
            streaming: Tokenise while training instead of before it.
            kwargs: For `TokenStore.build` or `TokenStream`.
        """
        sources = parse_sources(sources)
        make = TokenStream if streaming else TokenStore.build
        weights = [source.weight or 0.0 for source in sources] if sources[0].weight else None
        groups = [[source] for source in sources] if weights else [sources]
        return cls(
            [make(group, tokenizer, wrap=wrap == "document", **kwargs) for group in groups],
            block_length,
            seed=seed,
            pad_token_id=tokenizer.pad_token_id or 0,
            weights=weights,
            piece_ids=piece_ends(tokenizer) if wrap == "piece" else None,
            max_padding=max_padding,
            blocks_read=blocks_read,
        )

    @property
    def num_blocks(self) -> int | None:
        """Number of blocks of the first epoch of all stores; `None` if one of them is a stream."""
        parts = self._store_parts()
        return None if parts is None else sum(len(part) for part in parts)

    def epochs(self, num_blocks: int) -> list[float | None]:
        """Returns the number of passes over each store in so many blocks (`None` for streams)."""
        shares = num_blocks * self._per_turn / self._per_turn.sum()
        return [
            None if isinstance(part, _StreamBlocks) else part.passes(share) for share, part in zip(shares, self._parts)
        ]

    def count_tokens(self, num_blocks: int) -> int | None:
        """Returns the tokens of the first `num_blocks` blocks without padding; `None` if a store is a stream."""
        parts = self._store_parts()
        if parts is None:
            return None
        rounds, rest = divmod(num_blocks, len(self._turn_source))
        last = np.bincount(self._turn_source[:rest], minlength=len(self._parts))
        counts = (rounds * self._per_turn + last).tolist() if len(self._parts) > 1 else [num_blocks]
        return sum(part.count_tokens(count) for part, count in zip(parts, counts))

    def _store_parts(self) -> list[_StoreBlocks] | None:
        """Returns the blocks of all stores; `None` if one of them is a stream."""
        parts = [part for part in self._parts if isinstance(part, _StoreBlocks)]
        return parts if len(parts) == len(self._parts) else None

    def check_vocab(self, vocab_size: int) -> None:
        """See `TokenStore.check_vocab`."""
        for store in self.stores:
            store.check_vocab(vocab_size)

    def batch(
        self, step: int, batch_size: int, *, rank: int = 0, world_size: int = 1, length: int | None = None
    ) -> Batch:
        """
        Returns the batch of a step, or a process's rows of it.

        Args:
            batch_size: Number of blocks in the whole batch.
            rank, world_size: Number of this process and of all processes. Their rows, concatenated, are the batch.
            length: Cut the blocks into more rows of this many tokens, which must divide `block_length`.

        Returns:
            The arrays of `assemble`.
        """
        batch = self.rows(own_rows(step, batch_size, rank, world_size))
        return batch if length is None else shorten(batch, length)

    def rows(self, numbers: np.ndarray) -> Batch:
        """
        Returns rows by their numbers in the run, (batch,), ascending; row 0 is the first row of the run.

        Returns:
            The arrays of `assemble`, and the numbers as `rows`, from which objectives derive random numbers. The
            `token_numbers` of several stores follow one another.
        """
        if len(self._parts) == 1:
            return {**self._parts[0].rows(numbers), "rows": numbers}
        rounds, turns = np.divmod(numbers, len(self._turn_source))
        sources = self._turn_source[turns]
        within = rounds * self._per_turn[sources] + self._turn_nth[turns]
        batch = {"rows": numbers}
        for source in np.unique(sources):
            is_selected = sources == source
            selected = self._parts[source].rows(within[is_selected])
            selected["token_numbers"][selected["token_numbers"] >= 0] += self._first_tokens[source]
            for name, rows in selected.items():
                batch.setdefault(name, np.empty((len(numbers), *rows.shape[1:]), rows.dtype))[is_selected] = rows
        return batch


def _copies(store: TokenStore, blocks_read: float, block_length: int) -> int:
    """Returns how often to pack a store at once."""
    blocks = max(1, store.num_tokens) / block_length
    return max(1, min(int(blocks_read / blocks), math.ceil(_FEW_BLOCKS / blocks)))


def iter_eval_blocks(
    store: TokenStore,
    block_length: int,
    batch_size: int,
    *,
    pad_token_id: int = 0,
    piece_ids: tuple[int, int] | None = None,
    rank: int = 0,
    world_size: int = 1,
    max_tokens: int | None = None,
) -> Iterator[Batch]:
    """
    Yields every token of a store once, in batches as of `PackedBlocks`; always the same ones.

    Blocks are in the order of their first documents, and documents are cut at the block length only. Processes take
    turns by batches. From a store with more than `max_tokens`, blocks of about so many tokens are taken, evenly spaced
    over the text.
    """
    plan = BlockPlan.of(store, block_length, 0 if piece_ids is None else 2, max_padding=1.0)
    count = len(plan)
    if max_tokens is not None and (tokens := int(plan.filled().sum())) > max_tokens:
        count = math.ceil(max_tokens / tokens * len(plan))
    for first in range(rank * batch_size, count, world_size * batch_size):
        blocks = np.arange(first, min(first + batch_size, count)) * len(plan) // count
        yield {**assemble(store.tokens, plan, blocks, pad_token_id, piece_ids), "rows": blocks}
