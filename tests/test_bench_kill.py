"""The benchmark that kills a run: it kills, it compares, and it would tell if a run ended differently."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch


BENCHMARKS = Path(__file__).parents[1] / "training/benchmarks"


@pytest.mark.slow
def test_killed_runs_end_as_the_untouched_one(tmp_path):
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "bench_kill.py", "--kills", "4", "--results", tmp_path / "kill.json"],
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "kill.json").read_text())
    assert found["identical"] == len(found["kills"]) == 4
    assert any(kill["hit"] != "between" for kill in found["kills"]), "no kill fell into a save"


def test_one_bit_is_a_difference(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from bench_kill import same

    state = {"step": 3, "moments": [torch.ones(3), torch.zeros(2)], "rng": torch.arange(4, dtype=torch.uint8)}
    other = {"step": 3, "moments": [torch.ones(3), torch.zeros(2)], "rng": torch.arange(4, dtype=torch.uint8)}
    assert same(state, other)
    other["moments"][0][1] += 2**-23
    assert not same(state, other)
    assert not same(state, {**state, "more": 1}) and not same([1, 2], [1, 2, 3]) and not same(1, 2)
