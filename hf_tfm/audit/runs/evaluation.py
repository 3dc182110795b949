"""The evaluations of a run: better than at the start, best at the end, worth their seconds."""

import math

import numpy as np

from ..report import Level, Report
from .folder import Run, is_number
from .loss import evaluation_losses


# Parts of names of metrics of which more is better.
_HIGHER = (
    *("accurac", "f1", "precision", "recall", "rouge", "bleu", "meteor", "matthews", "pearson", "spearman"),
    *("exact", "auc", "ndcg", "mrr", "_map", "cosine", "reward", "margin"),
)
_FEWEST_SECONDS = 60.0  # of evaluation and saving that are worth a word
_LARGEST_SHARE = 0.25


def check_progress(run: Run, report: Report) -> None:
    """Evaluations become better than the first, and the last is the best."""
    if run.is_online:
        return
    keys = evaluation_losses(run)
    if not keys:
        report.cannot_see("no evaluation loss was logged, so nothing is known about other data")
    for key in keys:
        by_step = {
            entry["step"]: entry[key]
            for entry in run.evaluations
            if is_number(entry.get(key)) and math.isfinite(entry[key])
        }
        steps, values = list(by_step), list(by_step.values())
        if len(values) < 2:
            continue
        best = int(np.argmin(values))
        if steps[0] <= 0.02 * max(run.max_steps, run.step) and best == 0:
            _report_no_progress(run, key, steps, values, report)
        elif len(values) >= 3:
            _report_overfitting(run, key, steps, values, best, report)


def _report_no_progress(run: Run, key: str, steps: list[int], values: list[float], report: Report) -> None:
    closest = min(values[1:])
    better = improved_metric(run)
    if len(set(values)) == 1:
        return  # the weights did not change, which `check_flat` reports
    level = None if closest > 1.02 * values[0] and not better else Level.NOTE
    report.add(
        "P705",
        f"{key} is {values[0]:.4g} at step {steps[0]}, and never lower later: at best {closest:.4g} in "
        f"{len(values) - 1} evaluations",
        level=level,
        why=f"{better} became better, though." if better else None,
    )


def _report_overfitting(run: Run, key: str, steps: list[int], values: list[float], best: int, report: Report) -> None:
    factor = 1.05 if len(values) >= 4 else 1.1
    if values[-1] <= factor * values[best] or steps[-1] - steps[best] < 0.3 * steps[-1]:
        return
    if len(values) - best > 2 and values[-2] <= factor * values[best]:
        return
    better = improved_metric(run, steps[best])
    handled = bool(run.state.get("best_model_checkpoint"))
    report.add(
        "P706",
        f"{key} is best at step {steps[best]} of {run.step:,}: {values[best]:.4g}, and {values[-1]:.4g} at the end",
        level=Level.NOTE if better or handled else None,
        why=f"{better} is better at the end, though." if better else None,
        mend=f"The best checkpoint is {run.state['best_model_checkpoint']}." if handled else None,
    )


def improved_metric(run: Run, since: float = -1) -> str:
    """Returns the name of a metric that is higher at the end than at or before the first evaluation since a step."""
    entries = [entry for entry in run.evaluations if entry["step"] >= since]
    for key in entries[-1]:
        if key.startswith("eval_") and any(part in key.lower() for part in _HIGHER):
            first, last = entries[0].get(key), entries[-1][key]
            if is_number(first) and is_number(last) and last > first:
                return key
    return ""


def check_seconds(run: Run, report: Report) -> None:
    """Evaluation and saving take a small part of the time of training."""
    total = run.summary.get("train_runtime")
    evaluation = seconds_of_evaluation(run)
    saving, saves = seconds_of_saving(run)
    if total is None or evaluation > total:
        if evaluation or saving:
            report.cannot_see("the seconds of the whole training are not known, so no share of evaluation and saving")
        return
    if evaluation:
        report.facts["evaluation"] = f"{evaluation:,.0f} s of {total:,.0f} s ({evaluation / total:.0%})"
    if saving:
        report.facts["saving"] = f"{saving:,.0f} s of {total:,.0f} s ({saving / total:.0%}), {saves} checkpoints"
    lost = evaluation + saving
    if lost > _LARGEST_SHARE * total and lost > _FEWEST_SECONDS:
        report.add(
            "P707",
            f"{lost:,.0f} of {total:,.0f} s ({lost / total:.0%}) went into {len(run.evaluations)} evaluations "
            f"({evaluation:,.0f} s) and {saves} checkpoints ({saving:,.0f} s)",
        )


def seconds_of_evaluation(run: Run) -> float:
    """Returns the seconds of the evaluations in the last call of `train`, whose seconds the summary counts."""
    speed = run.summary.get("train_steps_per_second") or 0
    steps = round(run.summary.get("train_runtime", 0) * speed)
    first = run.step - steps if 0 < steps < 0.98 * run.step else 0
    seconds = [
        value
        for entry in run.evaluations
        if entry["step"] > first or first == 0
        for key, value in entry.items()
        if key.startswith("eval_") and key.endswith("runtime") and is_number(value)
    ]
    return float(sum(seconds))


def seconds_of_saving(run: Run) -> tuple[float, int]:
    """
    Returns the seconds of all saving, and the number of checkpoints that were written.

    A checkpoint's own seconds lie between its first and its last file. They are known only where the folders have
    kept their times: later checkpoints have later ones.
    """
    spans = []
    for checkpoint in run.checkpoints:
        times = [path.stat().st_mtime for path in checkpoint.rglob("*") if path.is_file()]
        if times:
            spans.append((min(times), max(times)))
    if not spans or any(later[0] < earlier[1] for earlier, later in zip(spans, spans[1:])):
        return 0.0, 0
    every = run.state.get("save_steps") or 0
    saves = max(len(spans), run.step // every if every >= 1 and run.arguments.get("save_strategy") == "steps" else 0)
    return float(np.median([end - begin for begin, end in spans])) * saves, saves
