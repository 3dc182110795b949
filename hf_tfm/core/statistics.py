"""Figures with their uncertainty: bootstrapped confidence intervals."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


RESAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A figure measured on `n` records, with its 95 % confidence interval from `low` to `high`."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def to_bits_per_byte(nats: float, num_bytes: float) -> float:
    """
    Returns bits per byte, which compares across tokenizers.

    The one definition, of training, evaluation, prediction and benchmarks: both sums are of text alone. Special tokens
    around a text (begin, end) are in neither the nats nor the bytes.

    Args:
        nats: Negative log-likelihood of the text's tokens.
        num_bytes: Bytes of the text as UTF-8.
    """
    return nats / num_bytes / math.log(2)


def proportion(hits: int, n: int) -> Estimate:
    """Returns the share `hits / n` with Wilson's score interval (1927), which is exact enough near 0 and 1 too."""
    from scipy.stats import binomtest

    interval = binomtest(int(hits), int(n)).proportion_ci(0.95, method="wilson")
    return Estimate(hits / n, float(interval.low), float(interval.high), int(n))


def bootstrap(
    statistics: Callable[..., dict[str, float]],
    *columns: Sequence[Any] | np.ndarray,
    resamples: int | None = None,
    seed: int = 0,
) -> dict[str, Estimate]:
    """
    Returns statistics of records with percentile intervals from records drawn with replacement (Efron 1979).

    Args:
        statistics: takes the columns (numpy arrays, all of one length) and gives named figures.
        columns: predictions, labels, per-record counts …, one entry a record.
        resamples: how often to draw, `RESAMPLES` times by default.
        seed: of the draws; the same seed gives the same interval.
    """
    arrays = [np.asarray(column) for column in columns]
    n = len(arrays[0])
    draws = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {}
    for _ in range(RESAMPLES if resamples is None else resamples):
        rows = draws.integers(n, size=n)
        for name, value in statistics(*(array[rows] for array in arrays)).items():
            drawn.setdefault(name, []).append(value)
    estimates = {}
    for name, value in statistics(*arrays).items():
        # A correlation is undefined where a draw repeats one value only.
        defined = [figure for figure in drawn[name] if np.isfinite(figure)] or [value]
        low, high = np.percentile(defined, [2.5, 97.5])
        estimates[name] = Estimate(float(value), float(low), float(high), n)
    return estimates


def correlations(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Return Spearman's rank correlation and Pearson's; 0 where one side is constant, for which they are undefined."""
    from scipy.stats import pearsonr, spearmanr

    if len(x) < 2:
        return {"spearman": 0.0, "pearson": 0.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pairs = {"spearman": spearmanr(x, y), "pearson": pearsonr(x, y)}
    return {name: float(np.nan_to_num(pair.statistic)) for name, pair in pairs.items()}
