"""Chat templates: what they drop, change and mark."""

from .report import Report
from .trainer_subject import TrainerSubject


def check_trainer_template(subject: TrainerSubject, report: Report) -> None:
    """To be written."""
