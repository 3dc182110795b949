"""The loss: its size at the start, its place, and accumulation."""

from .report import Report
from .trainer_subject import TrainerSubject


def check_first_loss(subject: TrainerSubject, report: Report) -> None:
    """To be written."""


def check_accumulation(subject: TrainerSubject, report: Report) -> None:
    """To be written."""
