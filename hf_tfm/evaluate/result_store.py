"""Results of an evaluation on disk: finished parts are kept, so that a stopped evaluation continues behind them."""

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..artifacts.measurements import EVALUATION_FILE, HubData, read_evaluation
from ..artifacts.record import public_command, versions
from ..core.atomic_files import write_atomically
from ..core.errors import InputError
from ..core.secret_scan import public_name
from ..core.statistics import Estimate
from ..data.cache import default_cache_dir, file_hash
from ..data.records import record_files


PARTS_FILE = "parts.jsonl"


class ResultStore:
    """
    Results of one model: `parts.jsonl` grows during the evaluation, `evaluation.json` has all tasks at the end.

    Args:
        folder: where both are written.
        model: the model's identity; parts of a different model are not reused.

    Raises:
        InputError: the folder cannot be used.
    """

    def __init__(self, folder: str | Path, model: Mapping[str, Any]):
        self.folder, self.model = Path(folder), dict(model)
        self.tasks: list[dict[str, Any]] = []
        self._parts: dict[str, Any] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            text = (self.folder / PARTS_FILE).read_text(encoding="utf-8")
        except FileNotFoundError:
            text = ""
        except OSError as error:
            raise InputError(f"--output_dir {self.folder}: {error.strerror}; give another folder") from None
        for line in text.splitlines():
            with contextlib.suppress(ValueError):  # a line that was cut when the process died
                part = json.loads(line)
                self._parts[part["key"]] = part["figures"]
        if text and not text.endswith("\n"):
            self._append("")

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.model["name"]

    def compute_once(self, settings: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """Return the result of `compute` as JSON restores it, from disk if these settings were computed before."""
        key = hashlib.sha256(json.dumps([self.model, settings], sort_keys=True).encode()).hexdigest()
        if key not in self._parts:
            line = json.dumps({"key": key, "settings": settings, "figures": as_json(compute())})
            self._append(line)
            self._parts[key] = json.loads(line)["figures"]
        return self._parts[key]

    def add_task(
        self,
        task: str,
        path: str | Sequence[str] | None,
        settings: Mapping[str, Any],
        figures: Mapping[str, Any],
        hub: HubData | None = None,
        split: str = "train",
        **details: Any,
    ) -> None:
        """
        Print the figures of a finished task and store them.

        Args:
            path: the data file, or several.
            figures: `Estimate`s by name, for the model's card.
            hub: the data set on the Hub that the file is from.
            split: the split that was read if `path` is a folder.
            details: further facts to store beside the figures.
        """
        figures = as_json(figures)
        for name, figure in figures.items():
            print(
                f"{task}: {name} {figure['value']:.4f} [{figure['low']:.4f}, {figure['high']:.4f}], n {figure['n']:,}"
            )
        paths = [path] if isinstance(path, str) else path or []
        facts = {"task": task, "data": " + ".join(map(public_name, paths)), "settings": as_json(settings)}
        if path:
            facts["data_sha256"] = content_hash(path, split)
        facts |= {"results": figures, **({"hub": hub._asdict()} if hub else {}), **as_json(details)}
        self.tasks.append(facts)

    def write(self, folder: Path | None = None) -> Path:
        """
        Write `evaluation.json` into a folder, by default that of the results, and return its path.

        Earlier tasks of the same weights remain in it, each with the command that measured it; a task on the same data
        with the same settings is replaced.
        """
        path = (folder or self.folder) / EVALUATION_FILE
        run = {
            "command": public_command(sys.argv),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "versions": versions(),
        }
        earlier, previous = [], read_evaluation(path.parent)
        if previous:
            earlier_run = {name: previous[name] for name in run if name in previous}
            earlier = [
                {**earlier_run, **task}
                for task in previous["tasks"]
                if not any(_is_same_measurement(task, new) for new in self.tasks)
            ]
            if earlier and _weights(previous["model"]) != _weights(self.model):
                print(f"dropped    {len(earlier)} earlier results in {path}: they are of other weights")
                earlier = []
        tasks = [*earlier, *(_with_own_name(task, earlier) for task in self.tasks)]
        text = json.dumps({"model": self.model, **run, "tasks": tasks}, indent=1, ensure_ascii=False)
        write_atomically(path, text + "\n")
        return path

    def _append(self, line: str) -> None:
        with open(self.folder / PARTS_FILE, "a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())


def _weights(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tells the weights of a model from others, which precision and name of a folder do not."""
    left_out = ("bf16", "name") if "sha256" in model else ("bf16",)
    return {name: value for name, value in model.items() if name not in left_out}


def _is_same_measurement(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    # Results of 0.1 have no hash of their data.
    has_hashes = "data_sha256" in one and "data_sha256" in other
    return all(one[name] == other[name] for name in ("task", "settings", "data_sha256" if has_hashes else "data"))


def _with_own_name(task: dict[str, Any], earlier: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a task whose data are told from files of the same name with other content."""
    same_name = [other for other in earlier if (other["task"], other["data"]) == (task["task"], task["data"])]
    if all(other.get("data_sha256", task.get("data_sha256")) == task.get("data_sha256") for other in same_name):
        return task
    return {**task, "data": f"{task['data']} ({task['data_sha256'][:8]})"}


def open_results(kind: str, location: str, output_dir: str | None, **identity: Any) -> ResultStore:
    """
    Return the results of a model in `output_dir`, by default `runs/KIND/MODEL`.

    Args:
        location: folder or Hub name of the model; the folder's name, or the Hub name, becomes the model's name.
        identity: further facts that tell the model from others.
    """
    name = Path(location).resolve().name if Path(location).exists() else location
    return ResultStore(output_dir or f"runs/{kind}/{name.replace('/', '--')}", {"name": name, **identity})


def content_hash(paths: str | Sequence[str], split: str = "train") -> str:
    """Return a hash of files, or of the files of a folder's split. Raises `InputError` if they cannot be read."""
    several = [paths] if isinstance(paths, str) else list(paths)
    if len(several) == 1 and Path(several[0]).is_file():
        return file_hash(Path(several[0]), default_cache_dir())
    files = [
        file
        for path in several
        for file in ([Path(path)] if Path(path).is_file() else [file.path for file in record_files(path, split)])
    ]
    hashes = [file_hash(file, default_cache_dir()) for file in files]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def as_json(value: Any) -> Any:
    """Return figures as types that JSON has."""
    if isinstance(value, Estimate):
        return value.as_dict()
    if isinstance(value, Mapping):
        return {str(name): as_json(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value
