"""Rows of tokens in colours: what is trained, who speaks."""

from .report import Report
from .trainer_subject import TrainerSubject


def show_rows(subject: TrainerSubject, report: Report) -> None:
    """To be written."""
