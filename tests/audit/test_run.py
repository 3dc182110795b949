"""`preflight_run`: faults of finished and stopped runs, each beside the same run without it."""

import json
import math

import numpy as np
import pytest
import torch
from run_logs import StopAt, learning_curve, tiny_run, write_run

from hf_tfm import InputError, preflight_run
from hf_tfm.audit.runs.folder import read_arguments


RNG = np.random.default_rng(1)
CURVE = learning_curve()
BY_HEART = 4 * np.exp(-np.arange(60) / 6) + 1e-3
CAUSAL = {"architectures": ["LlamaForCausalLM"], "vocab_size": 32_000}


def find(report, code):
    """Returns the most serious level of the findings of a code, or None."""
    levels = [str(finding.level) for finding in report.findings if finding.code == code]
    return min(levels, key=["error", "warning", "note"].index, default=None)


def linear(begin, end, last):
    return np.linspace(begin, end, last)


# The faults, with the code and level they must get.
FAULTS = {
    # bigscience-workshop/Megatron-DeepSpeed#57: a spike that does not recover
    "diverged": (dict(losses=np.concatenate([CURVE[:40], linear(2, 8, 20)])), "P701", "error"),
    "rises from the beginning": (dict(losses=linear(1.5, 7, 40) + RNG.normal(0, 0.1, 40)), "P701", "error"),
    "few coarse logs": (dict(losses=[2.0, 1.4, 3.5, 7.2], every=500), "P701", "error"),
    # AnswerDotAI/ModernBERT#233
    "loss 0.0 with a gradient of nan": (
        dict(losses=[*CURVE[:40], *[0.0] * 20], grad_norm=[1.0] * 40 + [math.nan] * 20),
        "P702",
        "error",
    ),
    "nan": (dict(losses=[*CURVE[:40], *[math.nan] * 20]), "P702", "error"),
    "evaluation is nan": (dict(losses=CURVE, evaluations=[(300, {"loss": math.nan})]), "P702", "warning"),
    # huggingface/trl#3926
    "gradients are zero": (dict(losses=RNG.normal(2, 0.1, 40), grad_norm=[0.0] * 40), "P714", "error"),
    "gradients become zero": (dict(losses=CURVE, grad_norm=[1.0] * 30 + [0.0] * 30), "P714", "error"),
    "new model stays at chance": (
        dict(losses=RNG.normal(math.log(32_000), 0.05, 40), config=CAUSAL),
        "P704",
        "error",
    ),
    # Yifan-Song793/ETO#14
    "preference loss stays at ln 2": (
        dict(losses=[0.6931] * 40, **{"rewards/margins": [0.0] * 40}),
        "P704",
        "error",
    ),
    "evaluations are equal": (
        dict(losses=RNG.normal(2, 0.1, 40), evaluations=[(100, {"loss": 2.03125}), (400, {"loss": 2.03125})]),
        "P704",
        "error",
    ),
    "learned by heart": (dict(losses=BY_HEART, config=CAUSAL), "P709", "warning"),
    "worse than at the start": (
        dict(losses=CURVE, evaluations=[(0, {"loss": 2.0}), (300, {"loss": 2.4}), (600, {"loss": 2.6})]),
        "P705",
        "error",
    ),
    "overfitted": (
        dict(
            losses=CURVE, evaluations=[(step, {"loss": 1.5 + abs(step - 200) / 500}) for step in range(100, 601, 100)]
        ),
        "P706",
        "warning",
    ),
    # AetherCortex/Llama-X#30
    "rate is zero": (dict(losses=RNG.normal(2, 0.1, 40), rates=lambda done: 0.0), "P703", "error"),
    # huggingface/transformers#27749
    "schedule began anew": (
        dict(losses=CURVE, rates=lambda done: 1e-4 * (1 - (done if done < 0.4 else done - 0.4))),
        "P703",
        "error",
    ),
    "rate ends early": (dict(losses=CURVE, rates=lambda done: max(0.0, 1e-4 * (1 - 2 * done))), "P703", "error"),
    "rate ends late": (dict(losses=CURVE, rates=lambda done: 1e-4 * (1 - done / 4)), "P703", "warning"),
    "cosine ends late": (
        dict(losses=CURVE, rates=lambda done: 5e-5 * (1 + math.cos(math.pi * done / 2))),
        "P703",
        "warning",
    ),
    "warm-up to the end": (dict(losses=CURVE, rates=lambda done: 1e-4 * done), "P703", "error"),
    "stopped": (dict(losses=CURVE, max_steps=1000, rates=lambda done: 1e-4), "P708", "warning"),
    "evaluated most of the time": (
        dict(
            losses=CURVE,
            evaluations=[(600, {"runtime": 700.0, "loss": 1.4})],
            log_end={"train_runtime": 1000.0},
        ),
        "P707",
        "warning",
    ),
    # huggingface/transformers#43708: resumed with another batch size
    "epochs of other length": (
        dict(losses=CURVE, epoch=[place / 20 if place < 30 else place / 40 for place in range(1, 61)]),
        "P711",
        "error",
    ),
}


def cosine(done):
    return 5e-5 * (1 + math.cos(math.pi * done))


SOUND = {
    "plain": dict(losses=CURVE),
    "noisy batches of one": dict(losses=CURVE * np.random.default_rng(3).exponential(1.0, 60)),
    "short": dict(losses=CURVE[:4], every=1),
    "one spike": dict(losses=np.where(np.arange(60) == 40, 9.0, CURVE)),
    "converged fine-tuning": dict(losses=np.random.default_rng(4).normal(1.2, 0.1, 60), config=CAUSAL),
    "cosine with warm-up": dict(losses=CURVE, rates=lambda done: 1e-3 * done if done < 0.1 else cosine(done) * 10),
    "cosine to a tenth": dict(losses=CURVE, rates=lambda done: 1e-5 + 0.9 * cosine(done)),
    "constant": dict(losses=CURVE, rates=lambda done: 1e-4),
    "constant with warm-up": dict(losses=CURVE, rates=lambda done: 1e-4 * min(1, 5 * done)),
    "stable, then decay": dict(losses=CURVE, rates=lambda done: 1e-4 * min(1, 10 * done, 5 * (1 - done))),
    "inverse square root": dict(losses=CURVE, rates=lambda done: 1e-4 * min(10 * done, (0.1 / (done + 1e-9)) ** 0.5)),
    "step decay": dict(losses=CURVE, rates=lambda done: 1e-4 * 0.5 ** int(done * 2.5)),
    "cosine with five restarts": dict(losses=CURVE, rates=lambda done: cosine(done * 5 % 1)),
    "rewards": dict(losses=RNG.normal(0, 0.01, 60), reward=CURVE, **{"completions/mean_length": CURVE}),
    "preference": dict(losses=0.2 + 0.49 * np.exp(-np.arange(60) / 20), **{"rewards/margins": CURVE}),
    "fp16 that looks for its scale": dict(losses=CURVE, grad_norm=[math.inf] * 3 + [1.0] * 57),
    "three epochs of a classifier": dict(
        losses=CURVE / 8,
        config={"architectures": ["BertForSequenceClassification"], "id2label": {"0": "a", "1": "b"}},
        evaluations=[
            (200 * (place + 1), {"loss": 0.3 + 0.05 * place, "accuracy": 0.9 + 0.01 * place}) for place in range(3)
        ],
    ),
    "easy task": dict(
        losses=BY_HEART,
        evaluations=[(200 * (place + 1), {"loss": 0.1 / (place + 1)}) for place in range(3)],
    ),
    "harder records at the end": dict(
        losses=np.concatenate([CURVE[:40], CURVE[40:] + 2]),
        evaluations=[(200 * (place + 1), {"loss": 2 - 0.2 * place}) for place in range(3)],
    ),
    "fast evaluation": dict(
        losses=CURVE, evaluations=[(600, {"runtime": 70.0, "loss": 1.4})], log_end={"train_runtime": 1000.0}
    ),
    "epochs rounded to two digits": dict(losses=CURVE, epoch=[round(place / 30, 2) for place in range(1, 61)]),
}


def write(folder, losses, log_end=None, **options):
    folder = write_run(folder, losses, **options)
    if log_end:
        path = folder / "trainer_state.json"
        state = json.loads(path.read_text())
        state["log_history"].append({"step": state["global_step"], "epoch": 2.0, **log_end})
        path.write_text(json.dumps(state))
    return folder


@pytest.mark.quick
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found(name, tmp_path):
    options, code, level = FAULTS[name]
    report = preflight_run(write(tmp_path, **options))
    assert find(report, code) == level, [str(line) for line in report.lines()]
    assert not any(text.startswith("check_") for text in report.unseen)
    assert find(preflight_run(tmp_path, ignore=[code]), code) is None


@pytest.mark.quick
@pytest.mark.parametrize("name", SOUND)
def test_a_sound_run_has_no_errors_and_no_warnings(name, tmp_path):
    report = preflight_run(write(tmp_path, **SOUND[name]))
    assert not report.errors and not report.warnings, [str(line) for line in report.lines()]
    assert not any(text.startswith("check_") for text in report.unseen)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of a Trainer that came to its end."""
    folder = tmp_path_factory.mktemp("finished")
    trainer = tiny_run(
        folder, eval_strategy="steps", eval_steps=10, eval_on_start=True, include_num_input_tokens_seen="all"
    )
    trainer.train()
    trainer.save_state()
    return folder


def test_a_finished_run_is_sound(finished):
    report = preflight_run(finished)
    assert not report.errors and not report.warnings, [str(line) for line in report.lines()]
    assert report.facts["steps"] == "20 of 20" and report.facts["epochs"] == 1.25
    assert report.facts["rows in a batch"] == 4 and int(report.facts["tokens seen"].replace(",", "")) > 1000
    assert "█" in str(report.pictures[0])
    assert not report.unseen


def test_a_checkpoint_in_the_middle_is_no_warning(finished):
    report = preflight_run(finished / "checkpoint-10")
    assert report.facts["steps"] == "10 of 20"
    assert not report.warnings and find(report, "P708") == "note"


def test_a_killed_run_is_a_warning(tmp_path):
    trainer = tiny_run(tmp_path)
    trainer.add_callback(StopAt(15))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    report = preflight_run(tmp_path)
    assert not report.errors and find(report, "P708") == "warning"


def test_weights_that_were_not_trained_are_found(tmp_path):
    """huggingface/trl#3926: nothing that the optimizer has gets a gradient; checkpoints are equal."""
    trainer = tiny_run(tmp_path)
    trainer.optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    trainer.train()
    assert find(preflight_run(tmp_path), "P704") == "error"


def test_other_folders_are_refused_in_one_line(tmp_path):
    with pytest.raises(InputError, match="no trainer_state.json"):
        preflight_run(tmp_path)
    (tmp_path / "trainer_state.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        preflight_run(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        preflight_run(tmp_path / "nothing")
    for name in ("one", "two"):
        write_run(tmp_path / "runs" / name, CURVE)
    with pytest.raises(InputError, match="several runs"):
        preflight_run(tmp_path / "runs")
    assert preflight_run(tmp_path / "runs/one").facts["steps"] == "600 of 600"


def test_arguments_are_read_without_running_them(tmp_path, finished):
    arguments = read_arguments(finished / "checkpoint-10/training_args.bin")
    assert arguments["learning_rate"] == 5e-3 and arguments["lr_scheduler_type"] == "linear"

    class Evil:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    torch.save(Evil(), tmp_path / "training_args.bin")
    assert read_arguments(tmp_path / "training_args.bin") == {}
    assert not (tmp_path / "ran").exists()
