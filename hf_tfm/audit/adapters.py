"""PEFT adapters: active, complete, equal when merged."""

from .report import Report
from .trainer_subject import TrainerSubject


def check_adapter(subject: TrainerSubject, report: Report) -> None:
    """To be written."""
