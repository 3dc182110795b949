"""The schedule of a run: its learning rates, its end, its epochs."""

import math

import numpy as np

from ..report import Level, Report
from .folder import Run, is_number
from .loss import FEWEST_LOSSES, finite_losses, noise_of


_RESTARTING = ("cosine_with_restarts", "greedy")
_ENDLESS = 10**6  # epochs of a dataset without a length, which a Trainer counts in another way
_ENDINGS = (".safetensors", ".bin")
_FIT = 0.005  # of the peak; schedules are formulas, so that the right one fits closely


def check_rates(run: Run, report: Report) -> None:
    """The learning rate rises once, falls once, and ends with the run."""
    steps, rates = run.series("learning_rate", "lr")
    if len(rates) < 3:
        if run.training:
            report.cannot_see(f"{len(rates)} logged learning rates are too few to tell the schedule")
        return
    peak = float(rates.max())
    if peak <= 0:
        report.add("P703", f"the learning rate is 0 in all {len(rates)} logged steps", why="Nothing was learned.")
        return
    restarts = find_restarts(rates)
    if restarts:
        _report_restarts(run, steps, rates, restarts, report)
        return
    nonzero = int(np.flatnonzero(rates > 0)[-1])
    if len(rates) - nonzero - 1 >= 3 and run.step - steps[nonzero + 1] > 0.05 * run.step:
        report.add(
            "P703",
            f"the learning rate is 0 from step {steps[nonzero + 1]:.0f} of {run.step:,} on",
            why="Nothing was learned from there on: the schedule was made for fewer steps.",
        )
        return
    if run.max_steps and run.step >= 0.95 * run.max_steps:
        _check_finished_rates(run, steps, rates, report)
    elif run.max_steps and run.step >= 0.3 * run.max_steps and run.arguments.get("lr_scheduler_type") == "linear":
        end = fit_linear(steps, rates)
        if end and is_other_end(end, run):
            _report_other_end(run, end, "linearly", rates, report)


def find_restarts(rates: np.ndarray) -> list[int]:
    """Returns the places where the rate has fallen and rises again by a tenth of its peak."""
    peak, restarts = float(rates.max()), []
    high, low, lowest_at = rates[0], math.inf, 0
    for place, rate in enumerate(rates):
        if rate < low and rate < 0.95 * high:
            low, lowest_at = rate, place
        elif rate > low + 0.1 * peak:
            restarts.append(lowest_at + 1)
            high, low = rate, math.inf
        high = max(high, rate)
    return restarts


def _report_restarts(run: Run, steps: np.ndarray, rates: np.ndarray, restarts: list[int], report: Report) -> None:
    if run.arguments.get("lr_scheduler_type") in _RESTARTING:
        return
    first = restarts[0]
    low, peak, later = float(rates[first - 1]), float(rates.max()), float(rates[first:].max())
    what = f"the learning rate rises again, from {low:.3g} to {later:.3g}" + (
        f", {len(restarts)} times" if len(restarts) > 1 else ""
    )
    where = f"step {steps[first]:.0f}"
    gaps = np.diff([steps[place] for place in restarts])
    if len(restarts) > 1 and np.ptp(gaps) <= 0.1 * gaps.mean():
        report.add("P703", what, where, level=Level.NOTE, why="The restarts are regular, so they may be meant.")
    elif later < 0.9 * peak or low < 0.02 * peak:
        report.add(
            "P703",
            what,
            where,
            level=Level.WARNING,
            why="The run was resumed with another number of steps, or the schedule restarts on purpose.",
        )
    else:
        report.add(
            "P703", what, where, why="The schedule began anew: the run was resumed without the scheduler's state."
        )


def _check_finished_rates(run: Run, steps: np.ndarray, rates: np.ndarray, report: Report) -> None:
    peak, last = float(rates.max()), float(rates[-1])
    rising = np.diff(rates)
    if (rising >= 0).all() and rates[0] < 0.9 * peak and last == peak and rising[len(rising) // 2 :].any():
        report.add(
            "P703",
            f"the learning rate rises to the end of the run, from {rates[0]:.3g} to {last:.3g}",
            why="The warm-up was as long as the run.",
            mend="Lower warmup_steps.",
        )
        return
    # A log every few hundred steps ends before the run does, so the rate at the end is computed.
    if not 0.2 * peak < last < 0.98 * peak:
        return
    if end := fit_linear(steps, rates):
        if is_other_end(end, run) and run.arguments.get("lr_scheduler_type") != "polynomial":
            _report_other_end(run, end, "linearly", rates, report)
    elif (end := fit_cosine(steps, rates)) and is_other_end(end, run):
        _report_other_end(run, end, "as a cosine", rates, report)


def fit_linear(steps: np.ndarray, rates: np.ndarray) -> float | None:
    """Returns the step at which a rate that falls linearly comes to 0; None if it does not fall linearly."""
    start = int(len(rates) - 1 - np.argmax(rates[::-1]))
    falling_steps, falling = steps[start:], rates[start:]
    falling_steps, falling = falling_steps[falling > 0], falling[falling > 0]
    if len(falling) < 4:
        return None
    slope, level = np.polyfit(falling_steps, falling, 1)
    if slope >= 0 or np.abs(slope * falling_steps + level - falling).max() > _FIT * falling.max():
        return None
    return float(-level / slope)


def fit_cosine(steps: np.ndarray, rates: np.ndarray) -> float | None:
    """Returns the step at which a rate that falls as half a cosine comes to 0; None if it falls otherwise."""
    start = int(len(rates) - 1 - np.argmax(rates[::-1]))
    begin, falling_steps, falling = steps[start], steps[start:], rates[start:]
    if len(falling) < 4:
        return None
    for end in np.geomspace(steps[-1], 10 * steps[-1], 500):
        shape = 0.5 * (1 + np.cos(np.pi * (falling_steps - begin) / (end - begin)))
        height = float(shape @ falling / (shape @ shape))
        if np.abs(height * shape - falling).max() < _FIT * falling.max():
            return float(end)
    return None


def is_other_end(end: float, run: Run) -> bool:
    """Whether a step is not the planned last one; versions differ in whether they log the rate before its step."""
    return abs(end - run.max_steps) > max(2.5, 0.05 * run.max_steps)


def _report_other_end(run: Run, end: float, how: str, rates: np.ndarray, report: Report) -> None:
    known = run.arguments.get("lr_scheduler_type") in ("linear", "cosine")
    report.add(
        "P703",
        f"the learning rate falls {how} to 0 at step {end:,.0f}, and the run has {run.max_steps:,} steps; "
        f"its last value is {rates[-1] / rates.max():.0%} of the highest",
        level=None if known else Level.WARNING,
        why="The schedule was made for another number of steps (batches instead of updates, or other epochs).",
    )


def check_end(run: Run, report: Report) -> None:
    """The run came to its last step."""
    if not run.max_steps:
        report.cannot_see("the state does not say how many steps were planned")
        return
    if run.step >= run.max_steps:
        return
    callbacks = run.state.get("stateful_callbacks") or {}
    what = f"the run stands at step {run.step:,} of {run.max_steps:,}"
    if any("EarlyStop" in name for name in callbacks):
        report.add(
            "P708", what, level=Level.NOTE, why="It has a callback that stops it early.", mend="Nothing if it did."
        )
    elif run.summary and stopped_without_gain(run):
        report.add(
            "P708",
            what,
            level=Level.NOTE,
            why="The best evaluation is earlier, so it was stopped for want of gain.",
            mend="Nothing if that was meant.",
        )
    elif not run.summary and holds_weights(run):
        report.add(
            "P708",
            f"the last saved state stands at step {run.step:,} of {run.max_steps:,}, and a model is saved beside it",
            level=Level.NOTE,
            why="The run may have gone on without saving its state: trainer.save_state() does that.",
            mend="Nothing if it came to its end.",
        )
    elif run.state_folder == run.folder and later_checkpoints(run):
        report.add("P708", what, level=Level.NOTE, why="There are later checkpoints.", mend="Name the run's folder.")
    else:
        stopped = "training ended there" if run.summary else "it was stopped, or still runs"
        report.add("P708", f"{what}: {stopped}")


def stopped_without_gain(run: Run) -> bool:
    """Whether the best evaluation, by the metric that the run watches, is not the last one."""
    best = run.state.get("best_metric")
    name = run.arguments.get("metric_for_best_model") or "loss"
    name = name if name.startswith("eval_") else f"eval_{name}"
    values = [entry[name] for entry in run.evaluations if name in entry]
    return best is not None and len(values) >= 2 and best in values[:-1]


def holds_weights(run: Run) -> bool:
    """Whether the run's folder, above its checkpoints, holds a saved model or adapter."""
    if run.state_folder not in run.checkpoints:
        return False
    home = run.state_folder.parent
    return any(
        any(home.glob(f"{name}*{end}")) for name in ("model", "adapter_model", "pytorch_model") for end in _ENDINGS
    )


def later_checkpoints(run: Run) -> bool:
    """Whether checkpoints of later steps stand beside the one that was given."""
    names = [path.name.partition("-")[2] for path in run.state_folder.parent.glob("checkpoint-*")]
    return any(name.isdigit() and int(name) > run.step for name in names)


def check_epochs(run: Run, report: Report) -> None:
    """An epoch has as many steps at the end as at the beginning; the loss does not fall where one begins."""
    entries = [entry for entry in run.history if is_number(entry.get("epoch")) and entry["epoch"] > 0.05]
    if not entries or run.state.get("num_train_epochs", 0) >= _ENDLESS:
        return
    sizes = np.array([entry["step"] / entry["epoch"] for entry in entries])
    # Older versions round epochs to two digits; the last update of an epoch may have fewer batches.
    slack = 1 + 0.02 * sizes + sizes * 0.006 / np.array([entry["epoch"] for entry in entries])
    other = np.flatnonzero(np.abs(sizes - sizes[0]) > slack + slack[0])
    if len(other):
        first = int(other[0])
        report.add(
            "P711",
            f"an epoch has {sizes[0]:.0f} steps at the beginning, and {sizes[-1]:.0f} at the end",
            f"since step {entries[first]['step']}",
            why="The run was resumed with other data, batch size, accumulation or processes, so records were left "
            "out or seen twice.",
        )
        return
    _note_jumps(run, float(np.median(sizes)), report)


def _note_jumps(run: Run, steps_per_epoch: float, report: Report) -> None:
    steps, losses = finite_losses(run)
    if run.is_online or len(losses) < 3 * FEWEST_LOSSES or steps[-1] < 2 * steps_per_epoch:
        return
    width = 4
    jumps = []
    for border in np.arange(steps_per_epoch, steps[-1], steps_per_epoch):
        place = int(np.searchsorted(steps, border, side="right"))
        if place < 2 * width or place + width > len(losses):
            continue
        earlier, last, after = (losses[place - width * k : place - width * (k - 1)] for k in (2, 1, 0))
        drop = float(np.median(last) - np.median(after))
        if drop > max(0.1 * abs(np.median(last)), 2 * noise_of(losses), 3 * abs(np.median(earlier) - np.median(last))):
            jumps.append((border, drop))
    if jumps:
        report.add(
            "P715",
            f"the loss falls by {jumps[0][1]:.3g} where an epoch begins, {len(jumps)} times",
            f"step {jumps[0][0]:.0f}",
        )
