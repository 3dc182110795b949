"""Runs with a fault that public threads report, and the same runs without it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from hf_tfm import preflight


# Builds a trainer in a folder, as a user's script would; with the fault if the second argument says so.
Build = Callable[[Path, bool], Any]


def planted(thread: str, build: Build, *codes: str) -> Any:
    """Returns a row of a table of faults: the thread that reports it, the run, and the codes that may name it."""
    return pytest.param(build, frozenset(codes), id=thread)


def assert_found(trainer: Any, codes: frozenset[str], **options: Any) -> None:
    """Asserts that one of these codes is reported as an error or a warning."""
    report = preflight(trainer, show=None, **options)
    assert report.codes & codes, f"{sorted(codes)} is not among: {report.as_json()}"


def assert_sound(trainer: Any, **options: Any) -> None:
    """Asserts that there is no error, and one warning at most."""
    report = preflight(trainer, show=None, **options)
    assert not report.errors and len(report.warnings) <= 1, report.as_json()


def padded(tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]]) -> Any:
    """Returns the tokens of these rows as a padded batch, without their labels."""
    return tokenizer.pad([{"input_ids": row["input_ids"]} for row in rows], return_tensors="pt")
