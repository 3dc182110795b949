"""Adaptive masking: counts of right predictions, weights from them, and exact runs."""

import functools
import json
import os
import signal

import numpy as np
import pretrain_mlm
import pytest
import torch
from pretraining_runs import arguments, assert_equal_weights
from transformers import AutoConfig, AutoModelForMaskedLM

from hf_tfm import TfmEncoderConfig
from hf_tfm.artifacts.tokenizer_files import load_tokenizer
from hf_tfm.data.objectives import CausalFirst, Masked
from hf_tfm.models.modeling_tfm_loss import linear_cross_entropy
from hf_tfm.train.adaptive_masking import AdaptiveMasking
from hf_tfm.train.callbacks import ProgressLine


@pytest.fixture
def adaptive(files):
    masking = AdaptiveMasking(CausalFirst(Masked(load_tokenizer(files / "encoder")), 8), interval=2)
    masking.start(torch.device("cpu"))
    return masking


def test_badly_predicted_entries_get_larger_weights(adaptive):
    labels = torch.tensor([[5, 5, 5, 5, 6, 6, -100, 7]])
    logits = torch.zeros(1, 8, len(adaptive.weights))
    logits[0, [0, 1, 2, 6], 5] = 9.0
    logits[0, 4, 6] = 9.0
    adaptive.count(labels, logits)
    adaptive.count(torch.tensor([6, -100]), logits[0, 4:6])
    assert adaptive.counts[:, 5:8].tolist() == [[4, 3, 1], [3, 2, 0]]
    adaptive.update(adaptive.counts)
    average = 5 / 8
    for entry, (hits, predictions) in {5: (3, 4), 6: (2, 3), 7: (0, 1), 8: (0, 0)}.items():
        expected = 0.2 + 0.8 * (1 - (hits + average) / (predictions + 1))
        assert adaptive.masked.weights[entry] == pytest.approx(expected)
    assert not adaptive.counts.any()
    for _ in range(20):
        adaptive.count(torch.full((1000,), 5), logits[0, :1].expand(1000, -1))
        adaptive.update(adaptive.counts)
    assert adaptive.masked.weights[5] == pytest.approx(1 / 30), "no entry is forgotten"


@pytest.mark.parametrize("kind", ["tfm", "bert", "modernbert", "sparse"])
def test_hits_of_any_model_are_those_of_its_logits(adaptive, kind):
    torch.manual_seed(0)
    size = len(adaptive.weights)
    shape = {"vocab_size": size, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "pad_token_id": 0}
    if kind == "tfm":
        config = TfmEncoderConfig.preset("nano", vocab_size=size)
    else:
        options = {"sparse_prediction": True} if kind == "sparse" else {}
        config = AutoConfig.for_model("bert" if kind == "bert" else "modernbert", **shape, **options)
    model = AutoModelForMaskedLM.from_config(config).eval()
    ids = torch.randint(5, size, (2, 12))
    labels = ids.masked_fill(torch.rand(2, 12) < 0.5, -100)
    if kind == "sparse":  # it computes logits of predicted tokens alone
        logits = model(input_ids=ids, labels=labels).logits
        labels_of_logits = labels[labels != -100]
    else:
        logits = model(input_ids=ids).logits
        labels[0, :4] = logits[0, :4].argmax(-1)
        logits, labels_of_logits = logits[labels != -100], labels[labels != -100]
    if kind == "tfm":  # it holds no logits: the loss function counts, in training only
        model.linear_loss_function = functools.partial(linear_cross_entropy, make_loss=adaptive.make_loss)
        loss = model(input_ids=ids, labels=labels, skip_logits=True).loss
        torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, labels_of_logits))
        with torch.no_grad():
            model(input_ids=ids, labels=labels, skip_logits=True)
    else:
        adaptive.count(labels, model(input_ids=ids, labels=labels).logits)
    assert adaptive.counts.sum(1).tolist() == [
        len(labels_of_logits), int((logits.argmax(-1) == labels_of_logits).sum())
    ]  # fmt: skip


def run(files, out, **changes):
    fields = {"adaptive_masking": 3, "logging_steps": 1, "optimizer": "adamw", "learning_rate": 0.02, **changes}
    return pretrain_mlm.main(arguments(files, out, "encoder", **fields))


def losses(folder):
    return [entry["loss"] for entry in json.loads((folder / "run_record.json").read_text())["curve"]]


def test_a_stopped_and_resumed_run_masks_alike(files, tmp_path, monkeypatch):
    assert run(files, tmp_path / "whole") == 0
    assert run(files, tmp_path / "plain", adaptive_masking=0) == 0
    whole, plain = losses(tmp_path / "whole"), losses(tmp_path / "plain")
    assert whole[:3] == plain[:3] and whole[3:] != plain[3:], "the first change is after three steps"
    update = ProgressLine.on_step_end

    def kill(self, args, state, control, **kwargs):
        if state.global_step == 4:  # stops at 5, between two changes
            os.kill(os.getpid(), signal.SIGTERM)
        update(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ProgressLine, "on_step_end", kill)
        assert run(files, tmp_path / "resumed") == 0
    state = torch.load(tmp_path / "resumed" / "checkpoint-5" / "masking.pt")
    assert state["counts"].sum() > 0 and len(state["weights"].unique()) > 2
    assert run(files, tmp_path / "resumed") == 0
    assert_equal_weights(tmp_path / "whole", tmp_path / "resumed")


def test_accumulated_batches_count_alike(files, tmp_path):
    halves = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    for name, changes in {"whole": {}, "halves": halves}.items():
        assert run(files, tmp_path / name, zero_init="false", masking_unit="word", **changes) == 0
    states = [torch.load(tmp_path / name / "checkpoint-8" / "masking.pt") for name in ("whole", "halves")]
    assert torch.equal(states[0]["weights"], states[1]["weights"])
    assert np.allclose(losses(tmp_path / "whole"), losses(tmp_path / "halves"), rtol=1e-4)


def test_a_change_after_the_end_is_refused(files, tmp_path, capsys):
    assert run(files, tmp_path / "run", adaptive_masking=8) == 2
    assert "adaptive_masking 8: the first change would come after the run's 8 steps" in capsys.readouterr().err
