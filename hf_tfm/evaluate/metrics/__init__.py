"""
Metrics for the `evaluate` library that need no network.

`hf_tfm.evaluate.metrics.load("f1")`, or `evaluate.load` with the path of a folder beside this file, loads a metric with
the inputs and outputs of the Hub's metric of that name, computed by scikit-learn, scipy, seqeval or sacrebleu.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...core.errors import InputError


if TYPE_CHECKING:
    from evaluate import EvaluationModule

NAMES = sorted(path.parent.name for path in Path(__file__).parent.glob("*/*.py"))


def load(name: str) -> EvaluationModule:
    """Load one of the metrics in `NAMES` from this folder. Raises `InputError` for another name."""
    import evaluate

    if name not in NAMES:
        raise InputError(f"no metric {name!r} here; there are {', '.join(NAMES)}")
    return evaluate.load(str(Path(__file__).parent / name))
