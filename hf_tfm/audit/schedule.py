"""Settings of the run: steps, rates, and how the best checkpoint is chosen."""

from .report import Report
from .trainer_subject import TrainerSubject


def check_settings(subject: TrainerSubject, report: Report) -> None:
    """To be written."""
