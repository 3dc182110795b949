"""Batches: a pure function of (seed, step), the same for any number of processes, and no document sees another."""

import hashlib
import json
import pickle
import shutil
import timeit

import numpy as np
import pytest
import torch
from stores import make_store, sample
from transformers import Trainer, TrainingArguments

from hf_tfm.core.errors import InputError
from hf_tfm.data.packed_blocks import PackedBlocks, iter_eval_blocks
from hf_tfm.data.packing_plan import BlockPlan
from hf_tfm.data.step_batches import LengthSchedule, StepBatches, shorten
from hf_tfm.data.tokens import TokenStore, TokenStream


pytestmark = pytest.mark.quick


LENGTH = 64
PAD = 10**9


@pytest.fixture(scope="module")
def store():
    return make_store(sample("web", 300) // 4 + 3)


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def joined(batches: list[dict]) -> dict:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def dense_blocks(store: TokenStore, plan: BlockPlan, piece_ids=None) -> list[tuple[list[int], list[int], list[int]]]:
    """Ids, positions and sequence ids of every block, in plain lists."""
    around = ([], []) if piece_ids is None else ([piece_ids[0]], [piece_ids[1]])
    blocks = []
    for first, last in zip(plan.offsets[:-1], plan.offsets[1:]):
        ids, positions, sequences = [], [], []
        for number, segment in enumerate(range(first, last), 1):
            start, length = int(plan.starts[segment]), int(plan.lengths[segment])
            body = length - len(around[0]) - len(around[1])
            real = start >= 0
            ids += [*around[0], *store.tokens[start : start + body].tolist(), *around[1]] if real else [PAD] * length
            positions += range(length)
            sequences += [number if real else 0] * length
        blocks.append((ids, positions, sequences))
    return blocks


@pytest.mark.parametrize("piece_ids", [None, (10**8, 10**8 + 1)])
def test_batches_equal_the_dense_reference(store, piece_ids):
    blocks = PackedBlocks(store, LENGTH, pad_token_id=PAD, piece_ids=piece_ids)
    plan = BlockPlan.of(store, LENGTH, 2 if piece_ids else 0)
    expected = dense_blocks(store, plan, piece_ids)
    batch = blocks.batch(0, blocks.num_blocks)
    names = ("input_ids", "position_ids", "sequence_ids")
    got = list(zip(*(batch[name].tolist() for name in names)))
    assert sorted(got) == sorted(map(tuple, expected)) and got != expected
    assert all(batch[name].dtype == np.int64 and batch[name].shape == (len(plan), LENGTH) for name in names)


RECORDED = {
    "web": ("0a232c87b0d21c66", dict(), lambda: sample("web", 300) // 4 + 3),
    "books": ("37c76a0bf363e1bf", dict(piece_ids=(10**8, 10**8 + 1)), lambda: sample("books", 200)),
    "sentences": ("14aec9ede15776e8", dict(), lambda: sample("sentences", 400)),
}
ARRAYS = ("input_ids", "num_bytes", "num_tokens", "position_ids", "rows", "sequence_ids")


def digest(batch: dict) -> str:
    return hashlib.sha256(b"".join(batch[name].astype(np.int64).tobytes() for name in ARRAYS)).hexdigest()[:16]


@pytest.mark.parametrize("name", RECORDED)
def test_the_first_pass_is_that_of_older_versions(name):
    """Runs of one pass, and recorded figures, stay as they are."""
    recorded, settings, lengths = RECORDED[name]
    blocks = PackedBlocks(make_store(lengths()), LENGTH, seed=7, **settings)
    assert digest(blocks.rows(np.arange(blocks.num_blocks))) == recorded


def test_a_mixture_in_its_first_pass_is_that_of_older_versions():
    stores = [make_store(lengths()) for _, _, lengths in RECORDED.values()]
    stores = [stores[0], stores[2], stores[1]]
    blocks = PackedBlocks(stores, LENGTH, seed=7, weights=[0.3, 0.2, 0.5])
    assert digest(blocks.rows(np.arange(100))) == "5b03ddb009a80b08" and blocks.count_tokens(100) == 6397


@pytest.mark.parametrize("piece_ids", [None, (10**8, 10**8 + 1)])
def test_every_token_once_per_pass(store, piece_ids):
    blocks = PackedBlocks(store, LENGTH, pad_token_id=PAD, seed=3, piece_ids=piece_ids)
    first, begins = 0, []
    for number in range(4):
        # A pass has as many blocks as its packing needs: it ends where the last token of the text was read.
        size = len(blocks._parts[0].plan(number))
        rows = blocks.rows(np.arange(first, first + size))
        text = rows["token_numbers"][rows["token_numbers"] >= 0]
        assert np.array_equal(np.sort(text), store.tokens)
        assert (rows["input_ids"][rows["sequence_ids"] == 0] == PAD).all() and rows[
            "num_bytes"
        ].sum() == store.num_bytes
        first += size
        assert blocks.epochs(first) == [number + 1]
        real = blocks.rows(np.arange(first))["num_tokens"]
        assert blocks.count_tokens(first) == real.sum() and blocks.count_tokens(first - 9) == real[:-9].sum()
        begins.append(set(rows["token_numbers"][rows["position_ids"] == (piece_ids is not None)].tolist()))
    starts = set(store.offsets[:-1].tolist())
    assert all(starts <= begin for begin in begins)
    assert all(len(one & other - starts) < 0.1 * len(one - starts) for one, other in zip(begins, begins[1:]))


def check_no_leak(batch: dict, store: TokenStore) -> None:
    """Where positions do not start again, the token is the next one of the same document."""
    ids, positions, sequences = (batch[name] for name in ("input_ids", "position_ids", "sequence_ids"))
    assert (positions[:, 0] == 0).all()
    goes_on = positions[:, 1:] != 0
    assert (positions[:, 1:][goes_on] == positions[:, :-1][goes_on] + 1).all()
    assert (sequences[:, 1:][goes_on] == sequences[:, :-1][goes_on]).all()
    assert (sequences[:, 1:][~goes_on] != sequences[:, :-1][~goes_on]).all()
    text = goes_on & (sequences[:, 1:] > 0)
    assert (ids[:, 1:][text] == ids[:, :-1][text] + 1).all()
    document = np.searchsorted(store.offsets, ids, side="right")
    assert (document[:, 1:][text] == document[:, :-1][text]).all()


def test_no_document_sees_another(store):
    blocks = PackedBlocks(store, LENGTH, pad_token_id=PAD)
    batch = blocks.batch(0, blocks.num_blocks)
    check_no_leak(batch, store)
    assert (batch["sequence_ids"].max(axis=1) > 1).any() and (batch["sequence_ids"] == 0).any()


def test_a_batch_depends_on_seed_and_step_alone(store):
    def blocks(seed=5):
        return PackedBlocks(store, LENGTH, pad_token_id=PAD, seed=seed)

    running = blocks()
    batches = [running.batch(step, 8) for step in range(250)]
    for step in (249, 0, 31):
        assert same(blocks().batch(step, 8), batches[step])
        assert not same(blocks(6).batch(step, 8), batches[step])
    n = running.num_blocks
    assert len(batches) * 8 > 2 * n, "should cross epochs"
    ids = np.concatenate([batch["input_ids"] for batch in batches])
    assert not np.array_equal(ids[:n], ids[n : 2 * n])


def test_a_run_resumes_in_the_middle_of_any_pass(store):
    running = PackedBlocks(store, LENGTH, pad_token_id=PAD, seed=5)
    batches = [running.batch(step, 16) for step in range(400)]
    assert running.epochs(16 * 400)[0] > 6
    pages = [step for step in range(400) if step % 37 == 0]
    for step in pages:
        resumed = PackedBlocks(store, LENGTH, pad_token_id=PAD, seed=5)
        halves = joined([resumed.batch(step, 16, rank=rank, world_size=2) for rank in range(2)])
        assert same(halves, batches[step])
    # In any order, and in another process.
    for step in reversed(pages):
        assert same(running.batch(step, 16), batches[step])
    assert same(pickle.loads(pickle.dumps(running)).batch(399, 16), batches[399])


def test_processes_and_accumulation_share_a_batch(store):
    blocks = PackedBlocks(store, LENGTH, pad_token_id=PAD)
    whole = blocks.batch(7, 24)
    for n in (2, 3, 8):
        assert same(joined([blocks.batch(7, 24, rank=rank, world_size=n) for rank in range(n)]), whole)
        assert same(joined([blocks.batch(7 * n + micro, 24 // n) for micro in range(n)]), whole)
    with pytest.raises(InputError, match="24 rows cannot be shared evenly by 5 processes"):
        blocks.batch(7, 24, world_size=5)


def test_shorter_rows_have_the_same_tokens(store):
    blocks = PackedBlocks(store, LENGTH, pad_token_id=PAD)
    batch = blocks.batch(2, 40)
    short = blocks.batch(2, 40, length=16)
    assert short["input_ids"].shape == (160, 16)
    assert np.array_equal(short["input_ids"].reshape(40, LENGTH), batch["input_ids"])
    check_no_leak(short, store)
    for name in ("num_tokens", "num_bytes"):
        assert np.array_equal(short[name].reshape(40, 4).sum(1), batch[name])
    assert np.array_equal(short["rows"], np.arange(2 * 160, 3 * 160))
    assert same(blocks.batch(2, 40, length=LENGTH), shorten(batch, LENGTH))
    with pytest.raises(InputError, match="cannot be cut into rows of 15"):
        blocks.batch(2, 40, length=15)


def test_length_schedule():
    schedule = LengthSchedule([(0.0, 16), (0.25, 32), (0.5, 64)], 64)
    assert [schedule.length(step / 8) for step in range(8)] == [16, 16, 32, 32, 64, 64, 64, 64]
    for phases, message in [
        ([], "phases must start at 0.0"),
        ([(0.1, 16)], "phases must start at 0.0"),
        ([(0, 16), (0.5, 32), (0.5, 64)], "phases must start at 0.0 and rise"),
        ([(0, 16), (1.0, 64)], "below 1.0"),
        ([(0, 48)], "48 does not divide the block length, 64"),
    ]:
        with pytest.raises(InputError, match=message):
            LengthSchedule(phases, 64)


def marked(store: TokenStore, offset: int) -> TokenStore:
    """The store with ids that no other one has."""
    return TokenStore(store.tokens + np.uint32(offset), store.offsets, store.byte_counts)


def test_a_mixture_has_its_shares_of_tokens(store):
    small = marked(make_store(sample("sentences", 400)), 10**6)
    books = marked(make_store(sample("books", 200)), 2 * 10**6)
    blocks = PackedBlocks([store, small, books], LENGTH, pad_token_id=PAD, weights=[0.55, 0.05, 0.4])
    batches = [blocks.batch(step, 20) for step in range(300)]
    batch = joined(batches)
    origin = batch["input_ids"][batch["sequence_ids"] > 0] // 10**6
    shares = np.bincount(origin) / len(origin)
    assert np.abs(shares - [0.55, 0.05, 0.4]).max() < 0.005
    # Every batch has its share, not only the run.
    assert all(abs((b["input_ids"] // 10**6 == 2).mean() - 0.4) < 0.08 for b in batches)
    # Each block of a source comes once before any comes twice.
    first_ids = batch["input_ids"][:, 0][batch["input_ids"][:, 0] // 10**6 == 1]
    num_blocks = len(BlockPlan.of(small, LENGTH))
    assert blocks.count_tokens(20 * 300) == batch["num_tokens"].sum()
    assert len(first_ids) > num_blocks == len(np.unique(first_ids[:num_blocks]))
    assert blocks.epochs(20 * 300)[1] == pytest.approx(len(first_ids) / num_blocks, rel=0.01)
    halves = [blocks.batch(9, 20, rank=rank, world_size=2) for rank in range(2)]
    assert same(joined(halves), batches[9])


def test_evaluation_reads_everything_once_in_order(store):
    batches = list(iter_eval_blocks(store, LENGTH, 16, pad_token_id=PAD))
    whole = joined(batches)
    real = whole["sequence_ids"] > 0
    assert np.array_equal(np.sort(whole["input_ids"][real]), store.tokens)
    assert (np.diff(whole["input_ids"][:, 0]) > 0).all()
    assert whole["num_bytes"].sum() == store.num_bytes and whole["num_tokens"].sum() == store.num_tokens
    check_no_leak(whole, store)
    shares = [list(iter_eval_blocks(store, LENGTH, 16, pad_token_id=PAD, rank=r, world_size=2)) for r in range(2)]
    assert len(shares[0]) + len(shares[1]) == len(batches)
    assert all(same(shares[i % 2][i // 2], batch) for i, batch in enumerate(batches))


def test_evaluation_of_a_part_is_spread_over_the_text(store):
    whole = joined(list(iter_eval_blocks(store, LENGTH, 16, pad_token_id=PAD)))
    most = store.num_tokens // 5
    part = joined(list(iter_eval_blocks(store, LENGTH, 16, pad_token_id=PAD, max_tokens=most)))
    assert part["num_tokens"].sum() == pytest.approx(most, rel=0.05)
    steps = np.diff(part["rows"])
    assert steps.min() >= 4 and steps.max() <= 6 and part["rows"][0] == 0
    assert np.array_equal(part["input_ids"], whole["input_ids"][part["rows"]])


@pytest.mark.parametrize("piece_ids", [None, (10**8, 10**8 + 1)])
@pytest.mark.parametrize("sizes", [[5], [30, 20, 20], [LENGTH + 1], [LENGTH * 10 + 3, 17]])
def test_little_text_read_often_has_little_padding(sizes, piece_ids):
    store = make_store(sizes)
    read = 400
    blocks = PackedBlocks(store, LENGTH, pad_token_id=PAD, piece_ids=piece_ids, blocks_read=read)
    batch = blocks.batch(0, read)
    real = batch["sequence_ids"] > 0
    assert (~real).mean() < (0.02 if piece_ids is None else 0.03)  # in a hole of two tokens is no room for a piece
    assert blocks.count_tokens(read) == real.sum() == batch["num_tokens"].sum()
    assert batch["num_bytes"].sum() == pytest.approx(blocks.epochs(read)[0] * store.num_bytes, rel=0.02)
    # Each token as often as another, but for those in the middle of an epoch.
    _, counts = np.unique(batch["input_ids"][real & (batch["input_ids"] < 10**8)], return_counts=True)
    assert len(counts) == store.num_tokens
    [passes] = blocks.epochs(read)
    assert counts.mean() == pytest.approx(passes, rel=0.02)
    once = PackedBlocks(store, LENGTH, pad_token_id=PAD, piece_ids=piece_ids)
    first = once.batch(0, once.num_blocks)  # by itself an epoch is one pass
    assert (np.unique(first["input_ids"][first["input_ids"] < 10**8], return_counts=True)[1] == 1).all()


def test_a_small_source_of_a_mixture_has_its_share_of_tokens(store):
    small = marked(make_store([7, 8]), 10**6)
    blocks = PackedBlocks([store, small], LENGTH, pad_token_id=PAD, weights=[0.5, 0.5], blocks_read=300)
    batch = blocks.batch(0, 300)
    real = batch["input_ids"] < PAD
    assert (batch["input_ids"][real] >= 10**6).mean() == pytest.approx(0.5, abs=0.02) and (~real).mean() < 0.02
    assert blocks.count_tokens(300) == real.sum()


# ---------------------------------------------------------------------------------------------------------------------
# Streams


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    rng = np.random.default_rng(0)
    words = np.array(["the", "cat", "moon", "seven", "ships", "sailed", "home", "who", "reads", "page"])
    path = tmp_path_factory.mktemp("text") / "texts.jsonl"
    texts = [" ".join(rng.choice(words, size)) for size in rng.integers(1, 200, size=300)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def make_stream(text_file, tokenizer, tmp_path):
    def make(cache="cache"):
        stream = TokenStream(text_file, tokenizer, window_characters=15_000, cache_dir=tmp_path / cache)
        return PackedBlocks(stream, LENGTH, seed=1, pad_token_id=tokenizer.pad_token_id)

    return make


def test_a_stream_resumes_exactly_at_any_step(make_stream, monkeypatch):
    running = make_stream()
    batches = [running.batch(step, 16) for step in range(120)]
    windows_read = []
    read_window = TokenStream.read_window

    def counting(stream, position):
        windows_read.append(position)
        return read_window(stream, position)

    monkeypatch.setattr(TokenStream, "read_window", counting)
    for step in (119, 40, 0, 77):
        windows_read.clear()
        resumed = make_stream()
        assert same(resumed.batch(step, 16), batches[step])
        assert len(windows_read) <= 3, "read from the beginning instead of the notes"
    # The notes only save time: without them the batch is the same.
    without_notes = make_stream("another cache")
    windows_read.clear()
    assert same(without_notes.batch(77, 16), batches[77])
    assert len(windows_read) > 5
    halves = joined([make_stream().batch(77, 16, rank=rank, world_size=2) for rank in range(2)])
    assert same(halves, batches[77])


def test_a_stream_reads_each_document_once_per_pass(make_stream, text_file, tokenizer):
    store = TokenStore.build(text_file, tokenizer, cache_dir=text_file.parent)
    blocks = make_stream()
    part = blocks._parts[0]
    while None not in part.positions[1:]:
        part.rows(np.array([part.firsts[-1]]))
    num_windows = part.positions.index(None, 1)
    epoch = blocks.rows(np.arange(part.firsts[num_windows]))
    assert num_windows > 3 and epoch["num_bytes"].sum() == store.num_bytes
    real = epoch["input_ids"][epoch["sequence_ids"] > 0]
    assert np.array_equal(np.bincount(real), np.bincount(store.tokens))
    # The next pass reads the same windows, and packs them anew.
    while part.positions[1:].count(None) < 2:
        part.rows(np.array([part.firsts[-1]]))
    again = blocks.rows(np.arange(part.firsts[num_windows], part.firsts[2 * num_windows]))
    real = again["input_ids"][again["sequence_ids"] > 0]
    assert np.array_equal(np.bincount(real), np.bincount(store.tokens))
    assert again["num_bytes"].sum() == store.num_bytes
    rows, later_rows = ({tuple(row) for row in ids["input_ids"].tolist()} for ids in (epoch, again))
    assert len(rows & later_rows) < 0.1 * len(rows)


def test_a_stream_whose_last_window_is_full_is_packed_anew_too(tokenizer, tmp_path):
    file = tmp_path / "text.jsonl"
    file.write_text(json.dumps({"text": " ".join(map(str, range(3000)))}) + "\n")
    stream = TokenStream(file, tokenizer, window_characters=1000, cache_dir=tmp_path)
    blocks = PackedBlocks(stream, LENGTH, pad_token_id=tokenizer.pad_token_id)
    blocks.rows(np.array([0]))
    first, second = (blocks._parts[0]._window(number) for number in range(2))
    assert blocks._parts[0].positions == [None, None, None] and first.store.num_tokens == second.store.num_tokens
    assert not np.array_equal(first.plan(0).starts, second.plan(0).starts)


def test_torn_notes_of_a_killed_process_do_no_harm(make_stream):
    running = make_stream()
    batch = running.batch(50, 16)
    notes = running._parts[0].notes
    whole = notes.read_text()
    assert len(whole.splitlines()) > 3
    for torn in (whole[:-10], whole + '{"window": 99', whole * 2):
        notes.write_text(torn)
        assert same(make_stream().batch(50, 16), batch)


def test_notes_that_cannot_be_written_do_no_harm(make_stream):
    first = make_stream()
    expected = first.batch(50, 16)
    first._parts[0].worker.shutdown()  # it makes the next window, and notes it
    folder = first._parts[0].notes.parent
    shutil.rmtree(folder)
    folder.write_text("in the way")
    running = make_stream()
    assert same(running.batch(50, 16), expected) and folder.is_file()


def test_a_stream_in_data_loader_workers(make_stream):
    blocks = make_stream()
    expected = [blocks.batch(step, 4) for step in range(40)]
    loader = StepBatches(blocks.rows, 4, 40).loader(num_workers=2)
    for batch, rows in zip(loader, expected, strict=True):
        assert same({name: rows.numpy() for name, rows in batch.items()}, rows)
    assert same(pickle.loads(pickle.dumps(blocks)).batch(3, 4), expected[3])


# ---------------------------------------------------------------------------------------------------------------------
# From names to batches


def test_from_sources(text_file, tokenizer, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("who reads the last page first knows how it ends\n" * 400)
    cache = {"cache_dir": tmp_path / "cache"}
    all_once = PackedBlocks.from_sources([text_file, other], tokenizer, LENGTH, **cache)
    assert len(all_once.stores) == 1 and len(all_once.stores[0]) == 301
    mixed = PackedBlocks.from_sources([f"{text_file}@3", f"{other}@1"], tokenizer, LENGTH, **cache)
    assert len(mixed.stores) == 2
    assert np.allclose(mixed._per_turn / mixed._per_turn.sum(), [0.75, 0.25], atol=1e-4)
    pieces = PackedBlocks.from_sources(text_file, tokenizer, LENGTH, wrap="piece", **cache).batch(0, 8)
    ids, real = pieces["input_ids"], pieces["sequence_ids"] > 0
    # The tokenizer has a bos token too, as BigBird's has, and validation text is read with cls as well.
    assert tokenizer.cls_token_id != tokenizer.bos_token_id
    assert (ids[(pieces["position_ids"] == 0) & real] == tokenizer.cls_token_id).all()
    num_pieces = pieces["sequence_ids"].max(axis=1).sum()
    assert (ids == tokenizer.cls_token_id).sum() == (ids == tokenizer.sep_token_id).sum() == num_pieces
    bare = PackedBlocks.from_sources(text_file, tokenizer, LENGTH, wrap="none", **cache).batch(0, 8)
    assert tokenizer.eos_token_id not in bare["input_ids"]
    streamed = PackedBlocks.from_sources(text_file, tokenizer, LENGTH, streaming=True, **cache)
    assert streamed.num_blocks is None and streamed.epochs(100) == [None]
    assert streamed.batch(0, 8)["input_ids"].shape == (8, LENGTH)
    for blocks in (all_once, mixed, streamed):
        blocks.check_vocab(len(tokenizer))
        with pytest.raises(InputError, match="tokenizer of another model"):
            blocks.check_vocab(20)
    with pytest.raises(InputError, match="no such file"):
        PackedBlocks.from_sources("missing.txt", tokenizer, LENGTH, **cache)


def test_from_shared_text(tokenizer, tmp_path):
    from tiny import SHARED

    file = SHARED / "data" / "text_mix" / "validation.jsonl.gz"
    if not file.exists():
        pytest.skip("no shared data beside the checkout")
    source = {"location": str(file), "part": (0, 0.1)}
    blocks = PackedBlocks.from_sources(source, tokenizer, 256, cache_dir=tmp_path)
    (store,) = blocks.stores
    assert store.num_tokens / (blocks.num_blocks * 256) > 0.98


# ---------------------------------------------------------------------------------------------------------------------
# Into training


def test_step_batches(store):
    blocks = PackedBlocks(store, LENGTH, pad_token_id=PAD)
    schedule = LengthSchedule([(0.0, 16), (0.5, 64)], LENGTH)
    steps = StepBatches(blocks.rows, 12, 10, schedule=schedule, transform=lambda b: {"x": b["input_ids"]})
    assert len(steps) == 10
    assert [steps[i]["x"].shape for i in (0, 4, 5, 9)] == [(48, 16), (48, 16), (12, 64), (12, 64)]
    assert torch.equal(steps[7]["x"], torch.from_numpy(blocks.batch(7, 12)["input_ids"]))
    whole = StepBatches(blocks.rows, 12, 10, schedule=schedule)[2]
    parts = [StepBatches(blocks.rows, 12, 10, schedule=schedule, rank=r, world_size=3)[2] for r in range(3)]
    assert all(torch.equal(torch.cat([part[name] for part in parts]), whole[name]) for name in whole)
    # The micro steps of one step have one length.
    uneven = LengthSchedule([(0.0, 16), (0.35, 64)], LENGTH)
    micro = StepBatches(blocks.rows, 6, 20, schedule=uneven, accumulation=2)
    assert [micro[i]["input_ids"].shape[1] for i in range(4, 10)] == [16, 16, 16, 16, 64, 64]
    for step in (-1, 10):
        with pytest.raises(IndexError):
            steps[step]
    with pytest.raises(InputError, match="12 rows cannot be shared"):
        StepBatches(blocks.rows, 12, 10, world_size=5)


def test_loader_starts_anywhere(store):
    steps = StepBatches(PackedBlocks(store, LENGTH, pad_token_id=PAD).rows, 4, 12)
    seen = [batch["rows"][0].item() // 4 for batch in steps.loader(start=5)]
    assert seen == list(range(5, 12))
    seen = [batch["rows"][0].item() // 4 for batch in steps.loader(start=5, num_workers=1)]
    assert seen == list(range(5, 12))


class Recorder(torch.nn.Module):
    """Learns nothing and writes down which rows it was given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def forward(self, rows, **kwargs):
        self.seen.append(rows.tolist())
        return {"loss": self.weight.sum() * 0}


def test_transformers_trainer_resumes_at_the_very_row(store, tmp_path):
    made = []

    class StepTrainer(Trainer):
        def get_train_dataloader(self):
            return self.train_dataset.loader()

    def train(max_steps, resume):
        blocks = PackedBlocks(store, LENGTH, pad_token_id=PAD)

        def make(numbers):
            made.append(numbers.tolist())
            return blocks.rows(numbers)

        args = TrainingArguments(
            str(tmp_path), max_steps=max_steps, gradient_accumulation_steps=2, save_steps=3, report_to="none",
            use_cpu=True, disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        model = Recorder()
        trainer = StepTrainer(model, args, train_dataset=StepBatches(make, 4, 2 * 8))
        trainer.train(resume_from_checkpoint=resume)
        return model.seen

    whole = train(8, False)
    assert sum(whole, []) == list(range(8 * 2 * 4))
    made.clear()
    shutil.rmtree(tmp_path / "checkpoint-8")
    assert train(8, str(tmp_path / "checkpoint-3")) == whole[6:]
    assert made == whole[6:], "batches that were skipped were made"


def test_a_batch_takes_a_fraction_of_a_millisecond(store):
    blocks = PackedBlocks(make_store(sample("web", 20_000)), 256, pad_token_id=PAD)
    steps = iter(range(10**6))
    seconds = min(timeit.repeat(lambda: blocks.batch(next(steps), 8), number=20, repeat=15)) / 20
    assert seconds < 2e-3  # some 0.1 ms on a free core


@pytest.mark.parametrize("piece_ids", [None, (10**8, 10**8 + 1)])
def test_token_numbers_say_which_tokens_of_the_stores_a_row_has(store, piece_ids):
    other = make_store([40, 9, 300])
    blocks = PackedBlocks([store, other], LENGTH, pad_token_id=PAD, piece_ids=piece_ids, weights=[2, 1], blocks_read=50)
    batch = blocks.rows(np.arange(50))
    numbers, ids = batch["token_numbers"], batch["input_ids"]
    is_text = (batch["sequence_ids"] > 0) & (ids < 10**8)
    assert np.array_equal(numbers >= 0, is_text)
    tokens = np.concatenate([store.tokens, other.tokens])
    assert np.array_equal(tokens[numbers[is_text]], ids[is_text]) and (numbers >= store.num_tokens).any()
    assert np.array_equal(shorten(batch, 16)["token_numbers"].ravel(), numbers.ravel())
