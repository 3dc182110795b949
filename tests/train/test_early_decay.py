"""Validation decides when the decay begins and which checkpoint is the model, exactly as without an interruption."""

import json
import os
import signal

import numpy as np
import pretrain_clm
import pytest
import torch
from pretraining_runs import arguments, assert_equal_weights, weights

from hf_tfm.core.checkpoints import complete_checkpoints
from hf_tfm.train.callbacks import ProgressLine
from hf_tfm.train.early_decay import find_decay_start
from hf_tfm.train.pretrain import PretrainingTrainer
from hf_tfm.train.schedule import RunPlan, schedule


@pytest.fixture(autouse=True)
def _quick(quick_runs):
    """Leave out samples and plots."""


def test_an_early_decay_has_the_planned_share_of_the_run():
    plan = RunPlan(max_steps=100, decay_steps=40)
    assert plan.total_steps == 100 and plan.planned_step(77) == 77
    plan.decay_start = 30
    assert plan.total_steps == 50
    assert [float(plan.planned_step(step)) for step in (0, 29, 30, 40, 50)] == [0, 29, 60, 80, 100]
    rows = np.array([0, 8 * 29, 8 * 30, 8 * 40, 8 * 50])
    assert plan.planned_step(rows, units=8).tolist() == [0, 8 * 29, 8 * 60, 8 * 80, 8 * 100]
    factor = schedule("wsd", 100, warmup=10, decay=40, final=0.0)
    rates = [factor(plan.planned_step(step)) for step in range(50)]
    assert rates[10:31] == [1.0] * 21 and rates[40] == pytest.approx(0.5) and rates[49] == pytest.approx(0.05)


def test_a_plan_of_decay_alone_stays():
    plan = RunPlan(max_steps=10, decay_steps=10)
    assert find_decay_start([(2, 1.0), (4, 2.0), (6, 3.0)], plan, patience=1) is None


@pytest.mark.parametrize(
    "losses, patience, start",
    [
        ([3.0, 2.0, 1.0, 1.1, 1.2, 0.9], 2, 50),
        ([3.0, 2.0, 1.0, 1.1, 0.9, 1.2, 0.9], 2, 70),  # an equal loss is no gain
        ([3.0, 2.0, 1.0, 1.1, 0.9, 1.0, 0.8], 2, None),
        ([1.0, 2.0, 3.0, 4.0], 4, None),
        ([3.0, 2.0, 1.0, 0.9, 0.8, 0.7, 0.6, 0.9, 1.0], 2, None),  # only in the decay
    ],
)
def test_the_decay_begins_when_patience_ends(losses, patience, start):
    entries = [(10 * (number + 1), loss) for number, loss in enumerate(losses)]
    assert find_decay_start(entries, RunPlan(max_steps=160, decay_steps=80), patience) == start


# The decay begins after step 6 rather than 8, so that the run has 12 steps rather than 16; step 10 is the best.
LOSSES = {2: 3.0, 4: 2.9, 6: 2.95, 8: 2.8, 10: 2.7, 12: 2.75}
RULE = {"recipe": "auto", "max_steps": 16, "early_decay_patience": 1, "eval_steps": 2, "save_steps": 4,
        "logging_steps": 1, "length_schedule": "0:16,0.45:32"}  # fmt: skip


@pytest.fixture
def losses(monkeypatch):
    """Give evaluations the losses above."""

    def measure(self, eval_dataset):
        return {"loss": LOSSES[self.state.global_step], "predicted_tokens": 100}

    monkeypatch.setattr(PretrainingTrainer, "measure", measure)


def stop_after(monkeypatch, step):
    update = ProgressLine.on_step_end

    def stop(self, args, state, control, **kwargs):
        if state.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, args, state, control, **kwargs)

    monkeypatch.setattr(ProgressLine, "on_step_end", stop)


def read_record(run):
    return json.loads((run / "run_record.json").read_text())


@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
def test_a_run_decays_early_and_ends_with_the_best_evaluation(files, tmp_path, monkeypatch, capsys, losses, ema_decay):
    changes = {**RULE, "ema_decay": ema_decay}
    assert pretrain_clm.main(arguments(files, tmp_path / "run", **changes)) == 0
    printed = capsys.readouterr().out
    assert printed.count("begins after step 6 rather than 8, because 1 evaluations brought no lower") == 2
    assert "best       the model is of step 10 of 12, by loss" in printed
    record = read_record(tmp_path / "run")
    assert record["steps"] == 12 and record["best"] == {"step": 10, "loss": 2.7} and record["results"]["loss"] == 2.7
    assert 0.9 * 12 * 4 * 32 < record["tokens"] <= 12 * 4 * 32
    rates = [entry["learning_rate"] for entry in record["curve"]]
    assert rates[5] == rates[6] == max(rates) and rates[6:] == sorted(rates[6:], reverse=True)
    assert rates[-1] < 0.25 * rates[6]
    checkpoint = tmp_path / "run" / "checkpoint-10"
    if ema_decay:
        averages = torch.load(checkpoint / "averages.pt")["averages"]
        assert all(torch.equal(average, weights(tmp_path / "run")[name]) for name, average in averages.items())
    else:
        assert_equal_weights(checkpoint, tmp_path / "run")

    # Stopped after the decision, before it, and at the last step.
    for step in (7, 5, 12):
        out = tmp_path / f"stopped-{step}"
        with monkeypatch.context() as patch:
            stop_after(patch, step)
            assert pretrain_clm.main(arguments(files, out, **changes)) == 0
        if step < 12:
            assert not (out / "model.safetensors").exists()
            assert pretrain_clm.main(arguments(files, out, **changes)) == 0
        assert_equal_weights(tmp_path / "run", out)
        assert read_record(out)["steps"] == 12 and read_record(out)["best"] == record["best"]
        assert [entry["loss"] for entry in read_record(out)["curve"]] == [entry["loss"] for entry in record["curve"]]


def test_a_run_that_was_killed_after_its_early_end_trains_no_more(files, tmp_path, monkeypatch, losses):
    assert pretrain_clm.main(arguments(files, tmp_path / "whole", **RULE)) == 0
    with monkeypatch.context() as patch:
        patch.setattr(pretrain_clm, "report_end", lambda *args: os.kill(os.getpid(), signal.SIGTERM))
        assert pretrain_clm.main(arguments(files, tmp_path / "run", **RULE)) == 0
    assert complete_checkpoints(tmp_path / "run")[-1].name == "checkpoint-12"
    assert pretrain_clm.main(arguments(files, tmp_path / "run", **RULE)) == 0
    assert complete_checkpoints(tmp_path / "run")[-1].name == "checkpoint-12"
    assert_equal_weights(tmp_path / "whole", tmp_path / "run")
    assert read_record(tmp_path / "run")["steps"] == 12


def test_evaluations_count_after_the_next_tokens_of_an_encoder(files, tmp_path, losses):
    import pretrain_mlm

    changes = {**RULE, "length_schedule": None, "causal_first": 0.375}  # the first 6 steps
    assert pretrain_mlm.main(arguments(files, tmp_path / "run", "encoder", **changes, eval_strategy="no")) == 2
    LOSSES_OF_ALL = {step: LOSSES.get(step, 2.6) for step in range(2, 17, 2)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            PretrainingTrainer,
            "measure",
            lambda self, dataset: {"loss": LOSSES_OF_ALL[self.state.global_step], "predicted_tokens": 1},
        )
        assert pretrain_mlm.main(arguments(files, tmp_path / "run", "encoder", **changes)) == 0
    assert read_record(tmp_path / "run")["steps"] == 16
