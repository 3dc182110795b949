"""GGUF files: read back with the source's weights, and run by llama.cpp with the same tokens where it is installed."""

import importlib.util

import pytest
import torch
from tiny import CORPUS, build, build_tokenizer
from tokenizers import Regex, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from hf_tfm.convert.export import export
from hf_tfm.convert.gguf import pre_tokenizer_rule
from hf_tfm.core.errors import InputError
from hf_tfm.data.tokenizer import train_tokenizer


gguf = pytest.importorskip("gguf")

DECODER = "TfmDecoderForCausalLM"
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=10_000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
# A shape of every family that llama.cpp runs, and fields of the file that its computation hangs on.
SHAPES = {
    "qwen3": (dict(shape="qwen3"), {"general.architecture": "qwen3", "qwen3.attention.head_count_kv": 2}),
    "untied llama": (dict(shape="llama"), {"llama.attention.head_count_kv": 1, "llama.rope.freq_base": 500_000.0}),
    "wide heads": (dict(shape="llama", num_key_value_heads=2, head_dim=16), {"llama.rope.dimension_count": 16}),
    "llama 3": (dict(shape="llama", rope_parameters=LLAMA3), {"llama.attention.key_length": 8}),
    "linear": (
        dict(shape="qwen3", rope_parameters=dict(rope_type="linear", rope_theta=500.0, factor=2.0)),
        {"qwen3.rope.scaling.type": "linear", "qwen3.rope.scaling.factor": 2.0, "qwen3.rope.freq_base": 500.0},
    ),
    "mistral": (dict(shape="mistral", sliding_window=64), {"general.architecture": "llama"}),
    "gpt2": (dict(shape="gpt2"), {"general.architecture": "gpt2", "gpt2.feed_forward_length": 48}),
}


@pytest.fixture(scope="module")
def words():
    return train_tokenizer(CORPUS, vocab_size=300, min_frequency=1)


def save(folder, words, shape="qwen3", **switches):
    switches = dict(bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, **switches)
    build(DECODER, shape, **switches).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def fields_of(folder):
    (file,) = folder.glob("*.gguf")
    reader = gguf.GGUFReader(file)
    return file, {name: field.contents() for name, field in reader.fields.items()}, reader.tensors


@pytest.mark.parametrize("case", SHAPES)
def test_gguf_files_contain_the_weights(case, words, tmp_path):
    switches, expected = SHAPES[case]
    source = save(tmp_path / "source", words, **switches)
    check = export(source, tmp_path / "out", "gguf").checks[0]
    assert "from the GGUF file" in check.runtime
    assert check.max_difference == 0 and check.greedy_same == check.greedy_tokens > 0
    _, fields, tensors = fields_of(tmp_path / "out")
    assert {name: fields[name] for name in expected} == expected
    arch = fields["general.architecture"]
    assert fields[f"{arch}.context_length"] == 64 and fields[f"{arch}.block_count"] == 2
    names = {tensor.name for tensor in tensors}
    assert ("output.weight" in names) == (case in ("untied llama", "wide heads", "llama 3", "mistral"))
    assert ("rope_freqs.weight" in names) == (case == "llama 3")


@pytest.mark.parametrize("dtype, share", [("f16", 0.6), ("bf16", 0.6), ("q8_0", 0.4)])
def test_smaller_weights_are_close(dtype, share, words, tmp_path):
    source = save(tmp_path / "source", words, hidden_size=64, head_dim=32, num_attention_heads=2, intermediate_size=96)
    report = export(source, tmp_path / "out", "gguf", dtype=dtype)
    assert 0 < report.checks[0].relative_difference < 0.03 and report.checks[0].same_choice > 0.9
    file, _, tensors = fields_of(tmp_path / "out")
    assert file.name == f"out-{dtype}.gguf"
    assert sum(tensor.n_bytes for tensor in tensors) < share * report.source_bytes
    kinds = {tensor.name: tensor.tensor_type.name for tensor in tensors}
    assert kinds["blk.0.attn_q.weight"] == dtype.upper() and kinds["blk.0.attn_q_norm.weight"] == "F32"


def test_half_precision_weights_are_kept(words, tmp_path):
    source = save(tmp_path / "source", words)
    AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(source)
    report = export(source, tmp_path / "out", "gguf")
    assert report.weights == "bf16" and report.checks[0].max_difference == 0


def test_rows_that_do_not_fill_blocks_stay_in_f16(words, tmp_path):
    source = save(tmp_path / "source", words)  # 48 wide in the feed-forward layer, where a block holds 32
    export(source, tmp_path / "out", "gguf", dtype="q8_0")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in fields_of(tmp_path / "out")[2]}
    assert (kinds["blk.0.ffn_down.weight"], kinds["blk.0.ffn_up.weight"]) == ("F16", "Q8_0")


def test_gguf_files_contain_the_tokenizer(words, tmp_path):
    source = save(tmp_path / "source", words)  # 320 rows in the embedding
    export(source, tmp_path / "out", "gguf", untie=True)
    file, fields, tensors = fields_of(tmp_path / "out")
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert tokens[: len(words)] == words.convert_ids_to_tokens(range(len(words)))
    assert len(tokens) == len(kinds) == 320 and set(kinds[len(words) :]) == {5}
    assert {token for token, kind in zip(tokens, kinds) if kind == 3} == set(words.all_special_tokens)
    assert fields["tokenizer.ggml.pre"] == "smollm" and fields["tokenizer.chat_template"] == words.chat_template
    for name, token in dict(bos=words.bos_token_id, eos=words.eos_token_id, padding=words.pad_token_id).items():
        assert fields[f"tokenizer.ggml.{name}_token_id"] == token
    assert (fields["tokenizer.ggml.add_bos_token"], fields["tokenizer.ggml.add_eos_token"]) == (True, False)
    assert "output.weight" in {tensor.name for tensor in tensors}
    read = AutoTokenizer.from_pretrained(tmp_path / "out", gguf_file=file.name)
    text = "the moon sang <|end|> at a ship"
    assert read(text, add_special_tokens=False)["input_ids"] == words(text, add_special_tokens=False)["input_ids"]
    assert file.name in (tmp_path / "out/README.md").read_text()


REFUSED = {
    "masked": ("TfmDecoderForMaskedLM", dict(), "TfmDecoderForMaskedLM: GGUF files are for causal LMs"),
    "window": (DECODER, dict(shape="mistral"), "sliding_window=4: llama.cpp has full attention"),
    "two kinds of layers": (DECODER, dict(shape="mixed"), "sliding_window=4"),
    "post norm": (DECODER, dict(shape="vaswani2017"), "norm_type='layernorm': Llama has"),
    "no positions": (DECODER, dict(shape="none"), "position_embedding_type='none'|gated_mlp|hidden_act"),
    "biases": (DECODER, dict(shape="llama", attention_bias=True), "attention_bias=True: transformers does not read"),
    "activation": (
        DECODER,
        dict(hidden_act="gelu"),
        "hidden_act='gelu': llama.cpp computes Qwen3ForCausalLM with silu",
    ),
    "GPT-2's activation": (DECODER, dict(shape="gpt2", hidden_act="gelu"), "with gelu_new"),
    "llama 3 in qwen3": (DECODER, dict(rope_parameters=LLAMA3), "rope_type='llama3': supported for Qwen3ForCausalLM"),
    "cross-attention": (DECODER, dict(shape="gpt2", add_cross_attention=True), "add_cross_attention=True: llama.cpp"),
    "small vocabulary": (DECODER, dict(vocab_size=299), "ids beyond vocab_size=299"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unsupported_fields_are_named(case, words, tmp_path):
    name, switches, message = REFUSED[case]
    switches = {"shape": "qwen3", **switches}
    build(name, **switches, bos_token_id=2, eos_token_id=3).save_pretrained(tmp_path / "source")
    words.save_pretrained(tmp_path / "source")
    with pytest.raises(InputError, match=message) as error:
        export(tmp_path / "source", tmp_path / "out", "gguf")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_tokenizer_is_needed(words, tmp_path):
    build(DECODER).save_pretrained(tmp_path / "source")
    with pytest.raises(InputError, match="no tokenizer.json, which"):
        export(tmp_path / "source", tmp_path / "out", "gguf")
    build_tokenizer().save_pretrained(tmp_path / "source")
    with pytest.raises(InputError, match=r"\['\[CLS\]', 'a', '\[SEP\]'\] of 'a': llama.cpp can add bos"):
        export(tmp_path / "source", tmp_path / "out", "gguf")


def split(regex):
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(regex), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )


def test_supported_tokenizer_rules(words):
    assert pre_tokenizer_rule(words) == "smollm"
    assert pre_tokenizer_rule(build_tokenizer()) == "gpt-2"
    theirs = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = split(theirs % "")
    assert pre_tokenizer_rule(tokenizer) == "qwen2"
    tokenizer.backend_tokenizer.model.ignore_merges = True
    tokenizer.backend_tokenizer.pre_tokenizer = split(theirs % "{1,3}")
    assert pre_tokenizer_rule(tokenizer) == "llama-bpe"


def test_unsupported_tokenizer_rules_are_refused():
    tokenizer = build_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(InputError, match="pre_tokenizer ByteLevel of tokenizer.json: llama.cpp has no such rule"):
        pre_tokenizer_rule(tokenizer)
    tokenizer.backend_tokenizer.pre_tokenizer = split(r"\w+")
    with pytest.raises(InputError, match=r"pre_tokenizer Split \+ ByteLevel"):
        pre_tokenizer_rule(tokenizer)
    with pytest.raises(InputError, match="no byte-level BPE but WordPiece"):
        pre_tokenizer_rule(train_tokenizer(CORPUS, "wordpiece", vocab_size=200, style="encoder"))
    with pytest.raises(InputError, match="no merges"):
        pre_tokenizer_rule(train_tokenizer(kind="bytes"))


def test_without_llama_cpp_only_transformers_checks_the_file(monkeypatch, words, tmp_path):
    """The report names transformers as the only runtime."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: name != "llama_cpp" and find(name, *args))
    report = export(save(tmp_path / "source", words), tmp_path / "out", "gguf")
    assert [check.runtime.split(",")[0] for check in report.checks] == ["transformers"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: name != "gguf" and find(name, *args))
    with pytest.raises(InputError, match="needs the package gguf"):
        export(tmp_path / "source", tmp_path / "other", "gguf")


def learn(model, words, steps=150):
    """Until it writes letters: random weights write bytes that are no text, which every program shows as it likes."""
    texts = [words(text)["input_ids"] + [words.eos_token_id] for text in CORPUS[:6]]
    batch = words.pad({"input_ids": texts}, padding_side="right", return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.slow
@pytest.mark.parametrize("case", SHAPES)
def test_llama_cpp_generates_the_same_text(case, words, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    source = save(tmp_path / "source", words, **SHAPES[case][0])
    model = AutoModelForCausalLM.from_pretrained(source)
    learn(model, words)
    model.save_pretrained(source)
    check = export(source, tmp_path / "out", "gguf").checks[1]
    assert "llama.cpp" in check.runtime and check.relative_difference < 1e-3
    assert check.greedy_same == check.greedy_tokens
    (file,) = (tmp_path / "out").glob("*.gguf")
    theirs = llama_cpp.Llama(str(file), n_ctx=64, verbose=False)
    settings = GenerationConfig(max_new_tokens=40, do_sample=False, eos_token_id=words.eos_token_id, pad_token_id=0)
    written = []
    for prompt in [text[:8] for text in CORPUS[:6]]:
        ids = words(prompt, return_tensors="pt")
        ours = model.eval().generate(**ids, generation_config=settings)[0, ids["input_ids"].shape[1] :]
        written.append(theirs(prompt, max_tokens=40, temperature=0, repeat_penalty=1.0)["choices"][0]["text"])
        # llama-cpp-python drops the bytes that are no text.
        assert written[-1] == words.decode(ours, skip_special_tokens=True).replace("\N{REPLACEMENT CHARACTER}", "")
    assert len("".join(written)) > 30
