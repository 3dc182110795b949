"""The training loss and the gradients of a run: finite, falling, neither flat nor diverged."""

import math

import numpy as np

from ..report import Level, Report
from .folder import Run


FEWEST_LOSSES = 8  # to tell a trend from noise
FEWEST_STEPS = 100  # after which a model that learns has left chance level
_PAIR_LOSS = math.log(2)


def running_median(values: np.ndarray, width: int) -> np.ndarray:
    """Returns the medians of all windows of `width` values; shape (values − width + 1,)."""
    return np.median(np.lib.stride_tricks.sliding_window_view(values, width), axis=1)


def noise_of(values: np.ndarray) -> float:
    """Returns the standard deviation of values around their trend, estimated from differences of neighbours."""
    steps = np.diff(values)
    if len(steps) < 2:
        return 0.0
    robust = 1.4826 * float(np.median(np.abs(steps - np.median(steps)))) / math.sqrt(2)
    return max(robust, float(np.std(steps)) / math.sqrt(2) / 2)


def finite_losses(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Returns steps and training losses; without those that are not finite, or 0 where such a loss was filtered."""
    steps, losses = run.series("loss")
    chosen = np.isfinite(losses) & (losses != 0)
    return steps[chosen], losses[chosen]


def check_finite(run: Run, report: Report) -> None:
    """
    Losses and gradients are finite.

    `logging_nan_inf_filter`, which is on by default, replaces losses that are not finite: the log then shows exactly
    0.0 (AnswerDotAI/ModernBERT#233). In fp16 single gradients that are not finite are usual, because the loss scale
    is found by trying.
    """
    entries = run.training
    if entries:
        losses = np.array([entry["loss"] for entry in entries], float)
        gradients = np.array([entry["grad_norm"] if "grad_norm" in entry else math.nan for entry in entries], float)
        logged = np.array(["grad_norm" in entry for entry in entries])
        bad_gradient = logged & ~np.isfinite(gradients)
        filtered = (losses == 0) & (bad_gradient | ~logged & (running_before(losses) > 0.05))
        bad_loss = ~np.isfinite(losses) | filtered
        if bad_loss.any():
            first = int(np.argmax(bad_loss))
            kind = (
                "0.0 with a gradient that is not finite"
                if filtered[first] and logged[first]
                else (
                    "exactly 0.0 after positive losses, as the filter of losses that are not finite writes"
                    if filtered[first]
                    else "not finite"
                )
            )
            report.add(
                "P702",
                f"{int(bad_loss.sum())} of {len(losses)} logged losses are {kind}"
                + ("" if bad_loss[-1] else "; later ones are finite again"),
                f"first at step {entries[first]['step']}",
                level=None if bad_loss[-1] else Level.WARNING,
                why=None if bad_loss[-1] else "Steps were lost, or the run was started again from finite weights.",
            )
        elif bad_gradient.any():
            _report_gradients(entries, losses, bad_gradient, report)
    elif not math.isfinite(run.summary.get("train_loss", 0.0)):
        report.add("P702", f"the mean training loss is {run.summary['train_loss']}")
    for key in evaluation_losses(run):
        values = [(entry["step"], entry[key]) for entry in run.evaluations if key in entry]
        if values and isinstance(values[-1][1], float) and not math.isfinite(values[-1][1]):
            report.add(
                "P702",
                f"the last {key} is {values[-1][1]}",
                f"step {values[-1][0]}",
                level=Level.WARNING,
                why="The training loss is finite, so the evaluation has rows without a label, or overflows.",
                mend="See that each row of the evaluation has a trained token, and its dtype.",
            )


def running_before(losses: np.ndarray) -> np.ndarray:
    """Returns, for each loss, the last positive loss before it; 0 if there is none."""
    previous, last = np.zeros(len(losses)), 0.0
    for place, loss in enumerate(losses):
        previous[place] = last
        if math.isfinite(loss) and loss > 0:
            last = loss
    return previous


def _report_gradients(entries: list[dict], losses: np.ndarray, bad: np.ndarray, report: Report) -> None:
    good = np.flatnonzero(~bad)
    stretch = len(bad) - (int(good[-1]) + 1 if len(good) else 0)
    first = entries[int(np.argmax(bad))]["step"]
    what = f"{int(bad.sum())} of {len(bad)} logged gradient norms are not finite"
    if stretch >= max(3, 0.2 * len(bad)) or 2 <= stretch == len(bad):
        tail = losses[-stretch:]
        third = max(1, stretch // 3)
        falls = np.median(tail[:third]) - np.median(tail[-third:]) > 2 * noise_of(tail) and stretch >= 6
        report.add(
            "P702",
            f"{what}, and so are the last {stretch}",
            f"first at step {first}",
            level=Level.WARNING if falls else None,
            why="The loss falls nevertheless, so perhaps only the logged norm overflows."
            if falls
            else ("Such steps are skipped in fp16, and ruin the weights otherwise."),
        )
    else:
        report.add(
            "P702",
            f"{what}; later ones are finite",
            f"first at step {first}",
            level=Level.NOTE,
            why="In fp16 this is usual: the loss scale is found by trying, and such steps are skipped.",
            mend="Nothing in fp16; otherwise see the rate and the dtype.",
        )


def check_divergence(run: Run, report: Report) -> None:
    """The loss does not end far above its lowest level."""
    if run.is_online:
        report.cannot_see("the loss of a run with rewards is no measure of progress: see its rewards")
        return
    steps, losses = finite_losses(run)
    if len(losses) < FEWEST_LOSSES:
        _check_few_losses(run, steps, losses, report)
        return
    width = max(3, len(losses) // 10)
    noise = noise_of(losses)
    levels = running_median(losses, width)
    start, last, lowest = float(levels[0]), float(levels[-1]), float(levels.min())
    rise, gain, at = last - lowest, start - lowest, int(np.argmin(levels))
    is_apart = np.quantile(losses[-width:], 0.25) > np.quantile(losses[at : at + width], 0.75)
    least = (0.2 if len(losses) >= 20 else 0.5) * abs(lowest)
    if is_apart and rise > max(5 * noise / math.sqrt(width), least, 0.1 * gain):
        place = steps[at + width - 1]
        what = f"the loss ends at {last:.4g}, and was {lowest:.4g} before"
        if _evaluation_is_best_at_end(run):
            report.add(
                "P701",
                what,
                f"lowest until step {place:.0f}",
                level=Level.NOTE,
                why="The evaluation is best at the end, so the later records are harder.",
                mend="Nothing, or shuffle the data.",
            )
            return
        lost = last >= start - 0.1 * gain or (rise > 0.5 * lowest and (lowest > 0.2 * start or rise > 0.4 * gain))
        report.add("P701", what, f"lowest until step {place:.0f}", level=None if lost else Level.WARNING)
        return
    _note_spikes(steps, losses, noise, report)


def _check_few_losses(run: Run, steps: np.ndarray, losses: np.ndarray, report: Report) -> None:
    """Each of these losses is the mean of many steps, so that two high ones at the end are enough."""
    if len(losses) < 4 or np.median(np.diff(steps)) < 10:
        if run.training:
            report.cannot_see(f"{len(losses)} logged losses are too few to judge the course of the loss")
    elif min(losses[-2:]) > 1.5 * losses[0] and losses[-1] > 2 * losses.min():
        report.add("P701", f"the loss ends at {losses[-1]:.4g}, and was {losses.min():.4g} before")


def _note_spikes(steps: np.ndarray, losses: np.ndarray, noise: float, report: Report) -> None:
    """Note single losses far above their neighbours, from which the run recovered."""
    width = 5
    if len(losses) < 4 * width or noise == 0:
        return
    around = np.pad(running_median(losses, width), width // 2, mode="edge")
    spikes = np.flatnonzero(losses - around > np.maximum(10 * noise, np.abs(around)))
    if len(spikes):
        first = spikes[0]
        report.add(
            "P701",
            f"the loss jumped to {losses[first]:.4g} from {around[first]:.4g}, {len(spikes)} such jumps, and came back",
            f"step {steps[first]:.0f}",
            level=Level.NOTE,
            why="A few bad batches do this, and so does a rate at the edge of what is stable.",
            mend="Nothing if it stays rare; otherwise lower the rate or max_grad_norm.",
        )


def _evaluation_is_best_at_end(run: Run) -> bool:
    for key in evaluation_losses(run):
        values = [entry[key] for entry in run.evaluations if key in entry and math.isfinite(entry[key])]
        if len(values) >= 2 and values[-1] <= min(values) * 1.01:
            return True
    return False


def evaluation_losses(run: Run) -> list[str]:
    """Returns the keys of evaluation losses, of which there is one for each dataset."""
    keys = {key for entry in run.evaluations for key in entry if key.startswith("eval_") and key.endswith("loss")}
    return sorted(keys)


def check_zero_gradients(run: Run, report: Report) -> None:
    """Gradients are not zero (huggingface/trl#3926: an adapter that is frozen)."""
    steps, gradients = run.series("grad_norm")
    if not len(gradients):
        if run.training:
            report.cannot_see("no gradient norm was logged")
        return
    zero = gradients == 0
    nonzero = np.flatnonzero(~zero)
    stretch = len(zero) - (int(nonzero[-1]) + 1 if len(nonzero) else 0)
    _, losses = run.series("loss")
    if zero.all():
        report.add("P714", f"all {len(zero)} logged gradient norms are 0", f"steps {steps[0]:.0f} to {steps[-1]:.0f}")
    elif stretch >= max(5, 0.3 * len(zero)):
        learned = bool(np.median(losses[-stretch:]) < 1e-3) and not run.is_online
        report.add(
            "P714",
            f"the last {stretch} of {len(zero)} logged gradient norms are 0",
            f"since step {steps[len(zero) - stretch]:.0f}",
            level=Level.NOTE if learned else None,
            why="The loss is almost zero." if learned else "Nothing was learned from there on.",
            mend="Stop earlier." if learned else None,
        )
    elif zero.any():
        report.add(
            "P714",
            f"{int(zero.sum())} of {len(zero)} logged gradient norms are 0",
            f"first at step {steps[int(np.argmax(zero))]:.0f}",
            level=Level.NOTE,
            why="These batches taught nothing: no trained token, or equal rewards.",
        )


def chance_levels(run: Run) -> dict[str, float]:
    """Returns the losses of a model that knows nothing, by what it guesses among."""
    levels, config = {}, run.config
    vocabulary = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    architecture = " ".join(config.get("architectures") or ())
    if "ForSequenceClassification" in architecture or "ForTokenClassification" in architecture:
        labels = len(config.get("id2label") or {}) or config.get("num_labels") or 2
        if labels > 1:
            levels[f"{labels} labels"] = math.log(labels)
    elif isinstance(vocabulary, int) and vocabulary > 1:
        levels[f"the {vocabulary:,} tokens of the vocabulary"] = math.log(vocabulary)
    if any("rewards/margins" in entry or "margin" in entry for entry in run.training[:3]):
        levels["the two answers of a pair"] = _PAIR_LOSS
    return levels


def check_flat(run: Run, report: Report) -> None:
    """The loss falls, and evaluations differ from one another."""
    for key in evaluation_losses(run):
        values = [(entry["step"], entry[key]) for entry in run.evaluations if key in entry]
        distinct = {value for _, value in values}
        if len({step for step, _ in values}) >= 2 and len(distinct) == 1 and math.isfinite(value := distinct.pop()):
            report.add(
                "P704",
                f"all {len(values)} values of {key} are {value!r}",
                f"steps {values[0][0]} to {values[-1][0]}",
                why="The weights did not change.",
            )
            return
    steps, losses = finite_losses(run)
    rates = run.series("learning_rate", "lr")[1]
    if run.is_online or len(losses) < FEWEST_LOSSES or (len(rates) and not rates.any()):
        return
    third = len(losses) // 3
    first, last = losses[:third], losses[-third:]
    error = math.sqrt((first.var() + last.var()) / third)
    improvement = float(first.mean() - last.mean())
    if improvement > max(2 * error, 0.01 * abs(first.mean())) or improvement > 0.05 * abs(first.mean()):
        return
    for among, chance in chance_levels(run).items():
        if max(abs(first.mean() - chance), abs(last.mean() - chance)) < 0.03 * chance and run.step >= FEWEST_STEPS:
            report.add(
                "P704",
                f"the loss stays at {last.mean():.4g} for {run.step:,} steps, as when guessing among {among}: "
                f"{chance:.4g}",
            )
            return
    if abs(improvement) <= max(2 * error, 0.01 * abs(first.mean())):
        report.add(
            "P704",
            f"the loss goes from {first.mean():.4g} to {last.mean():.4g} in {run.step:,} steps",
            level=Level.NOTE,
            why="A model that knows the data already does this, and so does one that does not learn.",
            mend="Compare evaluations of the first and the last checkpoint.",
        )


def check_almost_zero(run: Run, report: Report) -> None:
    """The loss does not end at almost zero."""
    _, losses = finite_losses(run)
    if run.is_online or len(losses) < 3:
        return
    first, last = float(np.median(losses[:3])), float(np.median(losses[-max(3, len(losses) // 10) :]))
    if not (abs(last) < 0.01 and first > 10 * abs(last)):
        return
    architectures = " ".join(run.config.get("architectures") or ())
    is_language = not architectures or any(end in architectures for end in ("LMHead", "CausalLM", "Generation"))
    best_at_end = _evaluation_is_best_at_end(run)
    report.add(
        "P709",
        f"the loss falls from {first:.4g} to {last:.2g}",
        level=None if is_language and not best_at_end else Level.NOTE,
        why="The evaluation is best at the end, so the task may be easy." if best_at_end else None,
    )


def check_clipping(run: Run, report: Report) -> None:
    """Gradients are not clipped in every step."""
    _, gradients = run.series("grad_norm")
    gradients = gradients[np.isfinite(gradients)]
    most = run.arguments.get("max_grad_norm")
    if not most or len(gradients) < FEWEST_LOSSES:
        return
    if (share := float((gradients > most).mean())) >= 0.95:
        report.add(
            "P710",
            f"{share:.0%} of the logged gradient norms are above max_grad_norm = {most:g}; their median is "
            f"{np.median(gradients):.3g}",
        )
