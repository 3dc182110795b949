"""
The preflight of a finished or stopped run, read from what its Trainer wrote. It needs no torch.

    from hf_tfm import preflight_run

    preflight_run("runs/decoder")             # the folder of a run, or one of its checkpoints
"""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from rich.text import Text

from ..report import Report
from . import checkpoint, evaluation, loss, schedule
from .folder import Run, open_run


CHECKS: tuple[Callable[[Run, Report], None], ...] = (
    loss.check_finite,
    loss.check_divergence,
    loss.check_zero_gradients,
    loss.check_flat,
    loss.check_almost_zero,
    loss.check_clipping,
    schedule.check_rates,
    schedule.check_end,
    schedule.check_epochs,
    evaluation.check_progress,
    evaluation.check_seconds,
    checkpoint.check_checkpoints,
)
_BARS = "▁▂▃▄▅▆▇█"
_PICTURE_WIDTH = 60


def preflight_run(folder: str | Path, *, ignore: Iterable[str] = ()) -> Report:
    """
    Look for faults of a run in its `trainer_state.json` and its last checkpoint.

    Args:
        folder: Folder of a run of any Trainer, or one of its checkpoints.
        ignore: Codes of findings to leave out.

    Raises:
        InputError: The folder is not one of a run, or a code is unknown.
    """
    start = time.perf_counter()
    report = Report(frozenset(ignore))
    run = open_run(folder)
    describe(run, report)
    for check in CHECKS:
        report.run(check.__name__, check, run, report)
    report.facts["seconds"] = time.perf_counter() - start
    return report


def describe(run: Run, report: Report) -> None:
    """Write what the run was into the report: steps, epochs, tokens, seconds, and a picture of its loss."""
    state, summary, facts = run.state, run.summary, report.facts
    facts["state"] = str(run.state_folder)
    facts["steps"] = f"{run.step:,}" + (f" of {run.max_steps:,}" if run.max_steps else "")
    if state.get("epoch"):
        facts["epochs"] = round(float(state["epoch"]), 2)
    if state.get("train_batch_size"):
        facts["rows in a batch"] = state["train_batch_size"]
        accumulation = run.arguments.get("gradient_accumulation_steps") or 1
        if accumulation > 1:
            facts["rows in a batch"] = f"{state['train_batch_size']} × {accumulation} accumulated"
    tokens = state.get("num_input_tokens_seen") or (run.training[-1].get("num_tokens") if run.training else None)
    if tokens:
        facts["tokens seen"] = f"{int(tokens):,}"
    if summary:
        facts["training"] = f"{summary['train_runtime']:,.0f} s"
        if summary.get("train_steps_per_second"):
            facts["seconds per step"] = f"{1 / summary['train_steps_per_second']:.3g}"
    for name, values in (("loss", run.series("loss")[1]), ("learning rate", run.series("learning_rate", "lr")[1])):
        values = values[np.isfinite(values)]
        if len(values):
            facts[name] = f"{values[0]:.4g} → {values[-1]:.4g} (lowest {values.min():.4g}, highest {values.max():.4g})"
    if run.evaluations:
        facts["evaluations"] = len(run.evaluations)
    if picture := draw(run.series("loss")[1]):
        report.pictures.append(Text(f"loss {picture}"))
    if not run.training:
        report.cannot_see("no training loss was logged, so nothing is known about the course of the run")
    if not run.arguments:
        report.cannot_see("there is no readable training_args.bin, so the log is not compared with the settings")


def draw(values: np.ndarray) -> str:
    """Returns a curve of at most 60 bars; `!` stands for values that are not finite."""
    if len(values) < 2:
        return ""
    parts = np.array_split(values, min(_PICTURE_WIDTH, len(values)))
    levels = [float(np.median(part)) for part in parts]
    finite = [level for level in levels if np.isfinite(level)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((level - low) * scale)] if np.isfinite(level) else "!" for level in levels)
