"""Dropout during a run, of any architecture that has it; saved models keep theirs."""

import json

import pretrain_clm
import pretrain_mlm
import pytest
import torch
from pretraining_runs import arguments, assert_equal_weights
from tiny import build_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from hf_tfm import TfmDecoderConfig
from hf_tfm.train.dropout import dropout_fields
from hf_tfm.train.pretrain_model import build_model
from hf_tfm.train.pretrain_recipe import PretrainingRecipe


@pytest.fixture(autouse=True)
def _quick(quick_runs):
    """Leave out samples and plots."""


SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
         "vocab_size": 320, "max_position_embeddings": 64}  # fmt: skip
# Each with the fields to set, and its dropout of attention weights.
ARCHITECTURES = {
    "bert": (AutoModelForMaskedLM, {"hidden_dropout_prob"}, "attention_probs_dropout_prob"),
    "modernbert": (AutoModelForMaskedLM, {"mlp_dropout", "embedding_dropout"}, "attention_dropout"),
    "distilbert": (AutoModelForMaskedLM, {"dropout"}, "attention_dropout"),
    "gpt2": (AutoModelForCausalLM, {"resid_pdrop", "embd_pdrop"}, "attn_pdrop"),
    "gpt_neox": (AutoModelForCausalLM, {"hidden_dropout"}, "attention_dropout"),
    "opt": (AutoModelForCausalLM, {"dropout"}, "attention_dropout"),
    "falcon": (AutoModelForCausalLM, {"hidden_dropout"}, "attention_dropout"),
    "phi": (AutoModelForCausalLM, {"resid_pdrop", "embd_pdrop"}, "attention_dropout"),
}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_dropout_of_an_architecture_drops(kind, tmp_path):
    auto_class, names, attention = ARCHITECTURES[kind]
    AutoConfig.for_model(kind, **SHAPE).save_pretrained(tmp_path)
    assert dropout_fields(AutoConfig.from_pretrained(tmp_path)).keys() == names
    for dropout in (0.5, 0.0):
        recipe = PretrainingRecipe(
            [], [], "", model=str(tmp_path / "config.json"), block_length=16, zero_init=False, dropout=dropout,
            model_overrides=json.dumps({attention: 0.0}),
        )  # fmt: skip
        model, _ = build_model(auto_class, TfmDecoderConfig, build_tokenizer(), recipe)
        ids = torch.arange(5, 15)[None]
        model.train()
        with torch.no_grad():
            first, second = (model(input_ids=ids).logits for _ in range(2))
        assert torch.equal(first, second) == (dropout == 0.0)


@pytest.mark.parametrize("script, style", [(pretrain_clm, "decoder"), (pretrain_mlm, "encoder")])
def test_a_run_with_dropout_resumes_exactly_and_saves_a_model_without(files, tmp_path, monkeypatch, script, style):
    runs = {"plain": {}, "dropped": {"dropout": 0.2}}
    for name, changes in runs.items():
        assert script.main(arguments(files, tmp_path / name, style, **changes)) == 0
        for folder in (tmp_path / name, tmp_path / name / "checkpoint-4"):
            config = json.loads((folder / "config.json").read_text())
            assert config["hidden_dropout"] == config["embedding_dropout"] == 0
    with pytest.raises(AssertionError):
        assert_equal_weights(tmp_path / "plain", tmp_path / "dropped")
    # As if killed after step 4.
    (tmp_path / "resumed").mkdir()
    for name in (".recipe.json", "checkpoint-4"):
        (tmp_path / "dropped" / name).rename(tmp_path / "resumed" / name)
    assert script.main(arguments(files, tmp_path / "resumed", style, dropout=0.2)) == 0
    assert_equal_weights(tmp_path / "dropped", tmp_path / "resumed")


def test_a_model_folder_keeps_its_own_dropout(files, tmp_path):
    config = AutoConfig.for_model("bert", **{**SHAPE, "vocab_size": 400}, hidden_dropout_prob=0.3)
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path / "bert")
    changes = {"model": tmp_path / "bert", "model_overrides": "{}", "dropout": 0.0, "max_steps": 2}
    assert pretrain_mlm.main(arguments(files, tmp_path / "run", "encoder", **changes)) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["hidden_dropout_prob"] == 0.3
