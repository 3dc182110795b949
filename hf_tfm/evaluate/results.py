"""Figures of an evaluation on disk: a part is kept when it is finished, and a stopped evaluation goes on from there."""

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..artifacts.card import EVALUATION_FILE, HubData, read_evaluation
from ..artifacts.record import public_command, versions
from ..core.errors import InputError
from ..core.privacy import public_name
from ..core.statistics import Estimate
from ..data.records import record_files
from ..data.tokens import default_cache_dir, file_hash


PARTS_FILE = "parts.jsonl"


class Results:
    """
    The figures of one model: `parts.jsonl` grows while they are computed, `evaluation.json` has them all at the end.

    Args:
        folder: where both are written.
        model: what tells this model from others; parts of another one are not taken for its own.

    Raises:
        InputError: the folder cannot be used.
    """

    def __init__(self, folder: str | Path, model: Mapping[str, Any]):
        self.folder, self.model = Path(folder), dict(model)
        self.tasks: list[dict[str, Any]] = []
        self._known: dict[str, Any] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            text = (self.folder / PARTS_FILE).read_text(encoding="utf-8")
        except FileNotFoundError:
            text = ""
        except OSError as error:
            raise InputError(f"--output_dir {self.folder}: {error.strerror}; give another folder") from None
        for line in text.splitlines():
            with contextlib.suppress(ValueError):  # the process died while it wrote this line
                part = json.loads(line)
                self._known[part["key"]] = part["figures"]
        if text and not text.endswith("\n"):
            self._append("")

    def part(self, settings: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """What `compute` gives, as it is read from JSON; it is not called if these settings were computed before."""
        key = hashlib.sha256(json.dumps([self.model, settings], sort_keys=True).encode()).hexdigest()
        if key not in self._known:
            line = json.dumps({"key": key, "settings": settings, "figures": plain(compute())})
            self._append(line)
            self._known[key] = json.loads(line)["figures"]
        return self._known[key]

    def add(
        self,
        task: str,
        path: str | None,
        settings: Mapping[str, Any],
        figures: Mapping[str, Any],
        hub: HubData | None = None,
        **details: Any,
    ) -> None:
        """
        Print a finished task and keep it.

        Args:
            path: of the data.
            figures: `Estimate`s by name, for the model's card.
            hub: what the data is on the Hub.
            details: what is kept beside them.
        """
        figures = plain(figures)
        for name, figure in figures.items():
            print(
                f"{task}: {name} {figure['value']:.4f} [{figure['low']:.4f}, {figure['high']:.4f}], n {figure['n']:,}"
            )
        found = {"task": task, "data": public_name(path) if path else "", "settings": plain(settings)}
        found |= {"results": figures, **({"hub": hub._asdict()} if hub else {}), **plain(details)}
        self.tasks.append(found)

    def write(self) -> Path:
        """
        Write `evaluation.json`, and return where it is. What it has of the same model from before stays in it, with the
        command that it came from.
        """
        path = self.folder / EVALUATION_FILE
        run = {
            "command": public_command(sys.argv),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "versions": versions(),
        }
        kept, before = [], read_evaluation(self.folder)
        if before and before["model"] == self.model:
            new = [(task["task"], task["data"], task["settings"]) for task in self.tasks]
            earlier = {name: before[name] for name in run if name in before}
            kept = [{**earlier, **t} for t in before["tasks"] if (t["task"], t["data"], t["settings"]) not in new]
        facts = {"model": self.model, **run, "tasks": [*kept, *self.tasks]}
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(partial, path)
        return path

    def _append(self, line: str) -> None:
        with open(self.folder / PARTS_FILE, "a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())


def content(path: str, split: str = "train") -> str:
    """A file, or the files of a folder's split, as parts know it: by what is in it. Raises `InputError` if it cannot be
    read."""
    if not Path(path).is_dir():
        return file_hash(Path(path), default_cache_dir())
    hashes = [file_hash(file.path, default_cache_dir()) for file in record_files(path, split)]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def plain(value: Any) -> Any:
    """Figures as JSON knows them."""
    if isinstance(value, Estimate):
        return value.as_dict()
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return value.tolist() if hasattr(value, "tolist") else value
