"""Begin, end, padding and unknown tokens."""

from .report import Report
from .trainer_subject import TrainerSubject


def check_special_tokens(subject: TrainerSubject, report: Report) -> None:
    """To be written."""
