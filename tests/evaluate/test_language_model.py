"""Figures of language models against plain computations of the same, in any batch."""

import math

import pytest
import tiny
import torch
from likelihoods import as_records, language_model, log_likelihood, pseudo_log_likelihood
from tiny import BOS

from hf_tfm.core.errors import InputError
from hf_tfm.data.tokenizer import encode_text
from hf_tfm.evaluate.language_model import (
    TextReader,
    accuracy_by_group,
    bits_per_byte,
    generate_samples,
    group_rows,
    minimal_pairs,
    sliding_windows,
)
from hf_tfm.tasks.likelihood import LanguageModel


PAIRS = [
    ("the cat sat on the mat", "the cat mat on the sat"),
    ("rain fell on the roof while the kettle sang", "rain roof on the fell while the kettle sang"),
    ("six of them came home", "six of them home"),
    ("a small model", "small a model learns what a small text can teach"),
]


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "default", "bert"])
def test_figures_do_not_depend_on_the_batch(name, tokenizer):
    documents = [("a" if n % 2 else "b", " ".join(tiny.CORPUS[: n + 1])) for n in range(3)]
    figures, hits = [], []
    for batch_tokens in (1, 10_000):
        lm = language_model(name, tokenizer, batch_tokens=batch_tokens)
        figures.append(bits_per_byte(lm, documents, window=24, stride=10))
        hits.append(minimal_pairs(lm, PAIRS).tolist())
    for other in figures[1:]:
        for source in figures[0]:
            for metric in ("bits_per_byte", "perplexity"):
                one, two = figures[0][source][metric], other[source][metric]
                assert (one.value, one.low, one.high) == pytest.approx((two.value, two.low, two.high), rel=1e-5)
    assert hits[0] == hits[1]


@pytest.mark.parametrize("length, window, stride", [(1, 4, 2), (2, 4, 2), (5, 4, 4), (6, 4, 1), (23, 8, 3), (9, 1, 1)])
def test_windows_predict_every_token_once_with_enough_context(length, window, stride):
    predicted = []
    for start, first, end in sliding_windows(length, window, stride):
        predicted += range(first, end)
        assert end - 1 - start <= window, "more tokens than the window has"
        assert start == 0 or first - start > window - stride, "a token has too little context"
    assert predicted == list(range(1, length))


def test_bits_per_byte_equals_its_definition(tokenizer):
    lm = language_model("qwen3", tokenizer)
    documents = [("all", "the cat sat on the mat — naïve"), ("all", "rain fell"), ("all", "")]
    found = bits_per_byte(lm, iter(documents))
    nats = -sum(log_likelihood(lm.model, [BOS, *ids], 1) for ids in encode_text(tokenizer, [t for _, t in documents]))
    size = sum(len(text.encode()) for _, text in documents)
    assert found["all"]["bytes"] == size and found["all"]["documents"] == 3
    assert found["all"]["bits_per_byte"].value == pytest.approx(nats / size / math.log(2), rel=1e-6)
    assert found["all"]["perplexity"].value == pytest.approx(math.exp(nats / found["all"]["tokens"]), rel=1e-6)


def test_bits_per_byte_of_windows_equals_rows_with_that_context(tokenizer):
    lm = language_model("gpt2", tokenizer)  # 64 learned positions: more would be an error
    text = " ".join(tiny.CORPUS[:6])
    ids = [BOS, *encode_text(tokenizer, [text])[0]]
    assert len(ids) > 100
    nats = 0.0
    for start, first, end in sliding_windows(len(ids), 32, 8):
        nats -= log_likelihood(lm.model, ids[start:end], first - start)
    found = bits_per_byte(lm, [("all", text)], window=32, stride=8)["all"]["bits_per_byte"]
    assert found.value == pytest.approx(nats / len(text) / math.log(2), rel=1e-6)
    assert found.low < found.value < found.high, "one document has an interval too, from its pieces"


def test_pseudo_bits_per_byte_of_a_masked_model(tokenizer):
    lm = language_model("default", tokenizer)
    ids = encode_text(tokenizer, ["the cat sat on the mat"])[0]
    assert len(ids) > 5
    nats = -sum(pseudo_log_likelihood(lm.model, ids[start : start + 5]) for start in range(0, len(ids), 5))
    found = bits_per_byte(lm, [("all", "the cat sat on the mat")], window=5)
    assert found["all"]["bits_per_byte"].value == pytest.approx(nats / 22 / math.log(2), rel=1e-5)


@pytest.mark.parametrize("name", ["qwen3", "native/gpt2", "default"])
def test_minimal_pairs_compare_whole_sentences(name, tokenizer):
    lm = language_model(name, tokenizer)
    expected = []
    for pair in PAIRS:
        ids = encode_text(tokenizer, pair)
        score = (lambda x: log_likelihood(lm.model, [BOS, *x], 1)) if lm.causal else (
            lambda x: pseudo_log_likelihood(lm.model, x)
        )  # fmt: skip
        expected.append(score(ids[0]) > score(ids[1]))
    assert minimal_pairs(lm, PAIRS).tolist() == expected
    swapped = minimal_pairs(lm, [(bad, good) for good, bad in PAIRS])
    assert swapped.tolist() == [not hit for hit in expected]
    assert not minimal_pairs(lm, [("the cat", "the cat")]).any(), "a tie is not a hit"


def test_minimal_pairs_have_a_variant_by_word(tokenizer):
    lm = language_model("default", tokenizer)
    pairs = [("questions", "question")] * 2
    assert len(encode_text(tokenizer, pairs[0])[0]) > 1
    assert minimal_pairs(lm, pairs, by_word=True).shape == (2,)


def test_bf16_is_close(tokenizer):
    exact, rough = (
        bits_per_byte(language_model("qwen3", tokenizer, bf16=bf16), [("all", tiny.CORPUS[0])])["all"]["bits_per_byte"]
        for bf16 in (False, True)
    )
    assert exact.value != rough.value and rough.value == pytest.approx(exact.value, rel=0.03)


def test_adapters_are_measured_as_the_merged_model(tokenizer):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny.build("TfmDecoderForCausalLM"), LoraConfig(target_modules="all-linear", r=2)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.3)
    wrapped = bits_per_byte(LanguageModel(model, tokenizer, True), [("all", tiny.CORPUS[0])])
    merged = bits_per_byte(LanguageModel(model.merge_and_unload(), tokenizer, True), [("all", tiny.CORPUS[0])])
    plain = bits_per_byte(language_model("qwen3", tokenizer), [("all", tiny.CORPUS[0])])
    value = [found["all"]["bits_per_byte"].value for found in (wrapped, merged, plain)]
    assert value[0] == pytest.approx(value[1], rel=1e-5) and abs(value[0] - value[2]) > 1e-3


def test_samples_depend_on_the_seed(tokenizer):
    lm = language_model("qwen3", tokenizer)
    first = generate_samples(lm, ["the cat"], 8, seed=1, do_sample=True)
    assert first == generate_samples(lm, ["the cat"], 8, seed=1, do_sample=True)
    assert first != generate_samples(lm, ["the cat"], 8, seed=2, do_sample=True) and first[0].startswith("the cat")
    with pytest.raises(InputError, match="leaves no room"):
        generate_samples(lm, ["zq" * 80], 8)


def test_invalid_windows_and_texts_are_refused(tokenizer):
    lm = language_model("qwen3", tokenizer)
    with pytest.raises(InputError, match="window 65: this model takes 1 to 64"):
        bits_per_byte(lm, [("all", "a")], window=65)
    with pytest.raises(InputError, match="stride 9 must lie"):
        bits_per_byte(lm, [("all", "a")], window=8, stride=9)
    with pytest.raises(InputError, match="no text to measure"):
        bits_per_byte(lm, [])
    with pytest.raises(InputError, match="takes 1 to"):
        minimal_pairs(lm, [("zq" * 80, "a")])


def test_text_is_read_with_its_source(tmp_path):
    file = tmp_path / "text.jsonl"
    file.write_text('{"text": "one two", "source": "x"}\n{"text": "three", "source": "y"}\n')
    assert list(TextReader(str(file))) == [("all", "one two"), ("all", "three")]
    assert list(TextReader(str(file), source_field="source")) == [("x", "one two"), ("y", "three")]
    with pytest.raises(InputError, match="text.jsonl, line 1: no text in field 'kind'"):
        list(TextReader(str(file), source_field="kind"))


def test_accuracy_by_group_has_intervals():
    records = as_records([("a", 1), ("b", 2), ("c", 1)])
    assert group_rows(records, "label") == {"1": [0, 2], "2": [1]} and group_rows(records, None) == {"all": [0, 1, 2]}
    shares = accuracy_by_group({"x": (8, 10), "y": (1, 10)})
    assert shares["all"].value == 0.45 and shares["all"].n == 20 and shares["x"].low == pytest.approx(0.490, abs=1e-3)
