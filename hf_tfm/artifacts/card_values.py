"""Values for the template of model cards, each taken from the run record or from measured results."""

import bisect
import itertools
import json
import re
from collections.abc import Iterable
from typing import Any

from ..core.energy import CORE_WATTS, MEMORY_WATTS, estimated_watts
from ..core.errors import InputError
from ..models.configuration_tfm import TfmDecoderConfig, TfmEncoderConfig
from .family_config import native_config
from .head_table import has_own_code, head_of_record, is_adapter
from .native_families import FAMILIES
from .record import CURVE_FILE


# Switches of this package that no native family has.
_OWN_SWITCHES = {"attention_gate": "a gate on each attention head", "value_residual": "embeddings added to the values"}
_NAMES = {
    "silu": "SiLU", "gelu": "GELU", "relu": "ReLU", "rmsnorm": "RMSNorm", "layernorm": "LayerNorm", "rope": "rotary",
    "pre": "before", "post": "after",
}  # fmt: skip
_ROUNDED = {"bfloat16": "bf16", "float16": "f16"}
_SAMPLE_LINES = 8


def card_values(
    record: dict[str, Any], title: str, has_curve: bool, evaluation: dict[str, Any] | None
) -> dict[str, Any]:
    """
    Return the variables of `card_template.md`, its metadata aside.

    Args:
        record: of the run; `{"model": model_facts(model)}` if there was none.
        title: name of the model.
        has_curve: whether the plot of the loss lies beside the card.
        evaluation: measured after the run, as in `evaluation.json`.
    """
    head, config = head_of_record(record), record["model"]["config"]
    tasks = evaluation["tasks"] if evaluation else []
    overlap = {split: count for split, count in record.get("overlap_with_train", {}).items() if count}
    # llama.cpp reads every layer of these decoders with full attention.
    is_windowed = "sliding_attention" in config.get("layer_types", ())
    return {
        **{
            name: record.get(name) for name in ("model", "library", "tokens", "weights", "seconds", "license", "commit")
        },
        "title": title,
        "head": head,
        "number": number_text,
        "base_model": record.get("base_model"),
        "adapter": is_adapter(record),
        "adapter_options": _adapter_options(record),
        "is_causal": head.auto_class == "AutoModelForCausalLM",
        "generates": head.auto_class in ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM"),
        "trust": ", trust_remote_code=True" if has_own_code(record) else "",
        "chat": json.dumps(record["chat"], ensure_ascii=False) if record.get("chat") else None,
        "families": native_families(record),
        "tools": "TEI, vLLM"
        if config.get("model_type") == "tfm_encoder"
        else f"vLLM{'' if is_windowed else ', llama.cpp'}",
        "results": _headline(record, tasks),
        "distilled": _distilled(record.get("distillation")),
        "further_results": _further_results(record, tasks),
        "pictures": record.get("pictures", {}),
        "context": config.get("max_position_embeddings"),
        "trained_length": record.get("block_length") or record.get("max_length"),
        "overlap": ", ".join(f"{count:,} of {split}" for split, count in overlap.items()),
        "data": _data(record),
        "size": _size(record),
        "attention": _attention(config),
        "feed_forward": _feed_forward(config),
        "own_switches": ", ".join(text for name, text in _OWN_SWITCHES.items() if config.get(name)),
        "peft": record.get("adapter"),
        "teacher": _teacher(record.get("teacher")),
        "run": _run(record),
        "hardware": _hardware(record.get("hardware", {})),
        "energy": energy_text(record),
        "versions": ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items()),
        "ended_with_commit": record.get("ended_with_commit"),
        "commands": _commands(record, evaluation),
        "curve": CURVE_FILE if has_curve else None,
        "samples": _samples([*record.get("samples", []), *_samples_of(tasks)]),
    }


def results_text(evaluation: dict[str, Any]) -> str:
    """Return the commands, figures and samples of an evaluation as Markdown."""
    tasks = evaluation["tasks"]
    samples = [_code("text", [sample]) for sample in _samples_of(tasks)]
    return "\n\n".join([_code("bash", _evaluation_commands(evaluation)), *filter(None, [_figures(tasks)]), *samples])


def interval_text(figure: dict[str, float]) -> str:
    """Return the confidence interval of a figure in words."""
    return f"95 % interval {figure['low']:.3f} to {figure['high']:.3f}, n {figure['n']:,}"


def number_text(value: Any) -> str:
    """Return a number with separators and four significant digits; other values as they are or as JSON."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 1000:
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def energy_text(record: dict[str, Any]) -> str | None:
    """
    Return the energy of a run with its source.

    The source is the power that the record states, else a measurement, else the defaults of Green Algorithms
    (Lannelongue et al. 2021) for cores and memory, which say nothing about GPUs.
    """
    hardware, seconds = record.get("hardware", {}), record.get("seconds")
    if not seconds:
        return None
    if (watts := record.get("watts")) is not None:
        return f"{number_text(watts * seconds / 3600)} Wh, estimated from {watts:g} W as stated for this machine"
    if joules := record.get("joules"):
        parts = ", ".join(f"{name} {number_text(used)} J" for name, used in joules.items())
        watt_hours, source = number_text(sum(joules.values()) / 3600), record.get("joules_by", "RAPL counters")
        return f"{watt_hours} Wh of the whole machine: {parts}; by {source}"
    if "gpu" in hardware or "memory_gib" not in hardware:
        return None
    threads, gibibytes = hardware["threads"], hardware["memory_gib"]
    return (
        f"{number_text(estimated_watts(threads, gibibytes) * seconds / 3600)} Wh, estimated with the defaults of "
        f"Green Algorithms (Lannelongue et al.): {threads} × {CORE_WATTS:g} W for cores, "
        f"{gibibytes} × {MEMORY_WATTS} W for memory"
    )


def native_families(record: dict[str, Any]) -> dict[str, str]:
    """Return the native families that the recorded model can be exported to: titles by names of `hf-tfm export`."""
    fields, titles = record["model"]["config"], {}
    sides = {"tfm_decoder": TfmDecoderConfig, "tfm_encoder": TfmEncoderConfig}
    if (config_class := sides.get(fields.get("model_type"))) is None:
        return {}
    head = record["model"]["class"].removeprefix("TfmDecoder").removeprefix("TfmEncoder").removeprefix("For")
    config = config_class.from_dict(fields)
    for name, family in FAMILIES.items():
        if config.model_type != f"tfm_{family.side}" or head not in family.heads:
            continue
        try:
            native_config(config, family, head)
        except InputError:
            continue
        titles[name] = family.title
    return titles


def _adapter_options(record: dict[str, Any]) -> str:
    """Return keyword arguments with the settings of an adapter's head, which the base model's configuration lacks."""
    config, options = record["model"]["config"], ""
    if record["model"]["class"].endswith("Classification"):
        options += f", id2label={ {int(number): name for number, name in config['id2label'].items()} }"
        options += ", ignore_mismatched_sizes=True"  # the base's head may have another size; the adapter brings its own
    if record.get("pooling"):
        fields = (name for name in ("classifier_pooling", "use_pooler") if name in config)
        options += "".join(f", {name}={config[name]!r}" for name in fields)
    return options


def _counted(*numbers: tuple[int | None, str]) -> list[str]:
    return [f"{number:,} {unit}" for number, unit in numbers if number is not None]


def _size(record: dict[str, Any]) -> str:
    config = record["model"]["config"]
    has_labels = record["model"]["class"].endswith("Classification")
    return ", ".join(
        _counted(
            (config.get("num_hidden_layers"), "blocks"),
            (config.get("hidden_size"), "hidden units"),
            (config.get("intermediate_size"), "feed-forward units"),
            (config.get("vocab_size"), "tokens in the vocabulary"),
            (config.get("max_position_embeddings"), "tokens of context"),
            (len(config.get("id2label") or {}) if has_labels else None, "labels"),
        )
    )


def _attention(config: dict[str, Any]) -> str:
    heads, types = config.get("num_attention_heads"), config.get("layer_types") or []
    parts = _counted((heads, "query heads"), (config.get("num_key_value_heads") or heads, "key-value heads"))
    if kind := config.get("position_embedding_type"):
        parts.append(f"{_NAMES.get(kind, kind)} positions")
    if (local := types.count("sliding_attention")) and (window := config.get("sliding_window")):
        sides = " to each side" if config.get("model_type") == "tfm_encoder" else ""
        parts.append(f"a window of {window} tokens{sides} in {local} of {len(types)} blocks")
    return ", ".join(parts)


def _feed_forward(config: dict[str, Any]) -> str:
    parts = []
    if activation := config.get("hidden_act"):
        parts.append(f"{'gated ' if config.get('gated_mlp') else ''}{_NAMES.get(activation, activation)}")
    if kind := config.get("norm_type"):
        also = ", also on queries and keys" if config.get("qk_norm") else ""
        parts.append(f"{_NAMES.get(kind, kind)} {_NAMES[config['norm_position']]} each sublayer{also}")
    return ", ".join(parts)


def _teacher(teacher: dict[str, Any] | None) -> str:
    """Return the name of the model that a run learned from, and the settings of that."""
    if teacher is None:
        return ""
    settings = [f"{name.replace('_', ' ')} {number_text(value)}" for name, value in teacher.items() if name != "name"]
    return f"`{teacher['name']}` ({', '.join(settings)})"


def _run(record: dict[str, Any]) -> str:
    parts = _counted((record.get("steps"), "steps"), (record.get("tokens"), "tokens"))
    if seconds := record.get("seconds"):
        parts.append(f"{seconds / 60:.1f} minutes")
    if record.get("seed") is not None:
        parts.append(f"seed {record['seed']}")
    if "started" in record:
        parts.append(f"started {record['started']}")
    return ", ".join(parts)


def _hardware(hardware: dict[str, Any]) -> str:
    parts = [hardware["cpu"]] if "cpu" in hardware else []
    parts += _counted((hardware.get("cpu_cores"), "cores"), (hardware.get("memory_gib"), "GiB of memory"))
    if "threads" in hardware:
        parts.append(f"number of threads: {hardware['threads']}")
    if "gpu" in hardware:
        parts.append(f"{hardware['gpus']} × {hardware['gpu']}")
    return ", ".join(parts)


def _data(record: dict[str, Any]) -> str:
    columns = ("name", "split", "documents", "records", "bytes", "tokens", "license", "sha256")
    sources = record.get("data", [])
    present = [column for column in columns if any(column in source for source in sources)]
    cut = {"sha256": 12}
    rows = [[number_text(source.get(column, ""))[: cut.get(column)] for column in present] for source in sources]
    return _table([{"license": "licence"}.get(column, column) for column in present], rows)


def _has_intervals(record: dict[str, Any]) -> bool:
    results = (record.get("results") or {}).values()
    return bool(results) and all(isinstance(figure, dict) and "low" in figure for figure in results)


def _headline(record: dict[str, Any], tasks: list[dict[str, Any]]) -> dict[str, str] | None:
    """
    Return caption and table of the most important figures.

    They are those of the run if it estimated intervals, else those measured after it, else those of the run.
    """
    if _has_intervals(record):
        return _comparison(record)
    if table := _figures(tasks, with_groups=False):
        return {"caption": "In brackets: 95 % confidence intervals.", "table": table}
    if results := record.get("results"):
        rows = [(name, number_text(value)) for name, value in results.items()]
        return {"caption": f"{_measured_on(record)}.", "table": _table(("metric", "value"), rows)}
    return None


def _distilled(facts: dict[str, Any] | None) -> str:
    """Return a sentence that compares a student with its teacher; empty for other models."""
    if facts is None:
        return ""
    return (
        f"Distilled from `{facts['teacher']}`: {facts['share']:.1%} of its {facts['metric']}, {facts['speed']:.2f} "
        "times as fast."
    )


def _measured_on(record: dict[str, Any]) -> str:
    return f"Measured on the {record.get('measured_on', 'validation')} set at the end of the run"


def _comparison(record: dict[str, Any]) -> dict[str, str]:
    """Return the results of a run beside those of its baselines."""
    results = record["results"]
    columns = {"this model": results, **record.get("baselines", {})}
    counts = {figure["n"] for figures in columns.values() for figure in figures.values()}
    with_counts = len(counts) > 1

    def cell(figure: dict[str, float] | None) -> str:
        return "" if figure is None else _estimate(figure) + (f", n {figure['n']:,}" if with_counts else "")

    rows = [[metric, *(cell(figures.get(metric)) for figures in columns.values())] for metric in results]
    count = "" if with_counts else f"{next(iter(counts)):,} "
    caption = f"On {count}{record.get('measured_on', 'test')} records; in brackets: 95 % confidence intervals."
    if record.get("measured_on") == "validation" and "best" in record:
        caption += " The best checkpoint was chosen on these records, so the figures are optimistic."
    return {"caption": caption, "table": _table(("metric", *columns), rows)}


def _is_of_group(name: str) -> bool:
    """Return whether a figure is that of a group of records: `bits_per_byte, fairy_tales`."""
    return ", " in name


def _figures(tasks: list[dict[str, Any]], with_groups: bool = True) -> str:
    """Return a table of everything measured after the run; empty if there is nothing."""
    rows = [
        (task["task"], task["data"], name, _estimate(figure), f"{figure['n']:,}")
        for task in tasks
        for name, figure in task["results"].items()
        if with_groups or not _is_of_group(name)
    ]
    return _table(("task", "data", "metric", "value", "records"), rows)


def _further_results(record: dict[str, Any], tasks: list[dict[str, Any]]) -> list[str]:
    """Return a line for each task with its figures that are not in the headline table."""
    lines = []
    if tasks and record.get("results") and not _has_intervals(record):
        results = ", ".join(f"{name} {number_text(value)}" for name, value in record["results"].items())
        lines.append(f"{_measured_on(record)}: {results}")
    for task in tasks:
        figures = [
            f"{name} {_estimate(figure)}, n {figure['n']:,}"
            for name, figure in task["results"].items()
            if _has_intervals(record) or _is_of_group(name)
        ]
        if figures:
            lines.append(f"Measured on {task['data']} ({task['task']}): {'; '.join(figures)}")
    return lines


def _estimate(figure: dict[str, float]) -> str:
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def _samples_of(tasks: list[dict[str, Any]]) -> list[str]:
    return [sample for task in tasks for sample in task.get("samples", [])]


def _samples(samples: list[str]) -> dict[str, Any] | None:
    """Return the first samples without empty lines, and how many of them fit."""
    if not samples:
        return None
    shortened = [re.sub("\n\n+", "\n", sample) for sample in samples]
    ends = list(itertools.accumulate(sample.count("\n") + 1 for sample in shortened))
    shown = max(1, bisect.bisect_right(ends, _SAMPLE_LINES))
    text = "\n".join(_code("text", [sample]) for sample in shortened[:shown])
    return {"text": text, "counts": (shown, len(samples)) if shown < len(samples) else None}


def _evaluation_commands(evaluation: dict[str, Any]) -> list[str]:
    """Return each command once: the figures of several runs may stand together."""
    return list(dict.fromkeys(task.get("command", evaluation["command"]) for task in evaluation["tasks"]))


def _commands(record: dict[str, Any], evaluation: dict[str, Any] | None) -> str:
    """Return the commands that trained and measured the model."""
    lines, commit = [], record.get("commit") or ""
    if command := record.get("command"):
        versions, weights = record.get("versions", {}), record.get("weights", "").partition(",")[0]
        if commit:
            changed = " with uncommitted changes" if commit.endswith("+changes") else ""
            lines.append(f"git checkout {commit.removesuffix('+changes')}  # in hf_tfm's source{changed}")
        pins = [f"{name}=={versions[name].partition('+')[0]}" for name in ("torch", "transformers") if name in versions]
        lines += [f"pip install -e . {' '.join(pins)}".strip(), command]
        if record.get("adapter", {}).get("merged"):
            lines.append("hf-tfm merge ADAPTER MERGED")
        if weights in _ROUNDED:
            lines.append(f"hf-tfm export MODEL ROUNDED --to {_ROUNDED[weights]}")
    lines += _evaluation_commands(evaluation) if evaluation else []
    return _code("bash", lines) if lines else ""


def _code(language: str, lines: Iterable[str]) -> str:
    """Return a fenced block whose fence is longer than any run of backticks in it."""
    text = "\n".join(lines)
    fence = max(["```", *(run + "`" for run in re.findall("`{3,}", text))], key=len)
    return f"{fence}{language}\n{text}\n{fence}"


def _table(header: Iterable[str], rows: list[Any]) -> str:
    """Return a Markdown table; empty without rows."""
    if not rows:
        return ""
    header = list(header)
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    lines += [f"| {' | '.join(str(cell).replace('|', '&#124;') for cell in row)} |" for row in rows]
    return "\n".join(lines)
