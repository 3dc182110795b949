"""Scores of `LanguageModel` equal log-probabilities computed row by row, in any batch."""

import itertools

import numpy as np
import pytest
import tiny
import torch
from likelihoods import DECODERS, ENCODERS, language_model, log_likelihood, pseudo_log_likelihood
from tiny import BOS, CLS, MASK, SEP

from hf_tfm.core.errors import InputError
from hf_tfm.data.tokenizer import encode_text
from hf_tfm.tasks.likelihood import LanguageModel, Row, logits_only_at


TEXTS = ["the cat sat on the mat", "rain fell on the roof while the kettle sang", "six of them home", "a small model"]


@pytest.mark.parametrize("name", [*DECODERS, "native/llama", "native/gpt2"])
def test_causal_scores_equal_rows_one_by_one(name, tokenizer):
    lm = language_model(name, tokenizer, batch_tokens=60)
    texts = encode_text(tokenizer, TEXTS)
    rows = [Row(n, [BOS, *ids][:-1], range(len(ids)), ids) for n, ids in enumerate(texts)]
    scores = {key: values.sum() for key, values in lm.score(iter(rows))}
    assert scores.keys() == set(range(len(texts)))
    for number, ids in enumerate(texts):
        assert scores[number] == pytest.approx(log_likelihood(lm.model, [BOS, *ids], 1), abs=2e-4)


@pytest.mark.parametrize("name", [*ENCODERS, "pretraining", "native/bert", "native/modernbert"])
def test_masked_scores_equal_rows_one_by_one(name, tokenizer):
    lm = language_model(name, tokenizer, batch_tokens=100)
    texts = encode_text(tokenizer, TEXTS)
    scores = np.zeros(len(texts))
    for key, values in lm.score(
        itertools.chain.from_iterable(lm.pseudo_likelihood_rows(n, t) for n, t in enumerate(texts))
    ):
        scores[key] += values.sum()
    for number, ids in enumerate(texts):
        assert scores[number] == pytest.approx(pseudo_log_likelihood(lm.model, ids), abs=2e-4)


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


def test_only_scored_positions_reach_the_head(tokenizer):
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


def test_a_model_without_a_head_is_no_language_model(tokenizer):
    with pytest.raises(InputError, match="is no language model"):
        LanguageModel(tiny.build("TfmDecoderModel"), tokenizer, True)
