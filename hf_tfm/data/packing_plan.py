"""
Plans which piece of which document is in which block.

    documents   AAAAAAAAAA  BBB  CCCC  DD
    pieces      AAAAAA AAAA BBB  CCCC  DD        cut at the block length, from the start of each document
    blocks      AAAAAA | AAAADD | CCCC·· | …     packed by best fit, filled up with padding

Later passes over the text shuffle the documents, and cut long ones elsewhere: AA AAAAAA AA. A model then sees every
token at other positions and behind other beginnings of its context.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import InputError
from .cache import open_arrays, write_arrays
from .tokens import TokenStore


# Part of the name of a plan on disk: raise it when the same store would be packed differently.
PLAN_LAYOUT = 2

# So many documents, or blocks' worth of tokens, are planned together: memory is bounded and the packing no worse.
_CHUNK = 1 << 19


@dataclass
class BlockPlan:
    """
    The segments of each block. A block is a row of segments whose lengths sum to the block length; the last segment may
    be padding.

    Args:
        starts: First token of each segment in the store, (num_segments,), int64; -1 for padding.
        lengths: Length of each segment, (num_segments,), int32, including the two `piece_ids` if there are any.
        byte_counts: Bytes of text of each segment, (num_segments,), int32. A document's bytes are divided among its
            pieces in proportion to their tokens; the sum over a document is exact.
        offsets: Where each block's segments start, (num_blocks + 1,), int64.
        folder: Where the arrays are memory-mapped from; `None` if they are in memory.
    """

    starts: np.ndarray
    lengths: np.ndarray
    byte_counts: np.ndarray
    offsets: np.ndarray
    folder: Path | None = None

    def __len__(self) -> int:
        """Number of blocks."""
        return len(self.offsets) - 1

    @classmethod
    def of(
        cls,
        store: TokenStore,
        block_length: int,
        extra: int = 0,
        max_padding: float = 0.01,
        passes: range = range(1),
        seed: tuple[int, ...] = (),
    ) -> "BlockPlan":
        """
        Returns the plan of one or several passes over a store.

        The plan of the first pass is saved beside the store if that is on disk, and so are plans of later passes if the
        store is so large that planning takes seconds.

        Args:
            block_length: Tokens of a block.
            extra: Number of tokens that are put around each piece later.
            max_padding: If best fit leaves a larger share of padding, the emptiest blocks are dissolved and their
                pieces are cut to fill the others. The last block may stay as empty as it is; in a store of a few
                blocks that is a larger share.
            passes: Numbers of the passes, which are packed together with one last block for all of them. Pass 0 cuts
                each document from its start; in later ones the first piece of a long document has a random length.
            seed: Seed of the passes after the first.
        """
        if block_length < extra + 8:
            raise InputError(f"block_length {block_length} is too short to hold text; give at least {extra + 8}")
        chunks = _plan(store, block_length, extra, max_padding, passes, seed)
        is_first = passes == range(1)
        if store.folder is None or not (is_first or store.num_tokens > _CHUNK * block_length):
            whole = list(chunks)
            arrays: dict[str, Any] = {name: np.concatenate([chunk[name] for chunk in whole]) for name in whole[0]}
            return cls(**arrays)
        suffix = "" if is_first else "".join(f"-{number}" for number in (*seed, *passes))
        folder = store.folder / f"plan{PLAN_LAYOUT}-{block_length}-{extra}-{max_padding}{suffix}"
        if not folder.exists():
            write_arrays(folder, chunks, {"block_length": block_length})
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> "BlockPlan":
        """Opens a plan on disk, without reading it."""
        arrays: dict[str, Any] = open_arrays(folder)[0]
        return cls(**arrays, folder=folder)

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process maps the same files instead of receiving a copy.
        if self.folder is not None:
            return BlockPlan.open, (self.folder,)
        return BlockPlan, (self.starts, self.lengths, self.byte_counts, self.offsets)

    def filled(self) -> np.ndarray:
        """Returns the number of tokens of each block without padding, (num_blocks,)."""
        sums = np.cumsum(np.where(self.starts < 0, 0, self.lengths), dtype=np.int64)
        return np.diff(np.concatenate([[0], sums])[self.offsets])


def _plan(
    store: TokenStore, block_length: int, extra: int, max_padding: float, passes: range, seed: tuple[int, ...]
) -> Iterator[dict[str, np.ndarray]]:
    first, num_segments = 0, 0
    while first < len(store):
        enough = np.searchsorted(store.offsets, store.offsets[first] + _CHUNK * block_length)
        last = min(first + _CHUNK, len(store), max(first + 1, int(enough)))
        bounds, byte_counts = np.array(store.offsets[first : last + 1]), np.array(store.byte_counts[first:last])
        rngs = [np.random.default_rng((*seed, number, last)) if number else None for number in passes]
        pieces = [_cut(bounds, block_length - extra, rng) for rng in rngs]
        starts, lengths = (np.concatenate(arrays) for arrays in zip(*pieces))
        chunk = _pack(bounds, byte_counts, starts, lengths, block_length, extra, max_padding, rngs[-1])
        ends = num_segments + chunk.pop("ends")
        chunk["offsets"] = ends if first else np.concatenate([[0], ends])
        first, num_segments = last, num_segments + len(chunk["starts"])
        yield chunk


def _cut(bounds: np.ndarray, body: int, rng: np.random.Generator | None) -> tuple[np.ndarray, np.ndarray]:
    """
    Returns starts and lengths of the pieces of documents.

    Args:
        bounds: Starts of the documents, and the end of the last one, (num_documents + 1,).
        body: Largest number of tokens of a piece.
        rng: Random numbers for the order of the documents and the length of their first pieces; by default the
            documents keep their order and are cut from their starts.
    """
    sizes = np.diff(bounds)
    documents, missing = np.arange(len(sizes)), np.zeros(len(sizes), np.int64)
    if rng is not None:
        documents = rng.permutation(len(sizes))
        missing = np.where(sizes > body, rng.integers(body, size=len(sizes)), 0)  # from the first piece
    counts = -(-(sizes + missing) // body)[documents]
    document = np.repeat(documents, counts)
    nth = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    cuts = bounds[document] - missing[document] + nth * body
    starts = np.maximum(cuts, bounds[document])
    return starts, np.minimum(cuts + body, bounds[document + 1]) - starts


def _pack(
    bounds: np.ndarray,
    byte_counts: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    block_length: int,
    extra: int,
    max_padding: float,
    rng: np.random.Generator | None,
) -> dict[str, np.ndarray]:
    """Returns the segments of the blocks of some documents' pieces, and the end of each block's segments."""
    sizes = np.diff(bounds)
    block, num_blocks = best_fit_decreasing(lengths + extra, block_length, rng)
    # Blocks beyond those that would be enough if pieces were cut.
    spare = num_blocks - int(np.ceil((lengths + extra).sum() / block_length / max(1 - max_padding, 1e-9)))
    if spare > 0:
        starts, lengths, block = _dissolve(starts, lengths, block, spare, block_length, extra)

    # Blocks in the order of their first pieces, pieces in the order of the text.
    first_start = np.full(block.max(initial=0) + 1, bounds[-1])
    np.minimum.at(first_start, block, starts)
    place = np.argsort(np.argsort(first_start, kind="stable"))  # blocks of several passes may begin alike
    order = np.lexsort((starts, place[block]))
    starts, lengths, block = starts[order], lengths[order], place[block][order]

    document = np.searchsorted(bounds, starts, side="right") - 1
    # Rounded at both ends of a piece, so that the pieces of a document sum to its bytes.
    begin = (starts - bounds[document]) * byte_counts[document] // sizes[document]
    end = (starts - bounds[document] + lengths) * byte_counts[document] // sizes[document]
    room = block_length - np.bincount(block, lengths + extra).astype(np.int64)
    padded, behind = np.flatnonzero(room), np.searchsorted(block, np.arange(len(room)), side="right")
    return {
        "starts": np.insert(starts, behind[padded], -1),
        "lengths": np.insert(lengths + extra, behind[padded], room[padded]).astype(np.int32),
        "byte_counts": np.insert(end - begin, behind[padded], 0).astype(np.int32),
        "ends": behind + np.cumsum(room > 0),
    }


def best_fit_decreasing(
    sizes: np.ndarray, capacity: int, rng: np.random.Generator | None = None
) -> tuple[np.ndarray, int]:
    """
    Packs items into bins: the largest item first, each into the fullest bin that has room for it.

    All items of a size, and all bins with as much room left, are handled at once: a million items take seconds.

    Args:
        sizes: (num_items,), from 1 to `capacity`.
        rng: Random numbers for taking the second fullest bin as often as the fullest, so that packing again brings
            other items together even if no two are of one size.

    Returns:
        The bin of each item, (num_items,), and the number of bins.
    """
    order = np.argsort(-sizes, kind="stable")
    bin_of = np.empty(len(sizes), np.int64)
    bins_with_room: list[list[np.ndarray]] = [[] for _ in range(capacity + 1)]
    open_rooms = 0  # bit r is set if there are bins with room r
    num_bins = 0

    def return_bins(bins: np.ndarray, room: int) -> None:
        nonlocal open_rooms
        if len(bins) and room:
            bins_with_room[room].append(bins)
            open_rooms |= 1 << room

    done = 0
    values, counts = np.unique(sizes, return_counts=True)
    for size, count in zip(values[::-1].tolist(), counts[::-1].tolist()):
        while count:
            fitting = open_rooms >> size
            if fitting:
                if rng is not None and rng.random() < 0.5:
                    fitting = fitting & (fitting - 1) or fitting
                room = size + (fitting & -fitting).bit_length() - 1
                bins = bins_with_room[room].pop()
                if not bins_with_room[room]:
                    open_rooms ^= 1 << room
            else:
                room = capacity
                bins = np.arange(num_bins, num_bins - (-count // (capacity // size)))
                num_bins += len(bins)
            # The bin that took one item is now the fullest with room for the next: it takes as many as fit.
            each = room // size
            used = min(len(bins), -(-count // each))
            placed = min(count, used * each)
            in_last = placed - (used - 1) * each
            bin_of[order[done : done + placed]] = np.repeat(bins[:used], each)[:placed]
            return_bins(bins[used:], room)
            return_bins(bins[: used - 1], room - each * size)
            return_bins(bins[used - 1 : used], room - in_last * size)
            done, count = done + placed, count - placed
    return bin_of, num_bins


def _dissolve(
    starts: np.ndarray, lengths: np.ndarray, block: np.ndarray, spare: int, block_length: int, extra: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Dissolves the `spare` emptiest blocks and cuts their pieces to fill the holes of the next emptiest ones."""
    room = block_length - np.bincount(block, lengths + extra).astype(np.int64)
    emptiest = np.argsort(-room, kind="stable")
    is_dissolved = np.zeros(len(room), bool)
    is_dissolved[emptiest[:spare]] = True
    moving = is_dissolved[block]
    holes = iter([(hole, int(room[hole])) for hole in emptiest[spare:].tolist()])
    smallest_hole = extra + max(1, min(8, block_length // 128))  # smaller holes stay: less than a hundredth of a block
    pieces, new_block, hole, free = [], len(room), -1, 0
    for start, length in zip(starts[moving].tolist(), lengths[moving].tolist()):
        while length:
            if free < min(length + extra, smallest_hole):
                hole, free = next(holes, (-1, 0))
                if free < smallest_hole:  # nothing left to fill: one more block
                    hole, free, new_block = new_block, block_length, new_block + 1
            part = min(length, free - extra)
            pieces.append((start, part, hole))
            start, length, free = start + part, length - part, free - part - extra
    new_starts, new_lengths, new_blocks = np.array(pieces, np.int64).reshape(-1, 3).T
    staying = ~moving
    return (
        np.concatenate([starts[staying], new_starts]),
        np.concatenate([lengths[staying], new_lengths]),
        np.concatenate([block[staying], new_blocks]),
    )
