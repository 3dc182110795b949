"""
The table of recipes by regime: what a run gets that leaves its optimization open.

A row is for runs of some passes over the text, and of some steps, or more; the last such row is taken. `--recipe
standard` takes `STANDARD` in every regime. training/LOG.md has the measurements.
"""

from dataclasses import dataclass
from typing import Any

from .regime import Regime


# Learning rates of the rows are those of steps of so many tokens (16 rows of 256), and follow the square root of it.
TOKENS_OF_RATES = 4096


@dataclass(frozen=True)
class Row:
    """
    The settings of a regime.

    Attributes:
        reason: why these settings, in a few words for the user.
        from_passes, from_steps: the smallest run that the row is for.
        learning_rate, embedding_learning_rate, weight_decay: None for the optimizer's own.
        memory_passes: in place of `weight_decay`, the passes in which weights forget a factor of e (the timescale of
            https://arxiv.org/abs/2405.13698); the decay follows from the steps of a pass and the learning rate.
        dropout: None for the model's own.
        token_noise: share of a decoder's input tokens to replace at random.
        patience: share of the evaluations that may bring no lower loss before the decay begins, 0 to keep the plan;
            `early_decay_patience` follows from it.
        evaluations: number of evaluations at most.
    """

    reason: str
    from_passes: float = 0
    from_steps: int = 0
    optimizer: str = "muon"
    learning_rate: float | None = None
    embedding_learning_rate: float | None = None
    weight_decay: float | None = None
    memory_passes: float | None = None
    dropout: float | None = None
    token_noise: float = 0.0
    schedule: str = "wsd"
    warmup: float = 0.05
    decay: float = 0.5
    ema_decay: float = 0.0
    patience: float = 0.0
    evaluations: int = 5
    load_best_model_at_end: bool = False
    per_device_train_batch_size: int = 16
    masking_rates: tuple[float, ...] = (0.3, 0.15)
    causal_first: float = 0.0


# Fields of the scripts that follow from a row.
FIELDS = (
    "optimizer", "learning_rate", "embedding_learning_rate", "weight_decay", "dropout", "token_noise", "schedule",
    "warmup", "decay", "ema_decay", "early_decay_patience", "load_best_model_at_end", "per_device_train_batch_size",
    "masking_rates", "causal_first",
)  # fmt: skip

STANDARD = Row("the same in every regime")

_VALIDATION_DECIDES: dict[str, Any] = dict(patience=0.1, evaluations=40, load_best_model_at_end=True)
_NORMUON: dict[str, Any] = dict(optimizer="normuon", learning_rate=0.014, embedding_learning_rate=0.012)

CAUSAL = (
    Row("few passes, under a thousand steps: Muon with its own rates", **_VALIDATION_DECIDES),
    Row(
        "few passes, a thousand steps or more: NorMuon, higher rates",
        from_steps=1000,
        **_NORMUON,
        **_VALIDATION_DECIDES,
    ),
    Row(
        "15 passes or more: dropout, token noise, and weight decay by the length of a pass, against overfitting",
        from_passes=15,
        memory_passes=2.0,
        dropout=0.1,
        token_noise=0.1,
        ema_decay=0.98,
        **_NORMUON,
        **_VALIDATION_DECIDES,
    ),
)
MASKED = (Row("any number of passes: Muon with its own rates", **_VALIDATION_DECIDES),)


def choose_row(rows: tuple[Row, ...], regime: Regime) -> Row:
    """Return the last row for runs of at most this size. The passes of a stream count as none."""
    return [row for row in rows if row.from_passes <= (regime.passes or 0) and row.from_steps <= regime.steps][-1]
