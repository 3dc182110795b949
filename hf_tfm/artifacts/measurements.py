"""Measured figures as the Hub reads them: a card's `model-index` and files in `.eval_results/`."""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.utils import validate_repo_id

from ..core.errors import InputError
from .card_values import interval_text
from .head_table import head_of_record


EVALUATION_FILE = "evaluation.json"


class HubData(NamedTuple):
    """
    A split of a dataset on the Hub.

    Attributes:
        task: the task of the dataset's `eval.yaml` that figures belong to; by default the configuration or `default`.
    """

    dataset: str
    config: str | None
    split: str
    task: str | None = None

    @classmethod
    def read(cls, text: str, task: str | None = None, split: str = "train") -> "HubData":
        """
        Read `NAME[:CONFIG[:SPLIT]]`; `split` is the default split.

        Raises:
            InputError: the text does not have this form.
        """
        name, *parts = text.split(":")
        try:
            validate_repo_id(name)
            config, given_split = [*parts, "", ""][: max(2, len(parts))]
        except ValueError:
            raise InputError(f"{text!r} is no dataset of the Hub; write NAME[:CONFIG[:SPLIT]]") from None
        return cls(name, config or None, given_split or split, task)


class _Measurement(NamedTuple):
    data: str
    split: str | None
    hub: HubData | None
    name: str
    figure: Any
    date: str | None

    @property
    def metric(self) -> str:
        """The metric in the name of a figure: `accuracy by PLL, minimal pairs` is an accuracy."""
        return re.split(r", | by | with ", self.name)[0]

    @property
    def value(self) -> float:
        return float(self.figure["value"] if isinstance(self.figure, dict) else self.figure)

    @property
    def interval(self) -> str | None:
        return interval_text(self.figure) if isinstance(self.figure, dict) else None


def read_evaluation(folder: Path) -> dict[str, Any] | None:
    """
    Return the content of a folder's `evaluation.json`; None if there is no such file.

    Raises:
        InputError: the file is damaged.
    """
    file = folder / EVALUATION_FILE
    try:
        evaluation: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        evaluation["command"], evaluation["model"]["name"]
        [(task["task"], task["data"], task["results"]) for task in evaluation["tasks"]]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: contains no results ({error!r}); measure again or delete the file") from error
    return evaluation


def eval_results(record: dict[str, Any], evaluation: dict[str, Any] | None) -> list[EvalResult]:
    """Return the figures for `model-index`, with interval and number of records in the metric's name."""
    return [
        EvalResult(
            task_type=head_of_record(record).pipeline_tag or "other",
            dataset_type=measured.hub.dataset if measured.hub else "other",
            dataset_name=measured.data,
            dataset_config=measured.hub.config if measured.hub else None,
            dataset_split=measured.split,
            metric_type=measured.metric,
            metric_value=measured.value,
            metric_name=f"{measured.name} ({measured.interval})" if measured.interval else measured.name,
        )
        for measured in _measurements(record, evaluation)
    ]


def hub_results(record: dict[str, Any], evaluation: dict[str, Any] | None) -> dict[str, str]:
    """
    Return the text of each `.eval_results/*.yaml` by file name, for figures on datasets of the Hub.

    The Hub shows one figure of a model for each task of a dataset: here the first that is not a loss.
    """
    entries: dict[tuple[str, str], EvalResultEntry] = {}
    for measured in _measurements(record, evaluation):
        if (hub := measured.hub) is None or measured.metric.endswith("loss"):
            continue
        notes = ", ".join(filter(None, (measured.name, measured.interval, f"split {measured.split}")))
        task = hub.task or hub.config or "default"
        entry = EvalResultEntry(hub.dataset, task, measured.value, date=measured.date, notes=notes)
        entries.setdefault((hub.dataset, task), entry)
    files: dict[str, list[EvalResultEntry]] = {}
    for entry in entries.values():
        files.setdefault(entry.dataset_id.replace("/", "--") + ".yaml", []).append(entry)
    return {
        name: yaml.safe_dump(eval_result_entries_to_yaml(entries_of_file), sort_keys=False)
        for name, entries_of_file in files.items()
    }


def hub_sources(source: dict[str, Any]) -> Iterator[HubData]:
    """Yield the datasets of the Hub in one data entry of a run record."""
    for name in source.get("name", "").split(", "):
        if hub := _hub_source(name):
            yield hub


def _measurements(record: dict[str, Any], evaluation: dict[str, Any] | None) -> Iterator[_Measurement]:
    split = record.get("measured_on", "validation")
    source = next((source for source in record.get("data", []) if source.get("split") == split), {"name": split})
    hub = next(hub_sources(source), None)
    for name, figure in (record.get("results") or {}).items():
        if isinstance(figure, (dict, float)):  # integers are counts of records
            yield _Measurement(source["name"], split, hub, name, figure, record.get("started"))
    if evaluation is None:
        return
    for task in evaluation["tasks"]:
        hub = HubData(**task["hub"]) if task.get("hub") else _hub_source(task["data"])
        date = task.get("finished", evaluation.get("finished"))
        for name, figure in task["results"].items():
            yield _Measurement(task["data"], hub and hub.split, hub, f"{name}, {task['task']}", figure, date)


def _hub_source(name: str) -> HubData | None:
    if name.startswith("hub:"):
        with contextlib.suppress(InputError):  # a local folder may be written the same way
            return HubData.read(name.removeprefix("hub:"))
    return None
