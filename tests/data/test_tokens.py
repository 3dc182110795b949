"""Text into tokens: exact, the same whatever the number of workers, kept, and never half a store."""

import errno
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_tfm.core.errors import InputError
from hf_tfm.data import cache as cache_module
from hf_tfm.data import tokens as data
from hf_tfm.data.tokens import TokenStore, TokenStream, contents_digest, encode_documents


pytestmark = pytest.mark.quick


@pytest.fixture
def texts():
    rng = np.random.default_rng(0)
    words = np.array(["the", "cat", "moon", "naïve", "☃", "seven", "ships\n", "sailed", "[EOS]", "home"])
    return [" ".join(rng.choice(words, size)) for size in rng.integers(1, 400, size=200)]


@pytest.fixture
def file(tmp_path, texts):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def small_groups(monkeypatch):
    """Many pieces of work out of little text."""
    groups = data._groups
    monkeypatch.setattr(data, "_groups", lambda texts, characters: groups(texts, min(characters, 2000)))


def no_tokenizing(*args, **kwargs):
    raise AssertionError("tokenised again")


def test_a_store_holds_what_the_tokenizer_gives(file, texts, tokenizer, cache, small_groups):
    store = TokenStore.build(file, tokenizer, cache_dir=cache)
    assert len(store) == len(texts)
    for i, text in enumerate(texts):
        expected = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert store[i].tolist() == [tokenizer.bos_token_id, *expected, tokenizer.eos_token_id]
    assert store.byte_counts.tolist() == [len(text.encode()) for text in texts]
    assert store.num_bytes == sum(store.byte_counts)
    assert store.num_tokens == store.offsets[-1] == len(store.tokens)
    assert store.tokens.dtype == np.uint16 and store.meta["max_token_id"] == store.tokens.max()

    bare = TokenStore.build(file, tokenizer, wrap=False, cache_dir=cache)
    assert bare[3].tolist() == store[3][1:-1].tolist()


def test_special_tokens_in_text_are_text(tokenizer):
    text = "a[EOS] b [MASK]</s>[PAD]"
    store = TokenStore.from_texts([text], tokenizer)
    assert not set(tokenizer.all_special_ids) & set(store[0][1:-1].tolist())
    assert tokenizer.decode(store[0][1:-1]) == text
    assert tokenizer("[EOS]", add_special_tokens=False)["input_ids"] == [tokenizer.eos_token_id], "caller's changed"


def test_truncation_and_padding_of_the_tokenizer_do_not_reach_the_corpus(tokenizer):
    tokenizer(["a b c", "a"], truncation=True, max_length=4, padding="max_length")
    assert len(TokenStore.from_texts(["the cat sat on the mat " * 9], tokenizer, wrap=False)[0]) > 20


def test_a_large_vocabulary_takes_four_bytes():
    backend = Tokenizer(models.WordLevel({str(i): i for i in range(70_000)}, unk_token="0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    store = TokenStore.from_texts(["69999 5 65536"], tokenizer, wrap=False)
    assert store.tokens.tolist() == [69999, 5, 65536] and store.tokens.dtype == np.uint32
    with pytest.raises(InputError, match="neither an eos nor a sep token"):
        TokenStore.from_texts(["1"], tokenizer)


def test_an_encoders_tokenizer_wraps_with_cls_and_sep(tokenizer):
    encoder = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]"
    )
    document = TokenStore.from_texts(["the cat"], encoder)[0]
    assert (document[0], document[-1]) == (encoder.cls_token_id, encoder.sep_token_id)


def test_the_number_of_workers_changes_nothing(file, tokenizer, tmp_path, small_groups):
    one, three = (TokenStore.build(file, tokenizer, num_proc=n, cache_dir=tmp_path / str(n)) for n in (1, 3))
    for name in ("tokens.bin", "offsets.bin", "byte_counts.bin"):
        assert (one.folder / name).read_bytes() == (three.folder / name).read_bytes()


def test_long_documents_are_tokenised_in_parts_but_stay_one(tokenizer, monkeypatch):
    monkeypatch.setattr("hf_tfm.data.plain_text.MAX_CHARACTERS", 100)
    texts = ["the cat sat on the mat\n" * 50, "short", "x" * 450]
    store = TokenStore.from_texts(texts, tokenizer, wrap=False)
    assert [tokenizer.decode(store[i]) for i in range(3)] == texts


def test_a_store_is_built_once(file, tokenizer, cache, monkeypatch, tmp_path):
    first = TokenStore.build(file, tokenizer, cache_dir=cache)
    encode = data.encode_documents
    monkeypatch.setattr(data, "encode_documents", no_tokenizing)
    again = TokenStore.build(file, tokenizer, cache_dir=cache)
    assert again.folder == first.folder and np.array_equal(again.tokens, first.tokens)
    # What counts is what is in the file.
    moved = shutil.copy(file, tmp_path / "other_name.jsonl")
    assert TokenStore.build(moved, tokenizer, cache_dir=cache).folder == first.folder

    monkeypatch.setattr(data, "encode_documents", encode)
    other = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="[SEP]")
    folders = {
        first.folder,
        TokenStore.build(file, tokenizer, wrap=False, cache_dir=cache).folder,
        TokenStore.build({"location": str(file), "part": (0, 0.5)}, tokenizer, cache_dir=cache).folder,
        TokenStore.build([file, file], tokenizer, cache_dir=cache).folder,
        TokenStore.build(file, other, cache_dir=cache).folder,
    }
    assert len(folders) == 5
    file.write_text(file.read_text().replace("moon", "noon"))
    assert TokenStore.build(file, tokenizer, cache_dir=cache).folder not in folders


def test_opening_reads_neither_text_nor_tokens(file, tokenizer, cache, monkeypatch):
    old = time.time() - 60
    os.utime(file, (old, old))
    monkeypatch.setattr(cache_module.time, "time", lambda: old + 120)  # what was just changed is not remembered
    first = TokenStore.build(file, tokenizer, cache_dir=cache)
    real_open = open

    def careful_open(path, *args, **kwargs):
        assert path != file.resolve(), "read again"
        return real_open(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", careful_open)
        patch.setattr(data, "encode_documents", no_tokenizing)
        assert TokenStore.build(file, tokenizer, cache_dir=cache).folder == first.folder
    # A file of the same size that was touched is read again, also one that was given the old one's time.
    file.write_text(file.read_text().replace("moon", "noon"))
    os.utime(file, (old + 1, old + 1))
    second = TokenStore.build(file, tokenizer, cache_dir=cache)
    assert second.folder != first.folder
    file.write_text(file.read_text().replace("noon", "soon"))
    os.utime(file, (old + 1, old + 1))
    assert TokenStore.build(file, tokenizer, cache_dir=cache).folder not in (first.folder, second.folder)


def in_child(function) -> int:
    """Runs a function in a forked process; returns its exit code."""
    child = multiprocessing.get_context("fork").Process(target=function)
    child.start()
    child.join(30)
    return child.exitcode


def test_streamed_files_are_known_without_reading_them(file, cache, monkeypatch):
    def digest(sources=file, **options):
        return contents_digest(sources, cache, **options)

    def no_open(path, *args, **kwargs):
        raise AssertionError(f"{path} is read")

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", no_open)
        first = digest(streaming=True)
        assert digest(streaming=True) == first != digest({"location": str(file), "part": (0, 0.5)}, streaming=True)
        os.utime(file, (1e9, 1e9))
        touched = digest(streaming=True)
        assert first != touched
    assert not cache.exists()
    read = digest()
    os.utime(file, (2e9, 2e9))
    assert digest() == read and digest(streaming=True) not in (first, touched, read)


def test_a_killed_build_leaves_nothing_that_could_be_used(file, tokenizer, cache, small_groups):
    def build_and_die():
        def dying(*args, **kwargs):
            for i, chunk in enumerate(encode_documents(*args, **kwargs)):
                if i == 5:
                    os.kill(os.getpid(), signal.SIGKILL)
                yield chunk

        data.encode_documents = dying
        TokenStore.build(file, tokenizer, cache_dir=cache, num_proc=1)

    assert in_child(build_and_die) == -signal.SIGKILL
    (left,) = (cache / "tokens").glob(".*.partial")
    assert not [path for path in (cache / "tokens").iterdir() if path.is_dir() and path != left]
    store = TokenStore.build(file, tokenizer, cache_dir=cache)
    assert np.array_equal(store.tokens, TokenStore.build(file, tokenizer, cache_dir=cache.parent / "clean").tokens)
    assert not left.exists()


def test_a_failing_build_leaves_nothing(file, tokenizer, cache):
    with open(file, "a") as lines:
        lines.write('{"text": null}\n')
    with pytest.raises(InputError, match="line 201: field 'text' is null"):
        TokenStore.build(file, tokenizer, cache_dir=cache)
    assert not [path for path in (cache / "tokens").iterdir() if path.is_dir()]


def test_two_processes_build_one_store(file, tokenizer, cache):
    def build():
        def counting(*args, **kwargs):
            with open(file.with_name("builders"), "a") as builders:
                builders.write(f"{os.getpid()}\n")
            time.sleep(0.3)
            yield from encode_documents(*args, **kwargs)

        data.encode_documents = counting
        assert len(TokenStore.build(file, tokenizer, cache_dir=cache, num_proc=1)) == 200

    children = [multiprocessing.get_context("fork").Process(target=build) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(30)
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert len(file.with_name("builders").read_text().split()) == 1


def test_cache_errors(file, tokenizer, tmp_path):
    (tmp_path / "taken").touch()
    with pytest.raises(InputError, match="cannot be written .* set HF_TFM_CACHE"):
        TokenStore.build(file, tokenizer, cache_dir=tmp_path / "taken")
    store = TokenStore.build(file, tokenizer, cache_dir=tmp_path / "cache")
    with open(store.folder / "tokens.bin", "r+b") as tokens:
        tokens.truncate(100)
    with pytest.raises(InputError, match="is not a whole cache folder .*; delete it"):
        TokenStore.build(file, tokenizer, cache_dir=tmp_path / "cache")
    with pytest.raises(InputError, match="is not a whole cache folder"):
        TokenStore.open(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
@pytest.mark.parametrize("full", ["versions", "tokens"])
def test_a_full_disk_is_one_line(full, file, tokenizer, cache, monkeypatch):
    """Neither what is known of files nor tokens can be written; nothing half written is left."""
    monkeypatch.setattr(cache_module.time, "time", lambda: os.stat(file).st_ctime + 60)
    real_open, real_write_text = open, Path.write_text

    def full_open(path, mode="r", *args, **kwargs):
        if "w" in mode and cache / full in Path(path).parents:
            return real_open("/dev/full", mode, *args, **kwargs)
        return real_open(path, mode, *args, **kwargs)

    def full_write_text(path, *args, **kwargs):
        if cache / full in path.parents:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_write_text(path, *args, **kwargs)

    monkeypatch.setattr("builtins.open", full_open)
    monkeypatch.setattr(Path, "write_text", full_write_text)
    with pytest.raises(InputError, match=rf"{full}.*(No space left on device|the disk is full).*; free space"):
        TokenStore.build(file, tokenizer, cache_dir=cache)
    assert not [path for path in (cache / full).iterdir() if path.suffix != ".lock"]


def test_check_vocab(tokenizer):
    store = TokenStore.from_texts(["moon"], tokenizer)
    store.check_vocab(int(store.tokens.max()) + 1)
    with pytest.raises(InputError, match="tokenizer of another model"):
        store.check_vocab(int(store.tokens.max()))


def test_a_store_travels_to_another_process_as_a_path(file, tokenizer, cache):
    store = TokenStore.build(file, tokenizer, cache_dir=cache)
    sent = pickle.dumps(store)
    assert len(sent) < 1000
    assert np.array_equal(pickle.loads(sent).tokens, store.tokens)
    in_memory = TokenStore.from_texts(["a b"], tokenizer)
    assert np.array_equal(pickle.loads(pickle.dumps(in_memory)).tokens, in_memory.tokens)


def test_hub_datasets_are_known_by_version_and_remembered_offline(file, tokenizer, cache, monkeypatch):
    folder = file.parent / "dataset"
    folder.mkdir()
    shutil.copy(file, folder / "train.jsonl")
    store = TokenStore.build(f"hub:{folder}", tokenizer, cache_dir=cache)
    assert np.array_equal(store.tokens, TokenStore.build(file, tokenizer, cache_dir=cache).tokens)

    def unreachable(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr("datasets.load_dataset_builder", unreachable)
    assert TokenStore.build(f"hub:{folder}", tokenizer, cache_dir=cache).folder == store.folder
    with pytest.raises(InputError, match="hub:a/b: cannot be opened .no network"):
        TokenStore.build("hub:a/b", tokenizer, cache_dir=cache)


def test_a_stream_gives_the_documents_of_the_store_and_starts_again(file, texts, tokenizer, cache):
    stream = TokenStream([file, file], tokenizer, window_characters=20_000, cache_dir=cache)
    store = TokenStore.from_texts(texts * 2, tokenizer)
    windows, position = [], None
    while not windows or position is not None:
        window, position = stream.read_window(position)
        windows.append(window)
    assert len(windows) > 5
    assert np.array_equal(np.concatenate([window.tokens for window in windows]), store.tokens)
    assert np.array_equal(np.concatenate([window.byte_counts for window in windows]), store.byte_counts)
    assert np.array_equal(stream.read_window(position)[0].tokens, windows[0].tokens)


@pytest.mark.parametrize("place", ["file", "hub"])
def test_a_stream_comes_back_to_any_window(place, file, tokenizer, cache):
    if place == "hub":
        folder = file.parent / "dataset"
        folder.mkdir()
        shutil.copy(file, folder / "train.jsonl")
    source = file if place == "file" else f"hub:{folder}"

    def stream():
        return TokenStream(source, tokenizer, window_characters=30_000, cache_dir=cache)

    running, positions, windows = stream(), [None], []
    for _ in range(3):
        window, position = running.read_window(positions[-1])
        windows.append(window)
        positions.append(json.loads(json.dumps(position)))
    for index in (2, 0, 1):
        again, following = stream().read_window(positions[index])
        assert np.array_equal(again.tokens, windows[index].tokens)
        assert following == positions[index + 1]
    assert all(not np.array_equal(a.tokens, b.tokens) for a, b in pairwise(windows))


def test_streams_are_told_apart(file, tokenizer, cache):
    keys = {
        TokenStream(file, tokenizer, cache_dir=cache).key(),
        TokenStream(file, tokenizer, cache_dir=cache, wrap=False).key(),
        TokenStream(file, tokenizer, cache_dir=cache, window_characters=9).key(),
        TokenStream([file, file], tokenizer, cache_dir=cache).key(),
    }
    assert len(keys) == 4
    with pytest.raises(InputError, match="tokenizer of another model"):
        TokenStream(file, tokenizer, cache_dir=cache).check_vocab(10)
