"""Labels: which tokens are trained, and whether they are the right ones."""

from .report import Report
from .trainer_subject import TrainerSubject


def check_labels(subject: TrainerSubject, report: Report) -> None:
    """To be written."""
