"""Generation with a cache is as without."""

from .report import Report
from .trainer_subject import TrainerSubject


def check_cache(subject: TrainerSubject, report: Report) -> None:
    """To be written."""
