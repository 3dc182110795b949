"""Zero- and few-shot classification: labels behind prompts against log-likelihoods computed row by row."""

import numpy as np
import pytest
from likelihoods import as_records, language_model, log_likelihood
from tiny import BOS

from hf_tfm.core.errors import InputError
from hf_tfm.data.tokenizer import encode_text
from hf_tfm.evaluate.few_shot import Prompt, draw_examples, label_log_probabilities, label_words, score_labels
from hf_tfm.tasks.labels import read_labels


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


def test_labels_are_decided_by_three_rules(tokenizer):
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


def test_examples_depend_on_the_seed():
    records = as_records([(str(n), n % 2) for n in range(50)])
    assert draw_examples(records, 4, 1) == draw_examples(records, 4, 1) != draw_examples(records, 4, 2)


def test_too_many_examples_are_refused(tokenizer):
    lm = language_model("gpt2", tokenizer)
    records = as_records([("rain fell on the roof", "cat"), ("b", "dog")])
    prompt = Prompt("{text} is {label}", ["cat", "dog"])
    with pytest.raises(InputError, match="leave no room in the model's 64 tokens"):
        score_labels(lm, prompt, records, [(records[0], 0)] * 9)
    long = as_records([("rain " * 100, "cat")])
    assert np.isfinite(score_labels(lm, prompt, long)["sum"]).all(), "a long record loses its beginning"


@pytest.mark.parametrize(
    "mistake, message",
    [
        (lambda: Prompt("{text} is", ["a", "b"]), "must end with {label}"),
        (lambda: Prompt("{text} {label}", ["a", "a"]), "same words"),
        (lambda: Prompt("{body} {label}", ["a", "b"]).render({"text": "x"}, "f, line 3"), "f, line 3: template"),
        (lambda: draw_examples(as_records([("a", 0)]), 2, 0), "fewer than 2 examples"),
        (lambda: label_words(read_labels(as_records([("a", "x"), ("b", "y")])), ["z=1"]), "label out of x, y"),
    ],
)
def test_invalid_prompts_are_refused_in_one_line(mistake, message):
    with pytest.raises(InputError) as caught:
        mistake()
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_prompt_without_any_token_in_front_is_refused(tokenizer):
    lm = language_model("qwen3", tokenizer)
    lm.prefix_ids = []  # as with tokenizers that have neither a begin nor an end token
    records = as_records([("rain fell", "cat"), ("b", "dog")])
    with pytest.raises(InputError, match="begins texts with nothing"):
        score_labels(lm, Prompt("{text} is {label}", ["cat", "dog"]), records)


def test_a_field_of_a_field_that_is_text_is_refused():
    with pytest.raises(InputError, match="does not go with this record"):
        Prompt("{text[a]} {label}", ["a", "b"]).render({"text": "x"}, "here")
