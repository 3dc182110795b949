"""
Model cards, rendered from `card_template.md`.

Every figure comes from the run record or from `evaluation.json`; a value without a source is left out.
"""

import functools
import json
import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import DatasetCard, DatasetCardData, ModelCard, ModelCardData

from ..core.atomic_files import write_atomically
from ..core.errors import InputError
from .card_values import card_values, results_text
from .head_table import has_own_code, head_of_record, is_adapter
from .measurements import EVALUATION_FILE, eval_results, hub_results, hub_sources, read_evaluation
from .record import CURVE_FILE, RECORD_FILE, read_record


TEMPLATE = Path(__file__).with_name("card_template.md")
RESULTS_FILE = "results.jsonl"
EVAL_RESULTS = ".eval_results"
# The first line of each file in `.eval_results/` that is written with the card; other files stay as they are.
_GENERATED = "# Written by hf_tfm from what was measured; do not edit.\n"


def write_card(folder: Path) -> None:
    """
    Write `README.md` and `.eval_results/` beside the run record of a model folder.

    Raises:
        InputError: the record or `evaluation.json` is damaged.
    """
    _write_card(Path(folder), _record_of(folder))


def rewrite_card(folder: Path, **facts: Any) -> None:
    """
    Write a folder's card again, with facts that its run did not know; the record keeps them.

    Args:
        facts: fields of the record, such as `name`, `language` or `watts`; `data_license` holds for all its data.
    """
    record = _record_of(folder)
    data_license = facts.pop("data_license", None)
    if data_license is not None:
        record["data"] = [{**source, "license": data_license} for source in record.get("data", [])]
    record |= {name: value for name, value in facts.items() if value is not None}
    _write_card(Path(folder), record)
    write_atomically(Path(folder) / RECORD_FILE, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def add_evaluation(folder: Path, measured: Path) -> list[Path]:
    """
    Write what was measured into a folder, and return the written card and files of `.eval_results/`.

    The card has the figures of the folder's own `evaluation.json`. A folder without a run record gets the files of
    `.eval_results/` only, from `measured`.
    """
    if (folder / RECORD_FILE).is_file():
        write_card(folder)
        written = [folder / "README.md"]
    else:
        _write_hub_results(folder, hub_results({}, read_evaluation(measured.parent)), delete=False)
        written = []
    return [*written, *sorted((folder / EVAL_RESULTS).glob("*.yaml"))]


def render_card(record: dict[str, Any], has_curve: bool = False, evaluation: dict[str, Any] | None = None) -> str:
    """
    Return the text of a model card with its metadata.

    Args:
        record: of the run; `{"model": model_facts(model)}` if there was none.
        has_curve: whether the plot of the loss lies beside the card.
        evaluation: measured after the run.
    """
    title, adapter = record.get("name", record["model"]["class"]), is_adapter(record)
    figures = eval_results(record, evaluation)
    hub_data = {hub.dataset for source in record.get("data", []) for hub in hub_sources(source)}
    card_data = ModelCardData(
        library_name="peft" if adapter else record.get("library", "transformers"),
        pipeline_tag=head_of_record(record).pipeline_tag,
        license=record.get("license"),
        language=record.get("language"),
        base_model=record.get("base_model"),
        base_model_relation=("adapter" if adapter else "finetune") if record.get("base_model") else None,
        datasets=sorted(hub_data) or None,
        metrics=list(dict.fromkeys(figure.metric_type for figure in figures)) or None,
        tags=["hf_tfm", *(["custom_code"] if has_own_code(record) else []), *(["lora"] if adapter else [])],
        model_name=title if figures else None,
        eval_results=figures or None,
    )
    values = card_values(record, title, has_curve, evaluation)
    card = ModelCard.from_template(card_data, template_path=str(TEMPLATE), **values)
    return f"---\n{_compact_yaml(card_data.to_dict())}---\n{card.text}\n"


def describes_model(record: dict[str, Any]) -> bool:
    """Return whether a record has the facts about the model without which there is no card."""
    return {"class", "config", "parameters"} <= set(record.get("model") or ())


def card_code(card: str) -> str | None:
    """Return the first block of Python in a card."""
    block = re.search(r"^```python\n(.*?)^```", card, re.DOTALL | re.MULTILINE)
    return block and block[1]


def write_results_card(folder: Path) -> None:
    """
    Turn a folder with `evaluation.json` into a dataset: `results.jsonl`, one figure a line, and a card if it has none.
    """
    folder = Path(folder)
    if (evaluation := read_evaluation(folder)) is None:
        raise InputError(f"{folder / EVALUATION_FILE}: no such file")
    model = evaluation["model"]["name"]
    rows = [
        {"model": model, "task": task["task"], "data": task["data"], "metric": name, **figure}
        for task in evaluation["tasks"]
        for name, figure in task["results"].items()
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomically(folder / RESULTS_FILE, lines)
    if (folder / "README.md").exists():
        return
    card_data = DatasetCardData(
        pretty_name=f"Results of {model}",
        tags=["hf_tfm", "evaluation"],
        configs=[{"config_name": "default", "data_files": RESULTS_FILE}],
    )
    template = (
        "---\n{{ card_data }}\n---\n\n# {{ pretty_name }}\n\n"
        "Each line of `{{ file }}` is one figure.\n\n## Evaluation\n\n{{ results }}\n"
    )
    card = DatasetCard.from_template(
        card_data, template_str=template, file=RESULTS_FILE, results=results_text(evaluation)
    )
    write_atomically(folder / "README.md", str(card))


def _compact_yaml(metadata: dict[str, Any]) -> str:
    """Return YAML with a line for each field and each entry of `model-index`, so that the card's text comes soon."""
    flow = functools.partial(yaml.safe_dump, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)
    fields = {name: value for name, value in metadata.items() if name != "model-index"}
    lines = [flow({name: value})[1:-2] + "\n" for name, value in fields.items()]
    for model in metadata.get("model-index", []):
        lines.append(f"model-index:\n- {flow({'name': model['name']})[1:-2]}\n  results:\n")
        lines += [f"  - {flow(result)}" for result in model["results"]]
    return "".join(lines)


def _record_of(folder: Path) -> dict[str, Any]:
    record = read_record(folder)
    if not describes_model(record):
        raise InputError(f"{Path(folder) / RECORD_FILE}: does not describe the model, so there can be no card")
    return record


def _write_card(folder: Path, record: dict[str, Any]) -> None:
    evaluation = read_evaluation(folder)
    write_atomically(folder / "README.md", render_card(record, (folder / CURVE_FILE).exists(), evaluation))
    _write_hub_results(folder, hub_results(record, evaluation))


def _write_hub_results(folder: Path, files: dict[str, str], delete: bool = True) -> None:
    """Write files by name into `.eval_results/`, and `delete` generated ones whose figures are gone."""
    target = folder / EVAL_RESULTS
    for file in target.glob("*.yaml") if delete else ():
        if file.name not in files and file.read_text(encoding="utf-8").startswith(_GENERATED):
            file.unlink()
    for name, text in files.items():
        target.mkdir(exist_ok=True)
        write_atomically(target / name, _GENERATED + text)
