"""Versions that cannot work are refused on import, in one line, before torch is imported."""

import importlib.metadata
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from hf_tfm.core.version import REQUIRED, UnsupportedVersionError, check_versions


pytestmark = pytest.mark.quick


REPOSITORY = Path(__file__).parents[2]
MESSAGE = "hf_tfm needs transformers{0}, but transformers 5.18.2 is installed: pip install --upgrade 'transformers{0}'"


def test_the_build_asks_for_the_same_versions():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    for package, supported in REQUIRED.items():
        assert f"{package}{supported}" in project["dependencies"]


@pytest.mark.parametrize(
    ("package", "installed", "works"),
    [
        ("transformers", "5.18.2", False),
        ("transformers", "4.57.6", False),
        ("transformers", "5.19.0", True),
        ("transformers", "5.25.0.dev0", True),
        ("transformers", "6.1", True),
        ("torch", "2.7.1+cpu", False),
        ("torch", "2.9.1", True),
        ("torch", "2.13.0+cu130", True),
        ("torch", "2.15.0a0+git123", True),
    ],
)
def test_versions_below_the_range_are_refused(monkeypatch, package, installed, works):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: installed if name == package else real(name))
    if works:
        check_versions()
    else:
        with pytest.raises(UnsupportedVersionError, match=package):
            check_versions()


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """One in which an old transformers is found first, with nothing in it that could be imported."""
    metadata = tmp_path / "old/transformers-5.18.2.dist-info/METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 5.18.2\n")
    (tmp_path / "old/transformers.py").write_text("raise SystemError('imported before its version was checked')")
    path = os.pathsep.join([str(tmp_path / "old"), str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path}


def test_the_import_says_what_to_install(environment, tmp_path):
    program = (
        "import sys\ntry:\n    import hf_tfm\nexcept ImportError as error:\n"
        "    print(type(error).__name__, error)\nprint('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.stdout == f"UnsupportedVersionError {MESSAGE.format(REQUIRED['transformers'])}\nFalse\n", done.stderr


def test_the_command_says_so_in_one_line(environment, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "hf_tfm_command", "inspect", "model"],
        capture_output=True, text=True, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, f"error: {MESSAGE.format(REQUIRED['transformers'])}\n")
