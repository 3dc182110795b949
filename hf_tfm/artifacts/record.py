"""The run record: what was run on what, how long, and what came out; the model card's only source of figures."""

import contextlib
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

    Fields are added as they become known: `record["results"] = {...}`. Paths are kept without their folders outside the
    working directory, so that the record can be published.
    """

    def __init__(self, job: str, seed: int | None = None):
        self._started, self._meter = time.time(), EnergyMeter()
        self._before: dict[str, Any] = {}
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
        """Count what the run took up to a checkpoint, as the record there says, when it began and with which source."""
        if (checkpoint / RECORD_FILE).is_file():
            self._before = read_record(checkpoint)
            self.fields["started"] = self._before["started"]
            began_with, now = self._before.get("commit"), self.fields["commit"]
            if began_with and began_with != now:
                self.fields |= {"commit": began_with, "ended_with_commit": now}

    def add_model(self, model: PreTrainedModel) -> None:
        """What the card tells about the model."""
        self.fields["model"] = model_facts(model)

    def add_training(self, state: TrainerState) -> None:
        """Steps, curve of the training loss and of every evaluation, from the Trainer's log."""
        keep = ("step", "loss", "learning_rate", "grad_norm")
        self.fields["steps"] = state.global_step
        self.fields["curve"] = [
            {name: entry[name] for name in keep if name in entry} for entry in state.log_history if "loss" in entry
        ]
        self.fields["evaluations"] = [
            {k: v for k, v in entry.items() if k == "step" or k.startswith("eval_")}
            for entry in state.log_history
            if any(name.startswith("eval_") for name in entry)
        ]

    def write(self, folder: Path) -> None:
        """Write `run_record.json`; `seconds` is the time since the record was begun, `joules` what it took."""
        self.fields["seconds"] = round(self._before.get("seconds", 0.0) + time.time() - self._started, 1)
        if joules := self._meter.read():
            before = self._before.get("joules", {})
            self.fields["joules"] = {name: round(before.get(name, 0.0) + used, 1) for name, used in joules.items()}
        text = json.dumps(self.fields, indent=1, ensure_ascii=False, default=_plain)
        (Path(folder) / RECORD_FILE).write_text(text + "\n", encoding="utf-8")


def base_model_name(model: str) -> str:
    """What a card calls the model that a run goes on from: its name on the Hub, or that of its folder."""
    return Path(model).resolve().name if Path(model).exists() else model


def model_facts(model: PreTrainedModel) -> dict[str, Any]:
    """
    Class, parameters and configuration; a tied matrix counts once, of an adapter only its base is counted, and of a
    SentenceTransformer the model in it.
    """
    model = unwrap_adapter(getattr(model, "transformers_model", model))
    added = ("lora_", ".modules_to_save.", ".trainable_tokens_")
    total = sum(p.numel() for name, p in model.named_parameters() if not any(part in name for part in added))
    config = {k: v for k, v in model.config.to_dict().items() if k != "_name_or_path"}
    # What GPT-2 and others call otherwise goes by its usual name too: n_layer is num_hidden_layers.
    usual = {name: config[own] for name, own in model.config.attribute_map.items() if own in config}
    return {
        "class": type(model).__name__.removeprefix("FSDP"),  # which sharding puts in front
        "parameters": total,
        "parameters_without_embedding": total - model.get_input_embeddings().weight.numel(),
        "config": {**usual, **config},
    }


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a finished run. Raises `InputError` if the file is damaged."""
    file = Path(folder) / RECORD_FILE
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"{file}: is no record of a run ({error}); fetch it again or take it away") from error


@contextlib.contextmanager
def with_cache(model: PreTrainedModel) -> Iterator[None]:
    """
    Saved like this, a model that generates uses its cache: Trainer switches `use_cache` off in the configuration while
    it trains, and whoever loads such a folder would compute every token's past anew.
    """
    model = getattr(model, "transformers_model", model)
    config = getattr(model, "config", None)
    off = getattr(config, "use_cache", None) is False and model.can_generate()
    if off:
        config.use_cache = True
    try:
        yield
    finally:
        if off:
            config.use_cache = False


def save_generation(model: PreTrainedModel, folder: str | Path) -> None:
    """Beside an adapter, which is saved without them, the generation settings: what its answers end with."""
    if hasattr(model, "peft_config") and model.can_generate():
        model.generation_config.save_pretrained(folder)


def plot_curve(record: dict[str, Any], path: Path) -> None:
    """Training loss over steps, and the evaluations' where there are some, as a PNG."""
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
    The command as it can be published and run again: paths relative to the working directory, or their last part, and
    no access tokens.
    """
    here = Path.cwd()
    words: list[str] = []
    for argument in argv:
        if words and words[-1].endswith("_token") and words[-1].startswith("--"):
            words.pop()  # and the token
        elif not re.match(r"--\w+_token=", argument):
            words.append(argument)

    def public(argument: str) -> str:
        flag, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
        if os.path.isabs(value):
            path = Path(value)
            value = str(path.relative_to(here)) if path.is_relative_to(here) else path.name
        return flag + equals + value

    program = [] if words[0].startswith("hf-tfm ") else ["python"]
    words[:1] = words[0].split() if not program else words[:1]
    return shlex.join([*program, *(public(argument) for argument in words)])


def _commit() -> str | None:
    """The source's commit, `+changes` behind it where files differ; None outside a checkout."""
    here = Path(__file__).parent
    try:
        run = lambda *a: subprocess.run(["git", *a], cwd=here, capture_output=True, text=True, timeout=10, check=True)  # noqa: E731
        commit = run("rev-parse", "HEAD").stdout.strip()
        changed = run("status", "--porcelain", "--untracked-files=no").stdout.strip()
        return commit + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what comes out."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _hardware() -> dict[str, Any]:
    hardware = {"cpu": _cpu_name(), "cpu_cores": os.cpu_count(), "threads": torch.get_num_threads()}
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
    """What JSON does not know: numpy and torch scalars, dtypes, paths."""
    return value.item() if hasattr(value, "item") else str(value)
