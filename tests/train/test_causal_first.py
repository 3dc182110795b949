"""Next tokens first: causal attention in encoders of any architecture, new or to go on from."""

import json

import numpy as np
import pretrain_mlm
import pytest
import torch
from pretraining_runs import arguments
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from hf_tfm.artifacts.packing_support import PackedRows, takes_causal_mask
from hf_tfm.artifacts.tokenizer_files import load_tokenizer
from hf_tfm.audit.trainers import chance, subject
from hf_tfm.cpu.attention import enable_blockwise_attention
from hf_tfm.data.objectives import CausalFirst, Masked


SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 66, "initializer_range": 0.3}  # fmt: skip
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "name, fields",
    [
        ("bert", {"type_vocab_size": 2}),
        ("roberta", {}),
        (
            "distilbert",
            {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "dropout": 0, "attention_dropout": 0},
        ),
        ("electra", {"embedding_size": 16}),
        ("modernbert", {"local_attention": 6}),
        ("tfm_encoder", {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}),
    ],
)
def test_next_tokens_come_first_in_any_encoder(files, name, fields, attention):
    """In training, no output depends on later tokens or on another text; it depends on the tokens before."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, vocab_size=320, pad_token_id=1, **SHAPE, **fields)
    model = AutoModelForMaskedLM.from_config(config, attn_implementation=attention)
    enable_blockwise_attention(model)
    assert takes_causal_mask(model)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    objective = CausalFirst(Masked(load_tokenizer(files / "encoder")), rows=10)
    ids = np.random.default_rng(0).integers(5, 320, (2, 24))
    batch = {
        "position_ids": np.tile(np.r_[np.arange(14), np.arange(10)], (2, 1)),
        "sequence_ids": np.tile(np.repeat([1, 2], [14, 10]), (2, 1)),
        "rows": np.arange(2),
    }
    rows = PackedRows.of(model.train())

    def logits(changed):
        inputs = objective({**batch, "input_ids": np.where(np.isin(np.arange(24), changed), 7, ids)})
        return model(**{name: value for name, value in rows.fit(inputs).items() if name != "labels"}).logits

    plain = logits([])
    for bf16 in (False, True) if attention == "sdpa" else (False,):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            plain = logits([])
            torch.testing.assert_close(logits([*range(14), *range(19, 24)])[:, 14:19], plain[:, 14:19])
            torch.testing.assert_close(logits(range(14, 24))[:, :14], plain[:, :14])
            assert not torch.allclose(logits([15])[:, 16:19], plain[:, 16:19])


def test_an_encoder_without_causal_attention_refuses_next_tokens_first(files, tmp_path, capsys):
    deberta = {"model_type": "deberta-v2", **SHAPE, "relative_attention": True, "position_buckets": 8}
    (tmp_path / "deberta.json").write_text(json.dumps(deberta))
    fields = {"model": tmp_path / "deberta.json", "model_overrides": "{}", "causal_first": 0.5}
    assert pretrain_mlm.main(arguments(files, tmp_path / "run", "encoder", **fields)) == 2
    complaint = "causal_first: DebertaV2ForMaskedLM (attention eager) cannot hide later tokens"
    assert complaint in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("name, attention", [("bert", "sdpa"), ("bert", "eager"), ("tfm_encoder", "sdpa")])
def test_an_encoder_without_a_head_goes_on_by_a_causal_detour(files, tmp_path, capsys, monkeypatch, name, attention):
    """
    As sentence-transformers' encoders are: new weights are named, the detour is exact for any accumulation.

    The loss begins at chance, though the body is trained, and no token is masked: the preflight takes it for sound.
    """
    monkeypatch.setattr(chance, "TRAINED_ROWS", 0.0)
    monkeypatch.setattr(subject, "SAMPLED_ROWS", 8)  # none of them is masked, as in a longer run
    torch.manual_seed(0)
    fields = NO_DROPOUT if name == "bert" else {}
    config = AutoConfig.for_model(name, vocab_size=320, **SHAPE, **fields)
    body = AutoModel.from_config(config)
    for module in body.modules():
        if "Norm" in type(module).__name__:
            module.weight.data.normal_(1, 0.2)
    body.save_pretrained(tmp_path / "body")
    load_tokenizer(files / "encoder").save_pretrained(tmp_path / "body")
    plain = {"model": tmp_path / "body", "tokenizer": None, "optimizer": "adamw"}
    plain["model_overrides"] = json.dumps({"attn_implementation": attention})
    halves = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    losses = []
    for run, changes in {"whole": {}, "halves": halves, "masked": {"causal_first": 0}}.items():
        fields = {"causal_first": 0.5, **plain, **changes}
        assert pretrain_mlm.main(arguments(files, tmp_path / run, "encoder", **fields)) == 0
        losses.append(json.loads((tmp_path / run / "run_record.json").read_text())["results"]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and losses[0] != pytest.approx(losses[2], rel=1e-4)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("new "))
    head = "cls.predictions.transform.dense.weight" if name == "bert" else "head.dense.weight"
    assert head in line and "embed" not in line and "decoder.weight" not in line
