"""Report of an ablation: the figures of all runs as a table, a plot, and an entry for a log of experiments."""

import json
import re
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from ...artifacts.record import read_record
from ...core.errors import InputError
from .runner import Run


# Heading and format of each figure.
HEADINGS = {
    "bits_per_byte": ("bits per byte", "{:.3f}"),
    "loss": ("loss (nats per predicted token)", "{:.3f}"),
    "masked_loss": ("masked loss (nats)", "{:.3f}"),
    "pseudo_bits_per_byte": ("pseudo bits per byte", "{:.3f}"),
    "probe_accuracy": ("probe accuracy", "{:.3f}"),
    "parameters": ("parameters", "{:,.0f}"),
    "tokens_per_second": ("tokens/s", "{:,.0f}"),
    "bytes_per_second": ("bytes of text/s", "{:,.0f}"),
    "peak_bytes": ("memory, MB", "{:,.0f}"),
    "cache_bytes_per_token": ("cache, bytes a token", "{:,.0f}"),
    "written_tokens_per_second": ("written tokens/s", "{:,.0f}"),
}
# The head of the index of training/LOG.md.
INDEX = "| date | entry |\n|---|---|\n"
_LENGTH = "length "
Figures = dict[str, dict[int, dict[str, float]]]


def figures_of(run: Run) -> dict[str, float]:
    """Return the figures of a finished run: results, size, speed and memory."""
    record, facts = read_record(run.folder), run.facts()
    speed, peak = facts.get("tokens_per_second"), facts.get("peak_bytes")
    train = next(part for part in record["data"] if part["split"] == "train")
    figures = {**record["results"], "parameters": record["model"]["parameters"], "tokens_per_second": speed}
    if speed is not None and train.get("tokens"):
        figures["bytes_per_second"] = speed * train["bytes"] / train["tokens"]
    figures["peak_bytes"] = None if peak is None else peak / 1e6
    return {name: float(value) for name, value in figures.items() if value is not None}


def choose_metric(figures: Figures, metric: str | None) -> str:
    """Return the metric to compare cells by, `metric` if given. Raises `InputError` if a run lacks it."""
    common = set.intersection(*(set(run) for runs in figures.values() for run in runs.values()))
    metric = metric or ("bits_per_byte" if "bits_per_byte" in common else "loss")
    if metric not in common:
        choices = ", ".join(name for name in HEADINGS if name in common)
        raise InputError(f"metric {metric!r} was not measured for every run; choose of {choices}")
    return metric


def check_metric(metric: str | None) -> None:
    """Raise `InputError` if there is no such metric."""
    if metric is not None and metric not in HEADINGS:
        raise InputError(f"metric {metric!r} is unknown; choose of {', '.join(HEADINGS)}")


def mean_and_spread(values: Sequence[float], form: str) -> str:
    """Return the mean, and the standard deviation of several values."""
    mean = form.format(statistics.mean(values))
    return mean if len(values) < 2 else f"{mean} ± {form.format(statistics.stdev(values))}"


def table(figures: Figures, metric: str, several_tokenizers: bool = False) -> str:
    """Return a row per cell: the metric, its difference from the first cell seed by seed, and all other figures."""
    names = {name for runs in figures.values() for run in runs.values() for name in run}
    # Losses of different tokenizers cannot be compared.
    omitted = {metric, "loss", *(() if several_tokenizers else ("bytes_per_second",))}
    columns = [name for name in HEADINGS if name in names and name not in omitted]
    heading, form = HEADINGS[metric]
    first, has_differences = next(iter(figures)), len(figures) > 1
    head = ["", heading, *([f"against {first}"] if has_differences else []), *(HEADINGS[name][0] for name in columns)]
    lines = [head, ["---"] * len(head)]
    for cell, runs in figures.items():
        row = [cell, mean_and_spread([run[metric] for run in runs.values()], form)]
        if has_differences:
            shared = sorted(runs.keys() & figures[first].keys())
            differences = [runs[seed][metric] - figures[first][seed][metric] for seed in shared]
            text = mean_and_spread(differences, form.replace(":", ":+", 1)).replace("± +", "± ") if differences else ""
            row.append(text if cell != first and text else "–")
        for name in columns:
            values = [run[name] for run in runs.values() if name in run]
            distinct = values[:1] if len(set(values)) < 2 else values
            row.append(mean_and_spread(distinct, HEADINGS[name][1]) if values else "–")
        lines.append(row)
    return _rows(lines)


def length_table(figures: Figures) -> str:
    """Return bits per byte by context length; empty if not measured."""
    lengths = sorted(_lengths(figures))
    if not lengths:
        return ""
    lines = [["bits per byte at length", *map(str, lengths)], ["---"] * (len(lengths) + 1)]
    for cell, runs in figures.items():
        values = [[run[f"{_LENGTH}{n}"] for run in runs.values() if f"{_LENGTH}{n}" in run] for n in lengths]
        lines.append([cell, *(mean_and_spread(seeds, "{:.3f}") if seeds else "–" for seeds in values)])
    return _rows(lines)


def _rows(lines: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown; bars inside cells are escaped."""
    escaped = ([text.replace("|", "\\|") for text in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped).replace("|  |", "| |")


def _lengths(figures: Figures) -> set[int]:
    runs = (run for seeds in figures.values() for run in seeds.values())
    return {int(name.removeprefix(_LENGTH)) for run in runs for name in run if name.startswith(_LENGTH)}


def draw(figures: Figures, metric: str, runs: Sequence[Run], title: str, path: Path) -> None:
    """Plot every run and the means of the cells, beside them the curve over lengths or training steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    height = max(3.2, 0.5 + 0.35 * len(figures))
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, height), layout="constrained")
    lengths = sorted(_lengths(figures))
    for number, (cell, by_seed) in enumerate(figures.items()):
        color = f"C{number % 10}"
        values = [run[metric] for run in by_seed.values()]
        left.plot(values, [number] * len(values), "o", color=color, alpha=0.5, ms=5)
        left.plot(statistics.mean(values), number, "|", color=color, ms=18, mew=2)
        points = []
        if lengths:
            names = [(n, f"{_LENGTH}{n}") for n in lengths]
            points = [
                (n, statistics.mean(run[name] for run in by_seed.values()))
                for n, name in names
                if all(name in run for run in by_seed.values())
            ]
        else:
            points = _training_curve([run for run in runs if run.cell.name == cell and run.finished], metric)
        if points:
            right.plot(*zip(*points), "o-", color=color, ms=3, lw=1.2, label=cell)
    left.set(yticks=range(len(figures)), yticklabels=list(figures), xlabel=HEADINGS[metric][0])
    left.invert_yaxis()
    figure.suptitle(title)
    if lengths:
        trained = read_record(next(run.folder for run in runs if run.finished))["block_length"]
        right.axvline(trained, color="gray", lw=0.8, ls="--")
        right.set(xscale="log", xticks=lengths, xticklabels=lengths, xlabel="tokens read at once (dashed: trained)")
        right.minorticks_off()
        right.set(ylabel="bits per byte")
    else:
        right.set(xlabel="step", ylabel="validation")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    right.legend(fontsize="small")
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)


def _training_curve(runs: Sequence[Run], metric: str) -> list[tuple[int, float]]:
    """Return steps and means over the seeds of the evaluations during training."""
    by_step: dict[int, list[float]] = {}
    for run in runs:
        for line in read_record(run.folder)["evaluations"]:
            if (value := line.get(f"eval_{metric}", line.get("eval_loss"))) is not None:
                by_step.setdefault(line["step"], []).append(value)
    return [(step, statistics.mean(values)) for step, values in sorted(by_step.items())]


def log_entry(title: str, command: str, figures: Figures, metric: str, runs: Sequence[Run], notes: str = "") -> str:
    """Returns an entry for training/LOG.md: dated heading, four fixed lines, notes and tables. A person concludes."""
    finished = [run for run in runs if run.finished]
    record = read_record(finished[0].folder)
    texts = {part["split"]: part["name"] for part in record["data"]}
    steps = sorted({read_record(run.folder)["steps"] for run in finished})
    tokenizers = {read_record(run.folder)["data"][0].get("tokens") for run in finished}
    seeds = ", ".join(str(seed) for seed in sorted({run.seed for run in finished}))
    lines = [
        f"## {time.strftime('%Y-%m-%d')} · {title}",
        "",
        f"- **Question**: {title}?",
        f"- **Command**: `{command}` ({record['hardware']['cpu']}, threads per run: {record['hardware']['threads']})",
        f"- **Result**: {len(finished)} of {len(runs)} runs, seeds {seeds}, {' or '.join(map(str, steps))} steps of "
        f"{record['tokens_per_step']:,} tokens; trained on {texts['train']}, measured on {texts['validation']}. "
        "The figures are in the table.",
        "- **Consequence**: to be written.",
        *(["", notes.strip()] if notes.strip() else []),
        "",
        table(figures, metric, several_tokenizers=len(tokenizers) > 1),
    ]
    if by_length := length_table(figures):
        lines += ["", by_length]
    lines += ["", "± is the standard deviation over seeds; differences are paired by seed."]
    return "\n".join(lines) + "\n"


def put_into_log(entry: str, path: Path) -> None:
    """
    Insert an entry before the other entries of a log, and a row into its index if it has one. A present entry stays.

    Raises:
        InputError: The file cannot be written.
    """
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if entry in text:
            return
        start = text.find("\n## ") + 1 if "\n## " in text else 0 if text.startswith("## ") else len(text)
        head, entries = text[:start], text[start:]
        head = head.replace(INDEX, INDEX + index_row(entry.splitlines()[0].removeprefix("## ")), 1)
        head += "\n" if head and not head.endswith("\n\n") else ""
        path.write_text(head + entry + ("\n" if entries else "") + entries, encoding="utf-8")
    except OSError as error:
        raise InputError(f"--log {path}: {error.strerror}; give another file") from None


def index_row(heading: str) -> str:
    """Returns the row of a log's index for the heading "DATE · TITLE", linked as GitHub links headings."""
    date, _, title = heading.partition(" · ")
    anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
    return f"| {date} | [{title}](#{anchor}) |\n"


def write_results(output: Path, entry: str, figures: Figures, metric: str, runs: Sequence[Run], title: str) -> None:
    """Write `result.md` with the entry, `result.json` with the figures by cell and seed, and `result.png`."""
    (output / "result.md").write_text(entry, encoding="utf-8")
    (output / "result.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    draw(figures, metric, runs, title, output / "result.png")
