"""The run record: command, data, hardware, duration and results of a run, from which the model card is made."""

import contextlib
import functools
import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerState

from ..core.energy import EnergyMeter
from ..core.errors import InputError
from ..core.inference import unwrap_adapter


RECORD_FILE = "run_record.json"
CURVE_FILE = "loss_curve.png"
_PACKAGES = ("hf-tfm", "transformers", "torch", "tokenizers", "datasets", "accelerate", "peft", "trl", "numpy")


class RunRecord:
    """
    Collects the facts of one run and writes them as `run_record.json`.

    A script adds fields as they become known: `record["results"] = {...}`. Paths outside the working directory are
    recorded without their folders, so that the record can be published.
    """

    def __init__(self, job: str, seed: int | None = None):
        self._started, self._meter = time.time(), EnergyMeter()
        self._previous: dict[str, Any] = {}
        self.fields: dict[str, Any] = {
            "job": job,
            "command": public_command(sys.argv),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._started)),
            "seed": seed,
            "commit": _commit(),
            "versions": versions(),
            "hardware": _hardware(),
        }

    def __setitem__(self, name: str, value: Any) -> None:
        self.fields[name] = value

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]

    def go_on_from(self, checkpoint: Path) -> None:
        """Add the time and energy up to a checkpoint, and keep its start and source commit, from the record there."""
        if (checkpoint / RECORD_FILE).is_file():
            self._previous = read_record(checkpoint)
            self.fields["started"] = self._previous["started"]
            first_commit, commit = self._previous.get("commit"), self.fields["commit"]
            if first_commit and first_commit != commit:
                self.fields |= {"commit": first_commit, "ended_with_commit": commit}

    def add_model(self, model: PreTrainedModel) -> None:
        """Add the facts about the model that the card needs."""
        self.fields["model"] = model_facts(model)

    def add_training(self, state: TrainerState) -> None:
        """Add steps, the curve of the training loss and all evaluations from the Trainer's log."""
        logged = ("step", "loss", "learning_rate", "grad_norm")
        self.fields["steps"] = state.global_step
        self.fields["curve"] = [
            {name: entry[name] for name in logged if name in entry} for entry in state.log_history if "loss" in entry
        ]
        self.fields["evaluations"] = [
            {k: v for k, v in entry.items() if k == "step" or k.startswith("eval_")}
            for entry in state.log_history
            if any(name.startswith("eval_") for name in entry)
        ]

    def write(self, folder: Path) -> None:
        """Write `run_record.json` with the seconds and, if they were measured, the joules of the run."""
        self.fields["seconds"] = round(self._previous.get("seconds", 0.0) + time.time() - self._started, 1)
        if joules := self._meter.read():
            previous = self._previous.get("joules", {})
            self.fields["joules"] = {name: round(previous.get(name, 0.0) + used, 1) for name, used in joules.items()}
            self.fields["joules_by"] = self._meter.source
        text = json.dumps(self.fields, indent=1, ensure_ascii=False, default=_plain)
        (Path(folder) / RECORD_FILE).write_text(text + "\n", encoding="utf-8")


def base_model_name(model: str) -> str:
    """Return the name of a base model on a card: its name on the Hub or that of its folder."""
    return Path(model).resolve().name if Path(model).exists() else model


def model_facts(model: PreTrainedModel) -> dict[str, Any]:
    """
    Return class, number of parameters and configuration of a model.

    Tied matrices count once. For an adapter they are those of its base model, for a SentenceTransformer those of the
    model in it.
    """
    model = unwrap_adapter(getattr(model, "transformers_model", model))
    adapter_parts = ("lora_", ".modules_to_save.", ".trainable_tokens_")
    total = sum(p.numel() for name, p in model.named_parameters() if not any(part in name for part in adapter_parts))
    config = {k: v for k, v in model.config.to_dict().items() if k != "_name_or_path"}
    # GPT-2 and others have names of their own for usual fields: n_layer is num_hidden_layers.
    usual = {name: config[alias] for name, alias in model.config.attribute_map.items() if alias in config}
    return {
        "class": type(model).__name__.removeprefix("FSDP"),  # the prefix that sharding adds
        "parameters": total,
        "parameters_without_embedding": total - model.get_input_embeddings().weight.numel(),
        "config": {**usual, **config},
    }


def read_record(folder: Path) -> dict[str, Any]:
    """Return the record of a finished run. Raises `InputError` if the file is damaged."""
    file = Path(folder) / RECORD_FILE
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"{file}: is not a run record ({error}); download it again or delete it") from error


@contextlib.contextmanager
def with_cache(model: PreTrainedModel) -> Iterator[None]:
    """
    Switch `use_cache` on in the configuration while a model is saved.

    Trainer switches it off during training, and a model loaded from such a folder would generate without cache.
    """
    model = getattr(model, "transformers_model", model)
    config = getattr(model, "config", None)
    if config is None or getattr(config, "use_cache", None) is not False or not model.can_generate():
        yield
        return
    config.use_cache = True
    try:
        yield
    finally:
        config.use_cache = False


def save_generation(model: PreTrainedModel, folder: str | Path) -> None:
    """Save the generation settings beside an adapter, which PEFT saves without them."""
    if hasattr(model, "peft_config") and model.can_generate():
        model.generation_config.save_pretrained(folder)


def plot_curve(record: dict[str, Any], path: Path) -> None:
    """Plot training and evaluation loss over steps as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot([e["step"] for e in record["curve"]], [e["loss"] for e in record["curve"]], label="training", lw=1.2)
    points = [(e["step"], e["eval_loss"]) for e in record.get("evaluations", []) if "eval_loss" in e]
    if points:
        axes.plot(*zip(*points), "o-", ms=3, label="validation")
    axes.set(xlabel="step", ylabel=record.get("loss_name", "loss (nats per predicted token)"), title=record["job"])
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)


def public_command(argv: list[str]) -> str:
    """
    Return the command in a form that can be published.

    Paths are relative to the working directory, or only their last part if they are outside; access tokens are removed.
    """
    here = Path.cwd()
    words: list[str] = []
    for argument in argv:
        if words and words[-1].endswith("_token") and words[-1].startswith("--"):
            words.pop()  # with this argument, the token
        elif not re.match(r"--\w+_token=", argument):
            words.append(argument)

    def with_public_path(argument: str) -> str:
        flag, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
        if os.path.isabs(value):
            path = Path(value)
            value = str(path.relative_to(here)) if path.is_relative_to(here) else path.name
        return flag + equals + value

    program = [] if words[0].startswith("hf-tfm ") else ["python"]
    words[:1] = words[0].split() if not program else words[:1]
    return shlex.join([*program, *(with_public_path(argument) for argument in words)])


def _commit() -> str | None:
    """Return the source's commit, with `+changes` if files differ; None outside a checkout."""
    here = Path(__file__).parent
    run = functools.partial(subprocess.run, cwd=here, capture_output=True, text=True, timeout=10, check=True)
    try:
        commit = run(["git", "rev-parse", "HEAD"]).stdout.strip()
        changed = run(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip()
        return commit + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect results."""
    installed = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def _hardware() -> dict[str, Any]:
    hardware: dict[str, Any] = {"cpu": _cpu_name(), "cpu_cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        hardware["memory_gib"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    if torch.cuda.is_available():
        hardware["gpu"] = torch.cuda.get_device_name()
        hardware["gpus"] = torch.cuda.device_count()
    return hardware


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _plain(value: Any) -> Any:
    """Convert numpy and torch scalars, dtypes and paths for JSON."""
    return value.item() if hasattr(value, "item") else str(value)
