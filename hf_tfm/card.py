"""Model cards: every figure is read from the run record; what has no source is left out."""

import json
from pathlib import Path
from typing import Any

from .record import CURVE_FILE, read_record


EVALUATION_FILE = "evaluation.json"

# What a card calls the model's use: Auto class, pipeline tag.
_TASKS = {
    "ForCausalLM": ("AutoModelForCausalLM", "text-generation"),
    "ForMaskedLM": ("AutoModelForMaskedLM", "fill-mask"),
    "ForPreTraining": ("AutoModelForPreTraining", "fill-mask"),
    "ForNextSentencePrediction": ("AutoModelForNextSentencePrediction", None),
    "ForSequenceClassification": ("AutoModelForSequenceClassification", "text-classification"),
    "ForTokenClassification": ("AutoModelForTokenClassification", "token-classification"),
    "ForQuestionAnswering": ("AutoModelForQuestionAnswering", "question-answering"),
    "EncoderDecoderModel": ("AutoModelForSeq2SeqLM", "translation"),
    "ForMultipleChoice": ("AutoModelForMultipleChoice", "multiple-choice"),
}


def task_of(model_class: str) -> tuple[str, str | None]:
    """Auto class and pipeline tag of a model class by its name; the base model's where it has no head."""
    for suffix, task in _TASKS.items():
        if model_class.endswith(suffix):
            return task
    return "AutoModel", "feature-extraction"


def is_adapter(record: dict[str, Any]) -> bool:
    """Whether the folder holds an adapter rather than a whole model."""
    return "adapter" in record and not record["adapter"].get("merged")


def opening(record: dict[str, Any], folder: Path | str) -> str:
    """The call that opens a whole model's folder."""
    trust = ", trust_remote_code=True" if _has_own_code(record) else ""
    if record.get("library") == "sentence-transformers":
        return f'SentenceTransformer("{folder}"{trust})'
    return f'{task_of(record["model"]["class"])[0]}.from_pretrained("{folder}"{trust})'


def write_card(folder: Path) -> None:
    """Write `README.md` beside the run record of a model folder, from it and from `evaluation.json` if there is one."""
    folder = Path(folder)
    record = read_record(folder)
    measured = folder / EVALUATION_FILE
    evaluation = json.loads(measured.read_text(encoding="utf-8")) if measured.is_file() else None
    card = render_card(record, (folder / CURVE_FILE).exists(), evaluation)
    (folder / "README.md").write_text(card, encoding="utf-8")


def render_card(record: dict[str, Any], has_curve: bool = False, evaluation: dict[str, Any] | None = None) -> str:
    """The card's text, metadata in front, from a run record and what was measured afterwards."""
    from huggingface_hub import ModelCard, ModelCardData

    pipeline_tag = task_of(record["model"]["class"])[1]
    adapter = is_adapter(record)
    library = record.get("library", "transformers")
    metadata = ModelCardData(
        library_name="peft" if adapter else library,
        pipeline_tag="sentence-similarity" if library == "sentence-transformers" else pipeline_tag,
        license=record.get("license"),
        language=record.get("language"),
        base_model=record.get("base_model"),
        base_model_relation=("adapter" if adapter else "finetune") if record.get("base_model") else None,
        tags=["hf_tfm", *(["custom_code"] if _has_own_code(record) else []), *(["lora"] if adapter else [])],
    )
    name = record.get("name", record["model"]["class"])
    sections = [f"---\n{metadata.to_yaml()}\n---\n\n# {name}\n\n{_summary(record)}", _loading(record)]
    measured = _evaluation(evaluation) if evaluation else ""
    sections += [part for part in (_data(record), _results(record), measured, _training(record, has_curve)) if part]
    if record.get("samples"):
        quoted = "\n\n".join(f"```text\n{sample}\n```" for sample in record["samples"])
        sections.append(f"## Samples\n\nChosen by nobody, with the settings in the record:\n\n{quoted}")
    return str(ModelCard("\n\n".join(sections) + "\n"))


def _summary(record: dict[str, Any]) -> str:
    model = record["model"]
    config = model["config"]
    heads, key_value_heads = config.get("num_attention_heads"), config.get("num_key_value_heads")
    adapter = record.get("adapter", {})
    rows = {
        "class": model["class"],
        "parameters": f"{model['parameters']:,}",
        "of these outside the embedding": f"{model['parameters_without_embedding']:,}",
        "blocks": config.get("num_hidden_layers"),
        "width": config.get("hidden_size"),
        "heads (query / key-value)": f"{heads} / {key_value_heads or heads}" if heads else None,
        "feed-forward width": config.get("intermediate_size"),
        "vocabulary": config.get("vocab_size"),
        "longest sequence": config.get("max_position_embeddings"),
        "adapter": f"{adapter['type']} of rank {adapter['rank']}, alpha {adapter['alpha']}"
        f"{', merged' if adapter.get('merged') else ''}"
        if adapter
        else None,
        "adapter's weights, with the head's": f"{adapter['parameters']:,} ({adapter['share']:.2%})"
        if adapter
        else None,
    }
    return _table(("", ""), [(name, value) for name, value in rows.items() if value is not None])


def _has_own_code(record: dict[str, Any]) -> bool:
    return bool(record["model"]["config"].get("auto_map"))


def _loading(record: dict[str, Any]) -> str:
    auto_class, custom_code = task_of(record["model"]["class"])[0], _has_own_code(record)
    trust = ", trust_remote_code=True" if custom_code else ""
    if record.get("library") == "sentence-transformers":
        code = [
            "from sentence_transformers import SentenceTransformer",
            "",
            'path = "."  # this folder, or its name on the Hub',
            f"embedder = SentenceTransformer(path{trust})",
            'embeddings = embedder.encode(["A cat sat on the mat.", "A cat was sitting there."])',
            "print(embedder.similarity(embeddings, embeddings))",
        ]
        return _python(code, custom_code)
    lines = [
        f"from transformers import AutoTokenizer, {auto_class}",
        "",
        'path = "."  # this folder, or its name on the Hub',
        "tokenizer = AutoTokenizer.from_pretrained(path)",
    ]
    if is_adapter(record):
        # What the base model's configuration knows nothing of.
        own = ", pad_token_id=tokenizer.pad_token_id"
        if record["model"]["class"].endswith("Classification"):
            labels = {int(number): name for number, name in record["model"]["config"]["id2label"].items()}
            own += f", id2label={labels}"
        lines.insert(0, "from peft import PeftConfig, PeftModel")
        lines.append("base = PeftConfig.from_pretrained(path).base_model_name_or_path  # or where you have it")
        lines.append(f"model = {auto_class}.from_pretrained(base{own}{trust})")
        lines.append("model = PeftModel.from_pretrained(model, path)")
        if auto_class == "AutoModelForCausalLM":
            lines[1] = lines[1].replace("import ", "import GenerationConfig, ")
            lines.append("model.generation_config = GenerationConfig.from_pretrained(path)")
    else:
        lines.append(f"model = {auto_class}.from_pretrained(path{trust})")
    if record.get("chat"):
        lines += [
            "",
            f'chat = [{{"role": "user", "content": {record["chat"]!r}}}]',
            "inputs = tokenizer.apply_chat_template("
            'chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")',
            "output = model.generate(**inputs, max_new_tokens=128, do_sample=False)",
            'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
        ]
    return _python(lines, custom_code)


def _python(lines: list[str], custom_code: bool) -> str:
    text = "## How to load it\n\n```python\n" + "\n".join(lines) + "\n```"
    return text + "\n\nWith `import hf_tfm` in front, `trust_remote_code` is not needed." if custom_code else text


def _data(record: dict[str, Any]) -> str:
    if not record.get("data"):
        return ""
    columns = ("name", "split", "documents", "records", "bytes", "tokens", "license", "sha256")
    used = [column for column in columns if any(column in source for source in record["data"])]
    rows = [[_figure(source.get(column, "")) for column in used] for source in record["data"]]
    return "## Data\n\n" + _table(used, rows)


def _results(record: dict[str, Any]) -> str:
    """A table of figures; those with an interval stand beside the baselines' and say on how many records."""
    results = record.get("results")
    if not results:
        return ""
    if not all(isinstance(value, dict) and "low" in value for value in results.values()):
        return "## Results\n\n" + _table(("", ""), [(name, _figure(value)) for name, value in results.items()])
    columns = {"this model": results, **record.get("baselines", {})}
    rows = [
        [metric, *(_estimate(figures[metric]) if metric in figures else "" for figures in columns.values())]
        for metric in results
    ]
    n = next(iter(results.values()))["n"]
    text = f"## Results\n\nOn {n:,} {record.get('measured_on', 'test')} records, with 95 % intervals."
    if record.get("measured_on") == "validation":
        text += " The best checkpoint was chosen on these records, so the figures are somewhat too good."
    pictures = [f"![{caption}]({name})" for name, caption in record.get("pictures", {}).items()]
    return "\n\n".join([text, _table(("", *columns), rows), *pictures])


def _evaluation(evaluation: dict[str, Any]) -> str:
    rows = [
        (task["task"], task["data"], name, _estimate(figure), f"{figure['n']:,}")
        for task in evaluation["tasks"]
        for name, figure in task["results"].items()
    ]
    table = _table(("task", "data", "figure", "with its 95 % interval", "records"), rows)
    samples = [sample for task in evaluation["tasks"] for sample in task.get("samples", [])]
    quoted = "".join(f"\n\n```text\n{sample}\n```" for sample in samples)
    return f"## Evaluation\n\n```bash\n{evaluation['command']}\n```\n\n{table}{quoted}"


def _estimate(figure: dict[str, float]) -> str:
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def _training(record: dict[str, Any], has_curve: bool) -> str:
    facts = {
        "steps": record.get("steps"),
        "tokens": record.get("tokens"),
        "seconds": record.get("seconds"),
        "seed": record.get("seed"),
        "started": record.get("started"),
        "commit": record.get("commit"),
        **{name: value for name, value in record["hardware"].items()},
        **{f"{name} version": value for name, value in record["versions"].items()},
    }
    table = _table(("", ""), [(name, _figure(value)) for name, value in facts.items() if value is not None])
    curve = f"\n\n![loss over steps]({CURVE_FILE})" if has_curve else ""
    return f"## Training\n\n```bash\n{record['command']}\n```\n\n{table}{curve}"


def _figure(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10_000:
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _table(header: tuple | list, rows: list) -> str:
    lines = [f"| {' | '.join(str(h) for h in header)} |", f"|{'---|' * len(header)}"]
    lines += [f"| {' | '.join(str(cell).replace('|', '&#124;') for cell in row)} |" for row in rows]
    return "\n".join(lines)
