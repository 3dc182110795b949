"""The energy of a run is codecarbon's measurement, summed over continued runs; without codecarbon there is none."""

import sys

import pytest

from hf_tfm.artifacts import record
from hf_tfm.core import energy
from hf_tfm.core.energy import EnergyMeter


STUB = {
    "__init__.py": """
class Data:
    cpu_energy, ram_energy, gpu_energy = 2e-6, 1e-6, 0

class OfflineEmissionsTracker:
    def __init__(self, *, output_handlers, **settings):
        self.handlers, self.settings = output_handlers, settings
    def start(self):
        pass
    def flush(self):
        for handler in self.handlers:
            handler.out(Data(), None)
""",
    "core/__init__.py": "",
    "core/cpu.py": "def is_rapl_available():\n    return True\n",
    "output_methods/__init__.py": "",
    "output_methods/base_output.py": "class BaseOutput:\n    pass\n",
    "../codecarbon-9.8.dist-info/METADATA": "Metadata-Version: 2.1\nName: codecarbon\nVersion: 9.8\n",
}


@pytest.fixture
def codecarbon(tmp_path, monkeypatch):
    for name, text in STUB.items():
        file = tmp_path / "library" / "codecarbon" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    for name in [name for name in sys.modules if name.partition(".")[0] == "codecarbon"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path / "library")
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "codecarbon"]:
        del sys.modules[name]


def test_a_run_records_joules_and_their_source(codecarbon, tmp_path):
    record.RunRecord("a job").write(tmp_path)
    written = record.read_record(tmp_path)
    assert written["joules"] == {"cpu": 7.2, "memory": 3.6}
    assert written["joules_by"] == "codecarbon 9.8, CPU measured by RAPL, memory estimated"
    continued = record.RunRecord("a job")
    continued.go_on_from(tmp_path)
    continued.write(tmp_path)
    assert record.read_record(tmp_path)["joules"] == {"cpu": 14.4, "memory": 7.2}


def test_without_codecarbon_nothing_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(energy.importlib.util, "find_spec", lambda name: None)
    assert EnergyMeter().read() == {}
    record.RunRecord("a job").write(tmp_path)
    assert "joules" not in record.read_record(tmp_path)


def test_the_installed_codecarbon_measures():
    pytest.importorskip("codecarbon")
    meter = EnergyMeter()
    sum(range(10_000_000))
    assert meter.read()["cpu"] > 0 and meter.source.startswith("codecarbon 3")
