"""Whether the runs of an entry reach the target and beat the standing record, beyond chance."""

import statistics
from dataclasses import dataclass
from typing import Any

from hf_tfm.core.errors import InputError
from tracks import Track

from scipy.stats import t, ttest_1samp, ttest_ind


SIGNIFICANCE = 0.01


@dataclass(frozen=True)
class Verdict:
    """
    Means over the seeds, and p-values of one-sided tests.

    Attributes:
        p_target: that the true mean loss is not below the target; None on a track without one.
        p_record: that the standing record is as good; None where there is none.
        lowest_target: the lowest target that these losses would pass.
    """

    loss: float
    minutes: float
    p_target: float | None
    p_record: float | None
    lowest_target: float

    def __str__(self) -> str:
        return f"{self.minutes:.2f} minutes, loss {self.loss:.4f}; passes targets from {self.lowest_target:.4f} up"


def column(runs: list[dict[str, float]], name: str) -> list[float]:
    return [run[name] for run in runs]


def judge(track: Track, result: dict[str, Any]) -> Verdict:
    """
    Return the verdict on a result.

    Args:
        result: `runs`, each with `loss` and `minutes`; `record`, with the standing record's `runs`, or None.

    Raises:
        InputError: the mean loss is not below the target (one-sided t-test), or the runs are not better than the
            record's (one-sided Welch test), with p < .01.
    """
    losses, minutes = column(result["runs"], "loss"), column(result["runs"], "minutes")
    loss, p_target, p_record = statistics.mean(losses), None, None
    margin = float(t.ppf(1 - SIGNIFICANCE, len(losses) - 1)) * statistics.stdev(losses) / len(losses) ** 0.5
    if track.target is not None:
        p_target = float(ttest_1samp(losses, track.target, alternative="less").pvalue)
        if not p_target < SIGNIFICANCE:
            raise InputError(
                f"the mean loss {loss:.4f} is not below {track.target} with p < {SIGNIFICANCE} (p = {p_target:.3g}, "
                f"one-sided t-test over {len(losses)} seeds)"
            )
    if result["record"] is not None:
        figure = "minutes" if track.race else "loss"
        ours, theirs = column(result["runs"], figure), column(result["record"]["runs"], figure)
        p_record = float(ttest_ind(ours, theirs, equal_var=False, alternative="less").pvalue)
        if not p_record < SIGNIFICANCE:
            raise InputError(
                f"verified, but no record: {figure} {statistics.mean(ours):.4g} against {statistics.mean(theirs):.4g} "
                f"(p = {p_record:.3g}, one-sided Welch test)"
            )
    return Verdict(loss, statistics.mean(minutes), p_target, p_record, loss + margin)
