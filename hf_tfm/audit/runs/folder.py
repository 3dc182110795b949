"""
The folder of a run as transformers' Trainer leaves it: its state, its log, its arguments, its checkpoints.

Nothing here imports torch or runs anything of the files, which may come from others.
"""

import io
import json
import pickle
import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...core.errors import InputError


STATE_FILE = "trainer_state.json"
ARGUMENTS_FILE = "training_args.bin"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_LARGEST_ARGUMENTS = 1 << 20  # bytes
# Keys that trainers of TRL log when the model writes its own answers; their loss says nothing about progress.
_ONLINE_KEYS = ("completions/", "objective/", "policy/")


@dataclass
class Run:
    """
    A finished, stopped or running run.

    Args:
        folder: The folder that was given.
        state_folder: The folder whose `trainer_state.json` was read.
        state: The content of that file.
        checkpoints: Folders of checkpoints, oldest first.
    """

    folder: Path
    state_folder: Path
    state: dict[str, Any]
    checkpoints: list[Path]

    @property
    def step(self) -> int:
        """Number of steps that were done when the state was written."""
        return int(self.state.get("global_step") or 0)

    @property
    def max_steps(self) -> int:
        """Number of steps that were planned; 0 if the state does not say."""
        return max(0, int(self.state.get("max_steps") or 0))

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """Entries of the log that carry a step, in the order in which they were written."""
        return [
            entry for entry in self.state["log_history"] if isinstance(entry, dict) and is_number(entry.get("step"))
        ]

    @cached_property
    def training(self) -> list[dict[str, Any]]:
        return [entry for entry in self.history if is_number(entry.get("loss"))]

    @cached_property
    def evaluations(self) -> list[dict[str, Any]]:
        return [entry for entry in self.history if any(key.startswith("eval_") for key in entry)]

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The entry that a Trainer writes when training ends; empty if it did not come to that."""
        return next((entry for entry in self.history[::-1] if "train_runtime" in entry), {})

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """Plain values of `training_args.bin`; empty if there is none that can be read."""
        for folder in (self.state_folder, self.folder, *self.checkpoints[::-1]):
            if (folder / ARGUMENTS_FILE).is_file():
                return read_arguments(folder / ARGUMENTS_FILE)
        return {}

    @cached_property
    def config(self) -> dict[str, Any]:
        """The model's `config.json`, or `adapter_config.json`; empty if there is none."""
        for folder in (self.state_folder, self.folder, *self.checkpoints[::-1]):
            for name in ("config.json", "adapter_config.json"):
                if isinstance(config := read_json(folder / name), dict):
                    return config
        return {}

    @cached_property
    def is_online(self) -> bool:
        """Whether the model was trained on rewards for answers of its own."""
        return any(key == "reward" or key.startswith(_ONLINE_KEYS) for entry in self.training[:3] for key in entry)

    def series(self, *keys: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the steps and values of the first of these keys that the training log has."""
        for key in keys:
            entries = [entry for entry in self.training if is_number(entry.get(key))]
            if entries:
                steps = np.array([entry["step"] for entry in entries], float)
                return steps, np.array([entry[key] for entry in entries], float)
        return np.array([]), np.array([])


def is_number(value: Any) -> bool:
    """Whether a value of a log is a number, which may be NaN or infinite."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file; None if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_state(folder: Path) -> dict[str, Any] | None:
    """Returns the state of a trainer that a folder holds, or None."""
    state = read_json(folder / STATE_FILE)
    return state if isinstance(state, dict) and isinstance(state.get("log_history"), list) else None


def list_checkpoints(folder: Path) -> list[Path]:
    """Returns the folders `checkpoint-<step>` of a run, oldest first."""
    matches = ((_CHECKPOINT.fullmatch(path.name), path) for path in folder.glob("checkpoint-*") if path.is_dir())
    return [path for _, path in sorted((int(match[1]), path) for match, path in matches if match)]


def holds_run(folder: Path) -> bool:
    """Whether a folder is that of a run: it has a state, or checkpoints that have one."""
    return folder.is_dir() and any(True for _ in _state_folders(folder))


def open_run(folder: str | Path) -> Run:
    """
    Open the folder of a run, one of its checkpoints, or a folder around a single run.

    Raises:
        InputError: There is no readable `trainer_state.json`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder")
    folders = list(_state_folders(folder))
    if not folders:
        raise InputError(f"{folder}: no {STATE_FILE} in it or in a checkpoint-* of it, so this is no folder of a run")
    states = [(state, place) for place in folders if (state := read_state(place)) is not None]
    if not states:
        raise InputError(f"{folders[-1] / STATE_FILE}: damaged, or not the state of a Trainer")
    # Where two stand at the same step, the later file has more: the summary that is logged when training ends.
    state, place = max(
        states, key=lambda pair: (pair[0].get("global_step") or 0, len(pair[0]["log_history"]), pair[1] == folder)
    )
    home = place.parent if _CHECKPOINT.fullmatch(place.name) else place
    checkpoints = [place] if place == folder and home != folder else list_checkpoints(home)
    return Run(folder, place, state, checkpoints)


def _state_folders(folder: Path) -> Iterable[Path]:
    """Yields folders that hold a state: this one, its checkpoints, or the same one level deeper if it is alone."""
    for place in (folder, *list_checkpoints(folder)):
        if (place / STATE_FILE).is_file():
            yield place
    if not (folder / STATE_FILE).is_file() and not list_checkpoints(folder):
        inner = [path for path in sorted(folder.iterdir()) if path.is_dir()]
        inner = [path for path in inner if (path / STATE_FILE).is_file() or list_checkpoints(path)]
        if len(inner) > 1:
            names = ", ".join(path.name for path in inner[:5])
            raise InputError(f"{folder}: holds several runs ({names}); name one of them")
        if inner:
            yield from _state_folders(inner[0])


class _StandIn:
    """Takes the place of every class and function that a pickle names, and does nothing."""

    arguments: tuple[Any, ...]

    def __new__(cls, *arguments: Any) -> "_StandIn":
        instance = super().__new__(cls)
        instance.arguments = arguments
        return instance


class _InertUnpickler(pickle.Unpickler):
    """Reads the plain values of a pickle. Nothing that it names is imported or called."""

    def find_class(self, module: str, name: str) -> Any:
        return _StandIn

    def persistent_load(self, identifier: Any) -> Any:
        return None


def read_arguments(path: Path) -> dict[str, Any]:
    """
    Returns the numbers, texts, booleans and enumerated values of a `training_args.bin`.

    The file is a pickle, which could run anything; here it only fills stand-ins. Empty if it cannot be read so.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entry = next(info for info in archive.infolist() if info.filename.endswith("/data.pkl"))
            if entry.file_size > _LARGEST_ARGUMENTS:
                return {}
            stand_in = _InertUnpickler(io.BytesIO(archive.read(entry))).load()
    except Exception:  # a damaged pickle may raise anything
        return {}
    arguments = {}
    for name, value in getattr(stand_in, "__dict__", {}).items():
        if isinstance(value, _StandIn) and len(value.arguments) == 1:
            value = value.arguments[0]  # a member of an enumeration
        if value is None or isinstance(value, bool | int | float | str):
            arguments[name] = value
    return arguments
