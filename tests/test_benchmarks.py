"""The benchmarks: their options parse, a killed run is compared bit by bit, results depend on the code they name."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch


BENCHMARKS = Path(__file__).parents[1] / "training/benchmarks"


@pytest.fixture
def benchmark_path(monkeypatch):
    """Makes the benchmarks importable by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.slow
def test_killed_runs_end_as_an_uninterrupted_one(tmp_path):
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "bench_kill.py", "--kills", "4", "--results", tmp_path / "kill.json"],
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "kill.json").read_text())
    assert results["identical"] == len(results["kills"]) == 4
    assert any(kill["hit"] != "between" for kill in results["kills"]), "no kill happened during a save"


def test_one_bit_is_a_difference(benchmark_path):
    from bench_kill import same

    state = {"step": 3, "moments": [torch.ones(3), torch.zeros(2)], "rng": torch.arange(4, dtype=torch.uint8)}
    other = {"step": 3, "moments": [torch.ones(3), torch.zeros(2)], "rng": torch.arange(4, dtype=torch.uint8)}
    assert same(state, other)
    other["moments"][0][1] += 2**-23
    assert not same(state, other)
    assert not same(state, {**state, "more": 1}) and not same([1, 2], [1, 2, 3]) and not same(1, 2)


def test_stored_runs_are_reused_only_with_the_same_code(benchmark_path, monkeypatch, tmp_path):
    import bench_time_to_loss

    ours = bench_time_to_loss.code_hash("hf_tfm")
    assert ours == bench_time_to_loss.code_hash("hf_tfm") != bench_time_to_loss.code_hash("llama")
    monkeypatch.setattr(bench_time_to_loss.hf_tfm, "__file__", str(tmp_path / "__init__.py"))
    (tmp_path / "models").mkdir()
    (tmp_path / "models/modeling_tfm.py").write_text("changed = True\n")
    assert bench_time_to_loss.code_hash("hf_tfm") != ours


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py") if path.stem != "side_by_side"))
def test_options_parse(name, benchmark_path, capsys):
    with pytest.raises(SystemExit) as end:
        importlib.import_module(name).main(["--help"])
    assert end.value.code == 0 and "usage" in capsys.readouterr().out
