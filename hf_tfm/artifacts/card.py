"""
Model cards: every figure is read from the run record or from what was measured afterwards; what has no source is left
out. Here is what a card says to machines; `card_text.py` has what it says to people.
"""

import contextlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..core.errors import InputError
from . import card_text
from .card_text import has_own_code, is_adapter, opening, task_of
from .record import CURVE_FILE, RECORD_FILE, read_record


EVALUATION_FILE = "evaluation.json"
RESULTS_FILE = "results.jsonl"
EVAL_RESULTS = ".eval_results"

# How a file of results begins that is written anew with the card; others are left alone.
_OWN = "# Written by hf_tfm from what was measured; do not edit.\n"

__all__ = [
    "EVALUATION_FILE", "HubData", "add_evaluation", "has_own_code", "is_adapter", "opening", "read_evaluation",
    "render_card", "rewrite_card", "task_of", "write_card", "write_results_card",
]  # fmt: skip


class HubData(NamedTuple):
    """
    A data set of the Hub, or what some file is there.

    Attributes:
        task: the one of its `eval.yaml` that figures belong to; by default the configuration, or `default`.
    """

    dataset: str
    config: str | None
    split: str
    task: str | None = None

    @classmethod
    def read(cls, text: str, task: str | None = None, split: str = "train") -> "HubData":
        """
        `NAME[:CONFIG[:SPLIT]]`, with a `split` for where there is none.

        Raises:
            InputError: it is not written like this.
        """
        from huggingface_hub.utils import validate_repo_id

        name, *more = text.split(":")
        try:
            validate_repo_id(name)
            config, said = [*more, "", ""][: max(2, len(more))]
        except ValueError:
            raise InputError(f"{text!r} is no data set of the Hub; write NAME[:CONFIG[:SPLIT]]") from None
        return cls(name, config or None, said or split, task)


def write_card(folder: Path) -> None:
    """
    Write `README.md` beside the run record of a model folder, from it and from `evaluation.json` if there is one, and
    what was measured on data sets of the Hub into `.eval_results/`.

    Raises:
        InputError: one of the two is damaged.
    """
    _write_card(Path(folder), _record_of(folder))


def rewrite_card(folder: Path, **facts: Any) -> None:
    """
    Write a folder's card again, with facts that its run did not know; they are kept in the record.

    Args:
        facts: fields of the record, such as `name`, `language` or `watts`. `data_license` is that of all its data.
    """
    record = _record_of(folder)
    license = facts.pop("data_license", None)
    if license is not None:
        record["data"] = [{**source, "license": license} for source in record.get("data", [])]
    record |= {name: value for name, value in facts.items() if value is not None}
    _write_card(Path(folder), record)
    _replace(Path(folder) / RECORD_FILE, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def add_evaluation(folder: Path, measured: Path) -> list[Path]:
    """
    Put an `evaluation.json` into a model's folder: it and the card where there is a run record, and in any folder what
    it says of data sets of the Hub into `.eval_results/`. Returns what was written of the last two.
    """
    if (folder / RECORD_FILE).is_file():
        if not (folder / EVALUATION_FILE).exists() or not measured.samefile(folder / EVALUATION_FILE):
            shutil.copyfile(measured, folder / EVALUATION_FILE)
        write_card(folder)
        written = [folder / "README.md"]
    else:
        _write_hub_results(folder, hub_results({}, read_evaluation(measured.parent)))
        written = []
    return [*written, *sorted((folder / EVAL_RESULTS).glob("*.yaml"))]


def _record_of(folder: Path) -> dict[str, Any]:
    record = read_record(folder)
    if not {"class", "config", "parameters"} <= set(record.get("model") or ()):
        raise InputError(f"{Path(folder) / RECORD_FILE}: does not say what the model is, so there can be no card")
    return record


def _write_card(folder: Path, record: dict[str, Any]) -> None:
    evaluation = read_evaluation(folder)
    _replace(folder / "README.md", render_card(record, (folder / CURVE_FILE).exists(), evaluation))
    _write_hub_results(folder, hub_results(record, evaluation))


def _write_hub_results(folder: Path, files: dict[str, str]) -> None:
    """Files by name into `.eval_results/`; of those from before, the ones that nothing measured stands behind go."""
    place = folder / EVAL_RESULTS
    for old in place.glob("*.yaml"):
        if old.name not in files and old.read_text(encoding="utf-8").startswith(_OWN):
            old.unlink()
    for name, text in files.items():
        place.mkdir(exist_ok=True)
        _replace(place / name, _OWN + text)


def render_card(record: dict[str, Any], has_curve: bool = False, evaluation: dict[str, Any] | None = None) -> str:
    """
    The card's text, metadata in front.

    Args:
        record: of the run; `{"model": model_facts(model)}` where there was none.
        has_curve: whether the picture of the loss lies beside the card.
        evaluation: what was measured afterwards.
    """
    from huggingface_hub import ModelCard, ModelCardData

    adapter, library = is_adapter(record), record.get("library", "transformers")
    name = record.get("name", record["model"]["class"])
    figures = eval_results(record, evaluation)
    metadata = ModelCardData(
        library_name="peft" if adapter else library,
        pipeline_tag=_pipeline_tag(record),
        license=record.get("license"),
        language=record.get("language"),
        base_model=record.get("base_model"),
        base_model_relation=("adapter" if adapter else "finetune") if record.get("base_model") else None,
        datasets=sorted({found.dataset for source in record.get("data", []) for found in hub_sources(source)}) or None,
        metrics=list(dict.fromkeys(figure.metric_type for figure in figures)) or None,
        tags=["hf_tfm", *(["custom_code"] if has_own_code(record) else []), *(["lora"] if adapter else [])],
        model_name=name if figures else None,
        eval_results=figures or None,
    )
    text = card_text.body(record, name, has_curve, evaluation)
    return str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{text}\n"))


def eval_results(record: dict[str, Any], evaluation: dict[str, Any] | None) -> list[Any]:
    """The figures as `model-index` takes them, with interval and number of records in the metric's name."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=_pipeline_tag(record) or "other",
            dataset_type=hub.dataset if hub else "other",
            dataset_name=data,
            dataset_config=hub.config if hub else None,
            dataset_split=split,
            metric_type=_metric(name),
            metric_value=_value(figure),
            metric_name=f"{name} ({card_text.interval(figure)})" if isinstance(figure, dict) else name,
        )
        for data, split, hub, name, figure, _ in _figures(record, evaluation)
    ]


def hub_results(record: dict[str, Any], evaluation: dict[str, Any] | None) -> dict[str, str]:
    """
    What was measured on data sets of the Hub, as its `.eval_results/*.yaml`: the text of each file by its name.

    A data set's page shows one figure of a model for each of its tasks: the first that is not a loss.
    """
    import yaml
    from huggingface_hub import EvalResultEntry
    from huggingface_hub._eval_results import eval_result_entries_to_yaml

    entries: dict[tuple[str, str], EvalResultEntry] = {}
    for _, split, hub, name, figure, date in _figures(record, evaluation):
        if hub is None or _metric(name).endswith("loss"):
            continue
        notes = [name, *([card_text.interval(figure)] if isinstance(figure, dict) else []), f"split {split}"]
        task = hub.task or hub.config or "default"
        entry = EvalResultEntry(hub.dataset, task, _value(figure), date=date, notes=", ".join(notes))
        entries.setdefault((hub.dataset, task), entry)
    files: dict[str, list[EvalResultEntry]] = {}
    for entry in entries.values():
        files.setdefault(entry.dataset_id.replace("/", "--") + ".yaml", []).append(entry)
    return {
        name: yaml.safe_dump(eval_result_entries_to_yaml(several), sort_keys=False) for name, several in files.items()
    }


def hub_sources(source: dict[str, Any]) -> Iterator[HubData]:
    """The Hub's data sets in what a record says about its data."""
    for name in source.get("name", "").split(", "):
        if found := _hub_source(name):
            yield found


def write_results_card(folder: Path) -> None:
    """
    Make a folder with `evaluation.json` a data set: a card, unless there is one, and `results.jsonl` with one figure a
    line, which `datasets.load_dataset` reads.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    folder = Path(folder)
    evaluation = read_evaluation(folder)
    model = evaluation["model"]["name"]
    rows = [
        {"model": model, "task": task["task"], "data": task["data"], "metric": name, **figure}
        for task in evaluation["tasks"]
        for name, figure in task["results"].items()
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    _replace(folder / RESULTS_FILE, lines)
    if (folder / "README.md").exists():
        return
    metadata = DatasetCardData(
        pretty_name=f"Results of {model}",
        tags=["hf_tfm", "evaluation"],
        configs=[{"config_name": "default", "data_files": RESULTS_FILE}],
    )
    text = card_text.results_body(model, evaluation)
    _replace(folder / "README.md", str(DatasetCard(f"---\n{metadata.to_yaml()}\n---\n\n{text}\n")))


def _figures(
    record: dict[str, Any], evaluation: dict[str, Any] | None
) -> Iterator[tuple[str, str | None, HubData | None, str, Any, str | None]]:
    """All that was measured: data, split, the same on the Hub if it is there, the figure's name, the figure, when."""
    split = record.get("measured_on", "validation")
    source = next((s for s in record.get("data", []) if s.get("split") == split), {"name": split})
    hub = next(hub_sources(source), None)
    for name, figure in (record.get("results") or {}).items():
        if isinstance(figure, (dict, float)):  # whole numbers count what was measured on
            yield source["name"], split, hub, name, figure, record.get("started")
    for task in (evaluation or {}).get("tasks", []):
        hub = HubData(**task["hub"]) if task.get("hub") else _hub_source(task["data"])
        when = task.get("finished", evaluation.get("finished"))
        for name, figure in task["results"].items():
            yield task["data"], hub and hub.split, hub, f"{name}, {task['task']}", figure, when


def _hub_source(name: str) -> HubData | None:
    if name.startswith("hub:"):
        with contextlib.suppress(InputError):  # a folder of this machine can be read like one
            return HubData.read(name.removeprefix("hub:"))
    return None


def _metric(name: str) -> str:
    """The metric in a figure's name: `accuracy by PLL, minimal pairs` is an accuracy."""
    return re.split(r", | by ", name)[0]


def _value(figure: Any) -> float:
    return figure["value"] if isinstance(figure, dict) else figure


def _pipeline_tag(record: dict[str, Any]) -> str | None:
    library = record.get("library")
    return "sentence-similarity" if library == "sentence-transformers" else task_of(record["model"]["class"])[1]


def read_evaluation(folder: Path) -> dict[str, Any] | None:
    """What `evaluation.json` of a folder says; None if there is none. Raises `InputError` if it is damaged."""
    file = folder / EVALUATION_FILE
    try:
        evaluation = json.loads(file.read_text(encoding="utf-8"))
        evaluation["command"], evaluation["model"]["name"]
        [(task["task"], task["data"], task["results"]) for task in evaluation["tasks"]]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: holds no results ({error!r}); measure again or take it away") from error
    return evaluation


def _replace(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)  # where it is a link, what it leads to stays
    path.write_text(text, encoding="utf-8")
