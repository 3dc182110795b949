"""The processor's counters are added up whatever they do, and what cannot be read is not counted in part."""

import json
from pathlib import Path

import pytest

from hf_tfm.artifacts import record
from hf_tfm.core.energy import EnergyMeter


RANGE = 1_000_000_000


def set_counter(powercap: Path, zone: str, name: str, microjoules: int) -> Path:
    folder = powercap / zone
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{RANGE}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder / "energy_uj"


@pytest.fixture
def powercap(tmp_path) -> Path:
    """Two packages; the second one's memory counts apart. Cores and the platform would be counted twice."""
    (tmp_path / "intel-rapl").mkdir()
    set_counter(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    set_counter(tmp_path, "intel-rapl:0:0", "core", 4_000_000)
    set_counter(tmp_path, "intel-rapl:1", "package-1", RANGE - 2_000_000)
    set_counter(tmp_path, "intel-rapl:1:0", "dram", 100)
    set_counter(tmp_path, "intel-rapl:2", "psys", 7)
    set_counter(tmp_path, "intel-rapl-mmio:0", "package-0", 7)
    return tmp_path


def test_counters_are_added_up_and_may_begin_anew(powercap):
    meter = EnergyMeter(powercap)
    assert meter.read() == {"package-0": 0, "package-1": 0, "dram of package-1": 0}
    set_counter(powercap, "intel-rapl:0", "package-0", 8_500_000)
    set_counter(powercap, "intel-rapl:0:0", "core", 7_000_000)
    set_counter(powercap, "intel-rapl:1", "package-1", 1_000_000)
    set_counter(powercap, "intel-rapl:1:0", "dram", 1_000_100)
    expected = {"package-0": 3.5, "package-1": pytest.approx(3.0, abs=1e-5), "dram of package-1": 1.0}
    assert meter.read() == expected and meter.read() == expected
    set_counter(powercap, "intel-rapl:0", "package-0", 100_000)
    assert meter.read()["package-0"] == pytest.approx(3.5 + 991.6, abs=1e-5)


def test_what_cannot_be_read_is_not_counted_in_part(powercap):
    counter = powercap / "intel-rapl:1:0/energy_uj"
    meter = EnergyMeter(powercap)
    counter.unlink()
    counter.mkdir()  # root reads whatever is only forbidden
    assert meter.read() == {} and EnergyMeter(powercap).read() == {}
    assert EnergyMeter(powercap / "nothing here").read() == {}


def test_a_run_writes_what_it_took(powercap, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "EnergyMeter", lambda: EnergyMeter(powercap))
    run = record.RunRecord("a job")
    set_counter(powercap, "intel-rapl:0", "package-0", 6_000_000)
    run.write(tmp_path)
    assert json.loads((tmp_path / "run_record.json").read_text())["joules"]["package-0"] == 1.0
    monkeypatch.setattr(record, "EnergyMeter", lambda: EnergyMeter(tmp_path / "nothing"))
    record.RunRecord("a job").write(tmp_path)
    assert "joules" not in record.read_record(tmp_path)
