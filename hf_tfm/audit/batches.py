"""Padding, packing and neighbours: nothing of them may change what the model computes."""

from .report import Report
from .trainer_subject import TrainerSubject


def check_positions(subject: TrainerSubject, report: Report) -> None:
    """To be written."""


def check_padding_and_packing(subject: TrainerSubject, report: Report) -> None:
    """To be written."""
