"""Weights that shall learn: dtype, ties, gradients."""

from .report import Report
from .trainer_subject import TrainerSubject


def check_weights(subject: TrainerSubject, report: Report) -> None:
    """To be written."""


def check_gradients(subject: TrainerSubject, report: Report) -> None:
    """To be written."""
