"""
Model cards: every figure is read from the run record or from what was measured afterwards; what has no source is left
out. Here is what a card says to machines; `card_text.py` has what it says to people.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import card_text
from .card_text import has_own_code, is_adapter, opening, task_of
from .record import CURVE_FILE, RECORD_FILE, read_record


EVALUATION_FILE = "evaluation.json"
RESULTS_FILE = "results.jsonl"
EVAL_RESULTS = ".eval_results"

__all__ = ["EVALUATION_FILE", "has_own_code", "is_adapter", "opening", "render_card", "task_of", "write_card"]


def write_card(folder: Path) -> None:
    """
    Write `README.md` beside the run record of a model folder, from it and from `evaluation.json` if there is one, and
    what was measured on data sets of the Hub into `.eval_results/`.
    """
    folder = Path(folder)
    record = read_record(folder)
    evaluation = _evaluation_of(folder)
    card = render_card(record, (folder / CURVE_FILE).exists(), evaluation)
    _replace(folder / "README.md", card)
    for name, text in hub_results(record, evaluation).items():
        (folder / EVAL_RESULTS).mkdir(exist_ok=True)
        _replace(folder / EVAL_RESULTS / name, text)


def rewrite_card(folder: Path, **facts: Any) -> None:
    """
    Write a folder's card again, with facts that its run did not know; they are kept in the record.

    Args:
        facts: fields of the record, such as `name`, `language` or `watts`. `data_license` is that of all its data.
    """
    record = read_record(folder)
    license = facts.pop("data_license", None)
    if license is not None:
        record["data"] = [{**source, "license": license} for source in record.get("data", [])]
    record |= {name: value for name, value in facts.items() if value is not None}
    _replace(Path(folder) / RECORD_FILE, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    write_card(folder)


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
        datasets=sorted({found[0] for source in record.get("data", []) for found in hub_sources(source)}) or None,
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
            dataset_type=hub[0] if hub else "other",
            dataset_name=data,
            dataset_config=hub[1] if hub else None,
            dataset_split=split,
            metric_type=_metric(name),
            metric_value=_value(figure),
            metric_name=f"{name} ({card_text.interval(figure)})" if isinstance(figure, dict) else name,
        )
        for data, split, hub, name, figure in _figures(record, evaluation)
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
    for _, split, hub, name, figure in _figures(record, evaluation):
        if hub is None or _metric(name).endswith("loss"):
            continue
        notes = [name, *([card_text.interval(figure)] if isinstance(figure, dict) else []), f"split {split or hub[2]}"]
        entries.setdefault(
            hub[:2],
            EvalResultEntry(
                dataset_id=hub[0],
                task_id=hub[1] or "default",
                value=_value(figure),
                date=(evaluation or {}).get("finished") or record.get("started"),
                notes=", ".join(notes),
            ),
        )
    files: dict[str, list[EvalResultEntry]] = {}
    for entry in entries.values():
        files.setdefault(entry.dataset_id.replace("/", "--") + ".yaml", []).append(entry)
    return {
        name: yaml.safe_dump(eval_result_entries_to_yaml(several), sort_keys=False) for name, several in files.items()
    }


def hub_sources(source: dict[str, Any]) -> Iterator[tuple[str, str | None, str]]:
    """Name, configuration and split of the Hub's data sets in what a record says about its data."""
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
    evaluation = _evaluation_of(folder)
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
) -> Iterator[tuple[str, str | None, tuple[str, str | None, str] | None, str, Any]]:
    """All that was measured: data, split, the same on the Hub if it is there, the figure's name, and the figure."""
    split = record.get("measured_on", "validation")
    source = next((s for s in record.get("data", []) if s.get("split") == split), {"name": split})
    hub = next(hub_sources(source), None)
    for name, figure in (record.get("results") or {}).items():
        if isinstance(figure, (dict, float)):  # whole numbers count what was measured on
            yield source["name"], split, hub, name, figure
    for task in (evaluation or {}).get("tasks", []):
        for name, figure in task["results"].items():
            yield task["data"], None, _hub_source(task["data"]), f"{name}, {task['task']}", figure


def _hub_source(name: str) -> tuple[str, str | None, str] | None:
    if not name.startswith("hub:"):
        return None
    dataset, config, split = (*name.removeprefix("hub:").split(":"), "", "")[:3]
    return dataset, config or None, split or "train"


def _metric(name: str) -> str:
    """The metric in a figure's name: `accuracy by PLL, minimal pairs` is an accuracy."""
    return re.split(r", | by ", name)[0]


def _value(figure: Any) -> float:
    return figure["value"] if isinstance(figure, dict) else figure


def _pipeline_tag(record: dict[str, Any]) -> str | None:
    library = record.get("library")
    return "sentence-similarity" if library == "sentence-transformers" else task_of(record["model"]["class"])[1]


def _evaluation_of(folder: Path) -> dict[str, Any] | None:
    measured = folder / EVALUATION_FILE
    return json.loads(measured.read_text(encoding="utf-8")) if measured.is_file() else None


def _replace(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)  # where it is a link, what it leads to stays
    path.write_text(text, encoding="utf-8")
