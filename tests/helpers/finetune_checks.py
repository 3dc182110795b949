"""Checks of the promises of every fine-tuning script, called by the tests of each script."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from hf_tfm.train.callbacks import ProgressLine


def record_of(folder: Path) -> dict:
    return json.loads((folder / "run_record.json").read_text())


def write(path: Path, records: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def arguments(model: Path | None, train: Path, out: Path, **changes) -> list[str]:
    """Returns arguments of a short run in fp32; None omits a field."""
    fields = {
        "model": model, "train_file": train, "output_dir": out, "num_train_epochs": 2, "per_device_train_batch_size": 8,
        "learning_rate": 5e-3, "bf16": "false", "baselines": "false", **changes,
    }  # fmt: skip
    return [part for name, value in fields.items() if value is not None for part in (f"--{name}", str(value))]


def check_whole_folder(folder: Path, weights: str = "model.safetensors") -> None:
    for name in ("tokenizer.json", "README.md", weights):
        assert (folder / name).is_file(), f"{folder.name} lacks {name}"
    # Truncation during training must not become the tokenizer's default.
    assert json.loads((folder / "tokenizer.json").read_text())["truncation"] is None


def check_resumption(
    script: ModuleType,
    run: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch,
    capsys,
    steps: int = 30,
    stops: Sequence[int] = (12, 19),
    **changes,
) -> None:
    """
    Checks that SIGTERM exits with 0, and that the resumed run ends bit for bit.

    Args:
        stops: steps during which the signal comes; by default within an epoch of ten steps and at its end.
    """
    weights = "adapter_model.safetensors" if changes.get("lora") else "model.safetensors"
    for out in ("whole", "parts"):
        argv = run(tmp_path / out, max_steps=steps, num_train_epochs=3, **changes)
        with monkeypatch.context() as context:
            if out == "parts":
                stop_at = set(stops)  # the current step is the last
                real = ProgressLine.on_step_end

                def signalled(self, args, state, control, stop_at=stop_at, real=real, **kwargs):
                    if state.global_step in stop_at:
                        stop_at.remove(state.global_step)
                        os.kill(os.getpid(), signal.SIGTERM)
                    return real(self, args, state, control, **kwargs)

                context.setattr(ProgressLine, "on_step_end", signalled)
                for _ in stops:
                    assert script.main(argv) == 0
                    assert f"of {steps}; the same command goes on there" in capsys.readouterr().out
                    assert not (tmp_path / out / "run_record.json").exists()
            assert script.main(argv) == 0
    # The last checkpoint: the best one may be older than the stops.
    whole, parts = (load_file(tmp_path / out / f"checkpoint-{steps}" / weights) for out in ("whole", "parts"))
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name
    record, resumed = record_of(tmp_path / "whole"), record_of(tmp_path / "parts")
    assert record["results"] == resumed["results"] and record["best"] == resumed["best"]


def check_equal_training(script: ModuleType, model: Path, train: Path, tmp_path: Path, **fields) -> None:
    """Checks that neither accumulated batches nor the tokenizer's padding side change the weights that are trained."""
    weights = []
    for side, accumulated in (("left", 4), ("right", 1)):
        folder = tmp_path / f"model-{side}"
        shutil.copytree(model, folder)
        AutoTokenizer.from_pretrained(folder, padding_side=side).save_pretrained(folder)
        argv = arguments(folder, train, tmp_path / side, **few_steps(16, accumulated=accumulated), **fields)
        assert script.main(argv) == 0
        weights.append(load_file(tmp_path / side / "model.safetensors"))
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-5, rtol=1e-4, msg=name)


def check_evaluation_batches(script: ModuleType, run: Callable[..., list[str]], tmp_path: Path, **changes) -> None:
    """Checks that the evaluation loss is the same whatever number of records makes a batch of it."""
    losses = []
    for size in (64, 3, 2, 1):
        fields = dict(
            max_steps=2, eval_strategy="steps", eval_steps=1, save_strategy="no", load_best_model_at_end="false"
        )
        argv = run(tmp_path / str(size), per_device_eval_batch_size=size, **fields, **changes)
        assert script.main(argv) == 0
        entries = record_of(tmp_path / str(size))["evaluations"]
        losses.append([entry["eval_loss"] for entry in entries if "eval_loss" in entry])
    assert len(losses[0]) == 2
    for other in losses[1:]:
        torch.testing.assert_close(other, losses[0], atol=0, rtol=1e-5)


def few_steps(rows: int, accumulated: int = 1) -> dict:
    """Returns fields of a run of three steps of `rows` records; its weights reveal the scale of the loss."""
    return dict(
        max_steps=3, max_grad_norm=0, optim="sgd", learning_rate=0.5, save_strategy="no",
        load_best_model_at_end="false", per_device_train_batch_size=rows // accumulated,
        gradient_accumulation_steps=accumulated,
    )  # fmt: skip


def check_refusal(script: ModuleType, argv: list[str], complaint: str, out: Path, capsys) -> None:
    """Checks that a script prints one line on standard error, returns 2 and writes nothing."""
    capsys.readouterr()
    assert script.main(argv) == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1, error
    assert not out.exists()


def check_adapter(folder: Path, head: str) -> dict[str, torch.Tensor]:
    """Checks that the saved head is complete and has no adapter; returns the saved weights."""
    assert not (folder / "model.safetensors").exists()
    weights = load_file(folder / "adapter_model.safetensors")
    head_weights = [name for name in weights if f".{head}." in name]
    assert f"base_model.model.{head}.weight" in head_weights, sorted(weights)[:4]
    assert not any("lora" in name for name in head_weights), head_weights
    assert any("lora_A" in name for name in weights)
    return weights
