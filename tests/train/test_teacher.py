"""A teacher's targets: those of each document alone, for any packing; computed once, also after a kill."""

import numpy as np
import pytest
import torch
from tiny import CORPUS, build, build_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from hf_tfm.core.errors import InputError
from hf_tfm.data import soft_targets
from hf_tfm.data.packed_blocks import PackedBlocks
from hf_tfm.data.soft_targets import SoftCausal, SoftTargets, TargetsFile, Windows
from hf_tfm.data.tokens import TokenStore
from hf_tfm.train import teacher as teacher_module
from hf_tfm.train.soft_loss import SoftLabels
from hf_tfm.train.teacher import load_teacher, teacher_targets


K = 5
SETTINGS = dict(k=K, temperature=1.0, length=64, vocab_size=320, begin_ids=[], bf16=False)


def build_teacher(kind: str):
    torch.manual_seed(0)
    shape = dict(vocab_size=320, bos_token_id=1, eos_token_id=2, initializer_range=0.2)
    if kind == "llama":
        sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        return LlamaForCausalLM(LlamaConfig(**shape, **sizes)).eval()
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(**shape, n_embd=32, n_layer=2, n_head=4, n_positions=64)).eval()
    return build("TfmDecoderForCausalLM").eval()


@pytest.fixture
def store(tmp_path):
    file = tmp_path / "text.txt"
    texts = [" ".join(CORPUS[n : n + 1 + n % 2]) for n in range(12)]  # of very different lengths
    file.write_text("\n".join(texts))
    sources = [{"location": str(file), "text_unit": "line"}]
    return TokenStore.build(sources, build_tokenizer(), cache_dir=tmp_path / "cache")


@torch.no_grad()
def own_targets(model, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the likeliest tokens behind each token but the last, and logarithms of probabilities."""
    soft = SoftLabels.of_logits(model(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0, :-1], K, 1.0)
    return soft.ids.numpy(), soft.log_probs.numpy()


@pytest.mark.parametrize("kind", ["tfm", "llama", "gpt2"])
def test_targets_are_the_teachers_own_of_each_document(store, kind):
    model = build_teacher(kind)
    targets = teacher_targets(model, {"teacher": kind}, store, **SETTINGS)
    assert len(targets) == store.num_tokens and targets.ids.dtype == np.uint16
    for first, last in zip(store.offsets[:-1], store.offsets[1:]):
        ids, log_probs = own_targets(model, store.tokens[first:last])
        given_ids, given = targets.take(np.arange(first + 1, last))
        assert np.array_equal(given_ids, ids)
        np.testing.assert_allclose(given, log_probs, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(np.exp(given).sum(-1), 1, rtol=1e-5)


def test_documents_longer_than_a_window_keep_an_eighth_as_context(store):
    model = build_teacher("tfm")
    targets = teacher_targets(model, {}, store, **{**SETTINGS, "length": 16})
    longest = int(np.diff(store.offsets).argmax())
    first, last = store.offsets[longest], store.offsets[longest + 1]
    assert last - first > 30
    for start in range(0, last - first - 2, 14):
        ids, log_probs = own_targets(model, store.tokens[first + start : min(first + start + 16, last)])
        begin = 0 if start == 0 else 1  # the second of two tokens of context is predicted in the window before
        given_ids, given = targets.take(np.arange(first + start + 1 + begin, first + start + 1 + len(ids)))
        assert np.array_equal(given_ids, ids[begin:])
        np.testing.assert_allclose(given, log_probs[begin:], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("length", [1, 7, 16, 40])
def test_windows_give_each_token_once(length):
    lengths = [1, 5, 16, 17, 33, 100, 3]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    store = TokenStore(np.arange(offsets[-1]), offsets, np.array(lengths))
    windows = Windows.of(store, length)
    given = [np.arange(first, end) for first, end in zip(windows.firsts, windows.ends)]
    assert np.array_equal(np.concatenate(given), store.tokens)
    assert (windows.ends - windows.starts <= length).all() and (windows.starts <= windows.firsts).all()


def test_batches_have_the_targets_of_their_tokens(store):
    """Also when rows are shuffled, cut, and drawn from two stores."""
    model = build_teacher("tfm")
    targets = teacher_targets(model, {}, store, **SETTINGS)
    tokenizer = build_tokenizer()
    blocks = PackedBlocks([store, store], 32, pad_token_id=tokenizer.pad_token_id, weights=[2, 1])
    batch = blocks.rows(np.arange(6))
    inputs = SoftCausal([targets, targets])(batch)
    is_predicted = inputs["labels"][:, 1:] != -100
    places = torch.from_numpy(batch["token_numbers"])[:, 1:][is_predicted].numpy() % store.num_tokens
    assert np.array_equal(store.tokens[places], inputs["labels"][:, 1:][is_predicted].numpy())
    ids, log_probs = targets.take(places)
    assert torch.equal(inputs["teacher_ids"], torch.from_numpy(ids))
    assert torch.equal(inputs["teacher_log_probs"], torch.from_numpy(log_probs))


def test_pieces_with_ends_around_them_have_certain_ends(tmp_path, store):
    """Rows of tokenizers with [CLS]: the teacher reads it in front of each window, and the [SEP] is in no store."""
    model = build_teacher("tfm")
    tokenizer = build_tokenizer()
    targets = teacher_targets(model, {}, store, **{**SETTINGS, "begin_ids": [4]})
    ids, log_probs = own_targets(model, np.concatenate([[4], store[0]]))
    given_ids, given = targets.take(np.arange(len(store[0])))
    assert np.array_equal(given_ids, ids)
    np.testing.assert_allclose(given, log_probs, rtol=1e-3, atol=1e-3)
    batch = PackedBlocks(store, 32, pad_token_id=tokenizer.pad_token_id, piece_ids=(4, 5)).rows(np.arange(3))
    inputs = SoftCausal([targets])(batch)
    is_end = inputs["labels"][:, 1:][inputs["labels"][:, 1:] != -100] == 5
    assert is_end.any() and (inputs["teacher_ids"][is_end] == 5).all()
    assert torch.equal(inputs["teacher_log_probs"][is_end].exp(), torch.eye(1, K + 1).repeat(int(is_end.sum()), 1))


def test_a_killed_computation_goes_on_and_gives_the_same(store, monkeypatch, tmp_path):
    model = build_teacher("tfm")
    whole = teacher_targets(model, {"run": 0}, store, **SETTINGS)
    monkeypatch.setattr(soft_targets, "_PART", 64)
    write, written = TargetsFile.write, []

    def killed(self, part, *arguments):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(part)
        write(self, part, *arguments)

    monkeypatch.setattr(TargetsFile, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        teacher_targets(model, {"run": 1}, store, **SETTINGS)
    rest = []
    monkeypatch.setattr(
        TargetsFile, "write", lambda self, part, *others: (rest.append(part), write(self, part, *others))
    )
    resumed = teacher_targets(model, {"run": 1}, store, **SETTINGS)
    assert rest and not set(rest) & set(written)
    assert np.array_equal(resumed.ids, whole.ids) and np.array_equal(resumed.log_probs, whole.log_probs)
    # It is complete: neither the teacher nor a file is needed again.
    monkeypatch.setattr(teacher_module, "_compute", None)
    assert isinstance(teacher_targets(model, {"run": 1}, store, **SETTINGS), SoftTargets)


def test_another_teacher_context_or_temperature_has_targets_of_its_own(store):
    model = build_teacher("tfm")
    settings = [({}, {}), ({"teacher": 1}, {}), ({}, {"length": 32}), ({}, {"temperature": 2.0}), ({}, {"k": 3})]
    for key, changes in settings:
        teacher_targets(model, key, store, **{**SETTINGS, **changes})
    assert len(list(store.folder.glob("targets*/meta.json"))) == len(settings)


def test_a_full_disk_is_told_before_the_teacher_reads(store, monkeypatch):
    monkeypatch.setattr(soft_targets.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100}))
    monkeypatch.setattr(teacher_module, "_compute", None)
    with pytest.raises(InputError, match="has 0.00 GB left: free space, .* or give a smaller --top_k"):
        teacher_targets(build_teacher("tfm"), {}, store, **SETTINGS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("teacher")
    build_teacher("tfm").save_pretrained(root)
    build_tokenizer().save_pretrained(root)
    return root


def test_a_teacher_with_other_tokens_is_refused(folder, tmp_path):
    tokenizer = build_tokenizer()
    assert not any(
        weight.requires_grad for weight in load_teacher(str(folder), "AutoModelForCausalLM", tokenizer).parameters()
    )
    build("TfmDecoderForCausalLM", vocab_size=100).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="the model 100 embeddings"):
        load_teacher(str(tmp_path), "AutoModelForCausalLM", tokenizer)
    tokenizer.add_tokens(["newtoken"])
    with pytest.raises(InputError, match=r"another one .* 1 of the student's .* such as 'newtoken'"):
        load_teacher(str(folder), "AutoModelForCausalLM", tokenizer)
    model = build_teacher("tfm")
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="a part of the teacher's: trim the teacher by the same text"):
        load_teacher(str(tmp_path), "AutoModelForCausalLM", build_tokenizer())


def test_a_masked_teacher_of_a_causal_student_is_refused(folder, tmp_path):
    build("TfmEncoderForMaskedLM").save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="which AutoModelForCausalLM does not open"):
        load_teacher(str(tmp_path), "AutoModelForCausalLM", build_tokenizer())
