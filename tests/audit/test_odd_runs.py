"""Runs that are unusual and right: the preflight finds no error and at most one warning in them."""

from pathlib import Path

import odd_plain
import pytest
from audit_helpers import find_nothing_wrong


pytest.importorskip("trl")
pytest.importorskip("sentence_transformers")
import odd_trl  # noqa: E402


RUNS = odd_plain.ODD | odd_trl.ODD


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_finds_nothing_wrong_in_an_odd_run(name: str, tmp_path: Path):
    find_nothing_wrong(RUNS[name](tmp_path))
