"""Packing: every token in one place, no document cut without need, little padding, in little time."""

import pickle
import time

import numpy as np
import pytest
from stores import DISTRIBUTIONS, make_store, sample

from hf_tfm.core.errors import InputError
from hf_tfm.data import packing_plan
from hf_tfm.data.cache import write_arrays
from hf_tfm.data.packing_plan import BlockPlan, best_fit_decreasing
from hf_tfm.data.tokens import TokenStore


pytestmark = pytest.mark.quick


def naive_best_fit_decreasing(sizes, capacity):
    """The definition, item by item."""
    room, bin_of = [], {}
    for item in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        fitting = [b for b in range(len(room)) if room[b] >= sizes[item]]
        if not fitting:
            room.append(capacity)
            fitting = [len(room) - 1]
        best = min(fitting, key=lambda b: room[b])
        room[best] -= sizes[item]
        bin_of[item] = best
    return room, bin_of


@pytest.mark.parametrize("capacity", [8, 64, 100, 1000])
@pytest.mark.parametrize("seed", range(4))
def test_best_fit_decreasing_is_the_textbook_algorithm(capacity, seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, capacity + 1, 300) if seed % 2 else rng.geometric(8 / capacity, 300).clip(1, capacity)
    bin_of, num_bins = best_fit_decreasing(sizes, capacity)
    room, _ = naive_best_fit_decreasing(sizes.tolist(), capacity)
    assert num_bins == len(room) and set(bin_of) == set(range(num_bins))
    # Which bin of equally full ones is taken is nobody's business: the fill levels are the same.
    assert sorted(capacity - np.bincount(bin_of, sizes)) == sorted(room)


def check_plan(plan: BlockPlan, store: TokenStore, block_length: int, extra: int = 0) -> None:
    real = plan.starts >= 0
    starts, ends = plan.starts[real], plan.starts[real] + plan.lengths[real] - extra
    order = np.argsort(starts)
    # The segments, put in order, are the text without gap or overlap.
    assert starts[order][0] == 0 and ends[order][-1] == store.num_tokens
    assert np.array_equal(starts[order][1:], ends[order][:-1])
    document = np.searchsorted(store.offsets, starts, side="right") - 1
    assert (ends <= store.offsets[document + 1]).all(), "a segment of two documents"
    # Each block is exactly full.
    assert plan.offsets[0] == 0 and plan.offsets[-1] == len(plan.starts)
    assert (np.add.reduceat(plan.lengths, plan.offsets[:-1]) == block_length).all()
    # Padding comes last, and no block is all padding.
    padding = np.flatnonzero(~real)
    assert np.isin(padding + 1, plan.offsets).all() and not np.isin(padding, plan.offsets[:-1]).any()
    assert (plan.byte_counts[padding] == 0).all()
    by_document = np.bincount(document, plan.byte_counts[real], minlength=len(store))
    assert np.array_equal(by_document, store.byte_counts)


def later_pass(store: TokenStore, number: int, seed=(3, 0), **settings) -> BlockPlan:
    return BlockPlan.of(store, 256, passes=range(number, number + 1), seed=seed, **settings)


@pytest.mark.parametrize("number", [0, 1, 7])
@pytest.mark.parametrize("extra", [0, 2])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_every_token_once_with_little_padding(name, extra, number):
    store = make_store(sample(name, 4000))
    plan = later_pass(store, number, extra=extra)
    check_plan(plan, store, 256, extra)
    padding = plan.lengths[plan.starts < 0].sum() / (len(plan) * 256)
    assert padding < 0.02


def find_documents(plan: BlockPlan, store: TokenStore) -> np.ndarray:
    """The document of each piece of text."""
    return np.searchsorted(store.offsets, plan.starts[plan.starts >= 0], side="right") - 1


def test_each_later_pass_cuts_long_documents_elsewhere_and_short_ones_never():
    store = make_store(sample("web", 3000))
    sizes = np.diff(store.offsets)
    shifts = []
    for number in range(4):
        plan = later_pass(store, number, max_padding=1.0)
        starts, document = plan.starts[plan.starts >= 0], find_documents(plan, store)
        first_cut = np.full(len(store), -1)
        for start, owner in sorted(zip(starts.tolist(), document.tolist()), reverse=True):
            if start > store.offsets[owner]:
                first_cut[owner] = start - store.offsets[owner]
        assert np.array_equal(first_cut < 0, sizes <= 256)
        within = starts - store.offsets[document]
        assert ((within == 0) | ((within - first_cut[document]) % 256 == 0)).all(), "a cut without need"
        shifts.append(first_cut[sizes > 256])
    assert (shifts[0] == 256).all()
    for shift, other in zip(shifts[1:], shifts[2:] + shifts[1:2]):
        # Each length of a first piece is as likely as any other, and says nothing about the next pass.
        assert shift.min() <= 3 and shift.max() == 256 and abs(shift.mean() - 128.5) < 6
        assert abs(np.corrcoef(shift, other)[0, 1]) < 0.1
    assert not np.array_equal(later_pass(store, 1).starts, later_pass(store, 1, seed=(4, 0)).starts)


def find_neighbours(plan: BlockPlan, store: TokenStore) -> set[tuple[int, int]]:
    """Pairs of documents that share a block."""
    block = np.repeat(np.arange(len(plan)), np.diff(plan.offsets))[plan.starts >= 0]
    document = find_documents(plan, store)
    return {
        (one, other)
        for number in range(len(plan))
        for one in document[block == number].tolist()
        for other in document[block == number].tolist()
        if one < other
    }


NO_TWO_OF_ONE_LENGTH = np.random.default_rng(0).permutation(np.arange(10, 250))[:100]


@pytest.mark.parametrize(
    "lengths, shared", [(sample("web", 600), 0.1), (sample("stories", 600), 0.1), (NO_TWO_OF_ONE_LENGTH, 0.5)]
)
def test_documents_meet_other_neighbours_in_each_pass(lengths, shared):
    store = make_store(lengths)
    passes = [find_neighbours(later_pass(store, number), store) for number in range(3)]
    for one, other in zip(passes, passes[1:]):
        assert len(one) > 50 and len(one & other) < shared * len(one)


@pytest.mark.parametrize("extra", [0, 2])
def test_passes_packed_together_have_each_token_as_often(extra):
    store = make_store([30, 300, 20, 500])
    plan = BlockPlan.of(store, 256, extra, passes=range(6, 9), seed=(1,))
    real = plan.starts >= 0
    starts, lengths = plan.starts[real], plan.lengths[real] - extra
    tokens = np.concatenate([np.arange(start, start + length) for start, length in zip(starts, lengths)])
    assert (np.bincount(tokens, minlength=store.num_tokens) == 3).all()
    assert plan.byte_counts.sum() == 3 * store.num_bytes
    assert len(set(starts.tolist())) > 10, "each pass has cuts of its own"


@pytest.mark.parametrize("block_length, length, extra", [(64, 57, 0), (128, 15, 2), (256, 10, 0), (256, 17, 2)])
def test_documents_of_one_length_that_does_not_fit(block_length, length, extra):
    store = make_store([length] * 4000)
    plan = BlockPlan.of(store, block_length, extra)
    check_plan(plan, store, block_length, extra)
    assert plan.lengths[plan.starts < 0].sum() / (len(plan) * block_length) < 0.025


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_documents_are_cut_only_at_the_block_length_unless_padding_calls_for_it(name):
    store = make_store(sample(name, 2000))
    plan = BlockPlan.of(store, 256, max_padding=1.0)
    check_plan(plan, store, 256)
    starts = plan.starts[plan.starts >= 0]
    document = np.searchsorted(store.offsets, starts, side="right") - 1
    assert ((starts - store.offsets[document]) % 256 == 0).all()
    assert len(starts) == sum(-(-np.diff(store.offsets) // 256))
    if name in ("web", "books", "sentences"):
        # These pack well as they are, so the default leaves them as they are.
        assert np.array_equal(BlockPlan.of(store, 256).starts, plan.starts)


def test_few_short_and_empty_documents():
    for lengths in ([5], [0, 5, 0], [1, 1, 1], [256], [257], [0, 0, 512, 0]):
        store = make_store(lengths)
        check_plan(BlockPlan.of(store, 256), store, 256)
        assert len(BlockPlan.of(store, 256)) == max(1, -(-sum(lengths) // 256))


def test_blocks_are_in_document_order():
    store = make_store(sample("web", 500))
    plan = BlockPlan.of(store, 256, max_padding=1.0)
    assert (np.diff(plan.starts[plan.offsets[:-1]]) > 0).all()


def test_large_stores_are_planned_in_chunks(monkeypatch):
    monkeypatch.setattr(packing_plan, "_CHUNK", 100)
    for name in ("web", "books"):
        store = make_store(sample(name, 3000))
        check_plan(BlockPlan.of(store, 128), store, 128)
        check_plan(later_pass(store, 2), store, 256)


def test_a_plan_is_kept_beside_its_store(tmp_path, monkeypatch):
    store = make_store(sample("web", 200))
    arrays = {"tokens": store.tokens, "offsets": store.offsets, "byte_counts": store.byte_counts}
    write_arrays(tmp_path / "store", [arrays], store.meta)
    on_disk = TokenStore.open(tmp_path / "store")
    plan, fresh = BlockPlan.of(on_disk, 256), BlockPlan.of(store, 256)
    assert later_pass(on_disk, 1).folder is None, "plans of later passes would fill the disk"
    with monkeypatch.context() as patch:
        patch.setattr(packing_plan, "_CHUNK", 50)  # a large store
        large = later_pass(on_disk, 1)
        assert large.folder != plan.folder and large.folder != later_pass(on_disk, 2).folder
        assert large.folder != later_pass(on_disk, 1, seed=(4, 0)).folder
        assert np.array_equal(large.starts, later_pass(store, 1).starts)
    monkeypatch.setattr(packing_plan, "_pack", None)
    for again in (BlockPlan.of(on_disk, 256), pickle.loads(pickle.dumps(plan)), pickle.loads(pickle.dumps(fresh))):
        assert np.array_equal(again.starts, fresh.starts) and np.array_equal(again.offsets, fresh.offsets)
    assert len(pickle.dumps(plan)) < 1000
    with pytest.raises(TypeError):
        BlockPlan.of(on_disk, 128)


def test_too_short_blocks():
    with pytest.raises(InputError, match="block_length 4 is too short to hold text; give at least 8"):
        BlockPlan.of(make_store([5]), 4)


@pytest.mark.parametrize("name", ["sentences", "stories"])
def test_planning_is_not_quadratic(name):
    store = make_store(sample(name, 200_000))
    started = time.process_time()
    BlockPlan.of(store, 256)
    assert time.process_time() - started < 5  # some 0.6 s; item by item it is hours
