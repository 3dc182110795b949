"""Figures of language models against plain computations of the same, whatever the batch, the padding or the cache."""

import itertools
import math

import numpy as np
import pytest
import tiny
import torch
from parity_table import native_model
from tiny import BOS, CLS, MASK, SEP

from hf_tfm.core.errors import InputError
from hf_tfm.data.records import Records
from hf_tfm.data.tokenizer import encode_text
from hf_tfm.evaluate.few_shot import Prompt, draw_examples, label_log_probabilities, label_words, score_labels
from hf_tfm.evaluate.language_model import (
    accuracy_by_group,
    bits_per_byte,
    generate_samples,
    group_rows,
    minimal_pairs,
    read_text,
    sliding_windows,
)
from hf_tfm.evaluate.result_store import PARTS_FILE, ResultStore
from hf_tfm.tasks.labels import read_labels
from hf_tfm.tasks.likelihood import LanguageModel, Row, logits_only_at


PAIRS = [
    ("the cat sat on the mat", "the cat mat on the sat"),
    ("rain fell on the roof while the kettle sang", "rain roof on the fell while the kettle sang"),
    ("six of them came home", "six of them home"),
    ("a small model", "small a model learns what a small text can teach"),
]
DECODERS = ["qwen3", "gpt2", "vaswani2017", "mixed", "llama"]
ENCODERS = ["default", "bert", "modernbert"]


def native(family: str, head: str):
    return native_model(family, head, vocab_size=tiny.VOCAB_SIZE).eval()


def model_of(name: str):
    """One of our decoders or encoders by shape, or a native model by `native/family`."""
    if name.startswith("native/"):
        family = name.removeprefix("native/")
        return native(family, "MaskedLM" if "bert" in family else "CausalLM")
    if name == "pretraining":
        return tiny.build("TfmEncoderForPreTraining")
    head = "TfmDecoderForCausalLM" if name in DECODERS else "TfmEncoderForMaskedLM"
    return tiny.build(head, name)


def language_model(name: str, tokenizer, **options) -> LanguageModel:
    model = model_of(name)
    return LanguageModel(model, tokenizer, model.can_generate(), **options)


@torch.no_grad()
def log_likelihood(model, ids: list[int], first: int) -> float:
    """Of `ids[first:]`, one row, without anything that evaluation does."""
    logits = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(logits[place - 1, ids[place]].item() for place in range(first, len(ids)))


@torch.no_grad()
def pseudo_log_likelihood(model, ids: list[int]) -> float:
    total = 0.0
    for place, token in enumerate(ids):
        row = torch.tensor([[CLS, *ids, SEP]])
        row[0, place + 1] = MASK
        output = model(input_ids=row)
        logits = output.prediction_logits if "prediction_logits" in output else output.logits
        total += logits[0, place + 1].double().log_softmax(-1)[token].item()
    return total


@pytest.mark.parametrize("name", [*DECODERS, "native/llama", "native/gpt2"])
def test_causal_scores_equal_rows_one_by_one(name, tokenizer):
    lm = language_model(name, tokenizer, batch_tokens=60)
    texts = encode_text(tokenizer, [text for pair in PAIRS for text in pair])
    rows = [Row(n, [BOS, *ids][:-1], range(len(ids)), ids) for n, ids in enumerate(texts)]
    scores = {key: values.sum() for key, values in lm.score(iter(rows))}
    assert scores.keys() == set(range(len(texts)))
    for number, ids in enumerate(texts):
        assert scores[number] == pytest.approx(log_likelihood(lm.model, [BOS, *ids], 1), abs=2e-4)


@pytest.mark.parametrize("name", [*ENCODERS, "pretraining", "native/bert", "native/modernbert"])
def test_masked_scores_equal_rows_one_by_one(name, tokenizer):
    lm = language_model(name, tokenizer, batch_tokens=100)
    texts = encode_text(tokenizer, [good for good, _ in PAIRS])
    scores = np.zeros(len(texts))
    for key, values in lm.score(
        itertools.chain.from_iterable(lm.pseudo_likelihood_rows(n, t) for n, t in enumerate(texts))
    ):
        scores[key] += values.sum()
    for number, ids in enumerate(texts):
        assert scores[number] == pytest.approx(pseudo_log_likelihood(lm.model, ids), abs=2e-4)


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "default", "bert"])
def test_figures_do_not_depend_on_the_batch(name, tokenizer):
    documents = [("a" if n % 2 else "b", " ".join(tiny.CORPUS[: n + 1])) for n in range(5)]
    figures, hits = [], []
    for batch_tokens in (1, 64, 10_000):
        lm = language_model(name, tokenizer, batch_tokens=batch_tokens)
        figures.append(bits_per_byte(lm, documents, window=24, stride=10))
        hits.append(minimal_pairs(lm, PAIRS).tolist())
    for other in figures[1:]:
        for source in figures[0]:
            for metric in ("bits_per_byte", "perplexity"):
                one, two = figures[0][source][metric], other[source][metric]
                assert (one.value, one.low, one.high) == pytest.approx((two.value, two.low, two.high), rel=1e-5)
    assert hits[0] == hits[1] == hits[2]


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
def test_minimal_pairs_equal_whole_sentences_compared(name, tokenizer):
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


def test_word_variant_masks_the_rest_of_the_word(tokenizer):
    lm = language_model("default", tokenizer)
    rows = list(lm.pseudo_likelihood_rows(0, [50, 51, 52, 53], [0, 0, 0, 1]))
    assert [list(row.ids) for row in rows] == [
        [CLS, MASK, MASK, MASK, 53, SEP],
        [CLS, 50, MASK, MASK, 53, SEP],
        [CLS, 50, 51, MASK, 53, SEP],
        [CLS, 50, 51, 52, MASK, SEP],
    ]
    assert [row.targets for row in rows] == [[50], [51], [52], [53]]
    pairs = [("questions", "question")] * 2
    assert len(encode_text(tokenizer, pairs[0])[0]) > 1
    assert minimal_pairs(lm, pairs, by_word=True).shape == (2,)


def test_only_asked_positions_reach_the_head(tokenizer):
    model = tiny.build("TfmDecoderForCausalLM")
    ids = tiny.random_ids(3, 7)
    with torch.no_grad():
        whole = model(input_ids=ids).logits.flatten(0, 1)
        with logits_only_at(model.base_model, torch.tensor([20, 3, 3])):
            some = model(input_ids=ids).logits
        again = model(input_ids=ids).logits.flatten(0, 1)
    assert some.shape == (1, 3, tiny.VOCAB_SIZE)
    torch.testing.assert_close(some[0], whole[[20, 3, 3]])
    assert torch.equal(again, whole), "the hook is gone"


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


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "mixed", "native/gpt2", "native/llama"])
def test_labels_behind_prompts_equal_rows_one_by_one(name, tokenizer, monkeypatch):
    lm = language_model(name, tokenizer, batch_tokens=40)
    prefix, *contexts = encode_text(tokenizer, ["the cat sat", "a small", "rain fell on", "six of", "the moon ends"])
    labels = encode_text(tokenizer, [" home", "k", " the book", " six"])
    assert len({len(label) for label in labels}) > 1 and min(map(len, labels)) == 1
    prefix = [BOS, *prefix]
    found = label_log_probabilities(lm, prefix, contexts, labels)
    for i, context in enumerate(contexts):
        for j, label in enumerate(labels):
            whole = [*prefix, *context, *label]
            expected = log_likelihood(lm.model, whole, len(whole) - len(label))
            assert found[i, j] == pytest.approx(expected, abs=2e-4)
    monkeypatch.setattr("hf_tfm.evaluate.few_shot._MAX_CACHE_BYTES", 1)
    np.testing.assert_allclose(label_log_probabilities(lm, prefix, contexts, labels), found, atol=2e-4)


def as_records(texts_and_labels) -> Records:
    rows = [{"text": text, "label": label} for text, label in texts_and_labels]
    return Records(rows, [f"file, line {n}" for n in range(len(rows))], "file")


def test_score_labels_decide_three_ways(tokenizer):
    lm = language_model("qwen3", tokenizer)
    records = as_records([("rain fell", "the moon"), ("seven ships", "cat"), ("the book", "cat")])
    task = read_labels(records)
    prompt = Prompt("{text} is {label}", label_words(task, ["cat=a small cat"]))
    assert task.names == ["cat", "the moon"] and prompt.answers == [" a small cat", " the moon"]
    scores = score_labels(lm, prompt, records, [(records[0], 1)])
    shown = "\n\nrain fell is the moon"
    ids = [BOS, *encode_text(tokenizer, [shown])[0], *encode_text(tokenizer, ["\n\nseven ships is"])[0]]
    answers = encode_text(tokenizer, prompt.answers)
    expected = [log_likelihood(lm.model, [*ids, *answer], len(ids)) for answer in answers]
    np.testing.assert_allclose(scores["sum"][1], expected, atol=2e-4)
    np.testing.assert_allclose(scores["length_normalised"], scores["sum"] / [12, 9], rtol=1e-6)
    # Calibrated on itself, a record that says nothing favours no label.
    nothing = score_labels(lm, prompt, as_records([("N/A", "cat"), ("[MASK]", "cat"), ("", "cat")]))["calibrated"]
    np.testing.assert_allclose(np.log(np.exp(nothing).mean(0)), 0, atol=1e-6)


def test_examples_are_drawn_by_seed():
    records = as_records([(str(n), n % 2) for n in range(50)])
    assert draw_examples(records, 4, 1) == draw_examples(records, 4, 1) != draw_examples(records, 4, 2)


def test_too_many_examples_are_said(tokenizer):
    lm = language_model("gpt2", tokenizer)
    records = as_records([("rain fell on the roof", "cat"), ("b", "dog")])
    prompt = Prompt("{text} is {label}", ["cat", "dog"])
    with pytest.raises(InputError, match="leave no room in the model's 64 tokens"):
        score_labels(lm, prompt, records, [(records[0], 0)] * 9)
    long = as_records([("rain " * 100, "cat")])
    assert np.isfinite(score_labels(lm, prompt, long)["sum"]).all(), "a long record loses its beginning"


@pytest.mark.parametrize(
    "mistake, said",
    [
        (lambda: Prompt("{text} is", ["a", "b"]), "must end with {label}"),
        (lambda: Prompt("{text} {label}", ["a", "a"]), "same words"),
        (lambda: Prompt("{body} {label}", ["a", "b"]).render({"text": "x"}, "f, line 3"), "f, line 3: template"),
        (lambda: draw_examples(as_records([("a", 0)]), 2, 0), "fewer than 2 examples"),
        (lambda: label_words(read_labels(as_records([("a", "x"), ("b", "y")])), ["z=1"]), "label out of x, y"),
    ],
)
def test_mistakes_in_prompts_are_one_line(mistake, said):
    with pytest.raises(InputError) as caught:
        mistake()
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_samples_are_drawn_by_seed(tokenizer):
    lm = language_model("qwen3", tokenizer)
    first = generate_samples(lm, ["the cat"], 8, seed=1, do_sample=True)
    assert first == generate_samples(lm, ["the cat"], 8, seed=1, do_sample=True)
    assert first != generate_samples(lm, ["the cat"], 8, seed=2, do_sample=True) and first[0].startswith("the cat")
    with pytest.raises(InputError, match="leaves no room"):
        generate_samples(lm, ["zq" * 80], 8)


def test_mistakes_are_one_line(tokenizer):
    lm = language_model("qwen3", tokenizer)
    with pytest.raises(InputError, match="window 65: this model takes 1 to 64"):
        bits_per_byte(lm, [("all", "a")], window=65)
    with pytest.raises(InputError, match="stride 9 must lie"):
        bits_per_byte(lm, [("all", "a")], window=8, stride=9)
    with pytest.raises(InputError, match="no text to measure"):
        bits_per_byte(lm, [])
    with pytest.raises(InputError, match="takes 1 to"):
        minimal_pairs(lm, [("zq" * 80, "a")])
    with pytest.raises(InputError, match="is no language model"):
        LanguageModel(tiny.build("TfmDecoderModel"), tokenizer, True)


def test_text_comes_with_its_source(tmp_path):
    file = tmp_path / "text.jsonl"
    file.write_text('{"text": "one two", "source": "x"}\n{"text": "three", "source": "y"}\n')
    assert list(read_text(str(file))) == [("all", "one two"), ("all", "three")]
    assert list(read_text(str(file), source_field="source")) == [("x", "one two"), ("y", "three")]
    with pytest.raises(InputError, match="text.jsonl, line 1: no text in field 'kind'"):
        list(read_text(str(file), source_field="kind"))


def test_groups_and_their_intervals():
    records = as_records([("a", 1), ("b", 2), ("c", 1)])
    assert group_rows(records, "label") == {"1": [0, 2], "2": [1]} and group_rows(records, None) == {"all": [0, 1, 2]}
    shares = accuracy_by_group({"x": (8, 10), "y": (1, 10)})
    assert shares["all"].value == 0.45 and shares["all"].n == 20 and shares["x"].low == pytest.approx(0.490, abs=1e-3)


def test_finished_parts_are_not_computed_again(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"hits": np.int64(3)}

    for _ in range(2):
        results = ResultStore(tmp_path, {"name": "m"})
        assert results.compute_once({"task": "pairs", "group": "x"}, compute) == {"hits": 3}
        assert results.compute_once({"task": "pairs", "group": "y"}, compute) == {"hits": 3}
    assert len(calls) == 2
    assert ResultStore(tmp_path, {"name": "other"}).compute_once({"task": "pairs", "group": "x"}, compute) == {
        "hits": 3
    }
    assert len(calls) == 3, "figures of another model were taken for this one's"


def test_a_torn_line_costs_one_part(tmp_path):
    results = ResultStore(tmp_path, {"name": "m"})
    for group in "xyz":
        results.compute_once({"group": group}, lambda: 1)
    parts = tmp_path / PARTS_FILE
    parts.write_bytes(parts.read_bytes()[:-5])
    results = ResultStore(tmp_path, {"name": "m"})
    computed = [results.compute_once({"group": group}, lambda: 2) for group in "xyzw"]
    assert computed == [1, 1, 2, 2]
    assert [
        ResultStore(tmp_path, {"name": "m"}).compute_once({"group": group}, lambda: 3) for group in "xyzw"
    ] == computed
