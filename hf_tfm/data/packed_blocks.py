"""
Packs blocks into batches that are a pure function of (seed, step).

    blocks      AAAAAA | AAAADD | CCCC·· | …     from `packing_plan`
    positions   012345 | 012301 | 012301 | …     start again with every piece, so that none sees its neighbour

A batch is a few numbers of blocks, from a permutation that is evaluated for these alone, and one gather from
memory-mapped tokens. There is no state: a run resumes at any step immediately, and each process computes its own rows
of the batch.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerFast

from .packing_plan import PLAN_LAYOUT, BlockPlan
from .sources import Source, parse_sources
from .step_batches import Batch, own_rows, shorten
from .store_blocks import StoreBlocks, StreamBlocks, assemble
from .tokens import TokenStore, TokenStream, piece_ends


# A mixture's sources take turns by a table of about so many entries, so that shares are exact to 1 in 10,000.
_TURNS = 1 << 14

# A store of fewer blocks has more than a hundredth of padding in its last one.
_FEW_BLOCKS = 100


def group_sources(sources: list[Source]) -> list[list[Source]]:
    """Returns the sources of each store: one store for each source of a mixture, else one for all of them."""
    return [[source] for source in sources] if sources[0].weight else [sources]


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
            StoreBlocks(store, make_plan, (seed, number), copies=_copies(store, read, block_length), **layout)
            if isinstance(store, TokenStore)
            else StreamBlocks(store, make_plan, f"{key}-{seed}-{number}", (seed, number), **layout)
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
        return cls(
            [make(group, tokenizer, wrap=wrap == "document", **kwargs) for group in group_sources(sources)],
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
            None if isinstance(part, StreamBlocks) else part.passes(share) for share, part in zip(shares, self._parts)
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

    def _store_parts(self) -> list[StoreBlocks] | None:
        """Returns the blocks of all stores; `None` if one of them is a stream."""
        parts = [part for part in self._parts if isinstance(part, StoreBlocks)]
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
