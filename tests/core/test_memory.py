"""A process that keeps freed memory requests fewer pages from the kernel."""

import platform
import subprocess
import sys

import pytest

from hf_tfm.core import memory
from hf_tfm.core.memory import keep_freed_memory


FAULTS = """
import resource, runpy, sys
import numpy as np
if sys.argv[1] == "kept":
    assert runpy.run_path(sys.argv[2])["keep_freed_memory"]()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    a = np.ones(2**23)
    b = a + a
    assert b.sum() == 2**24
    del a, b
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_freed_memory_is_reused(monkeypatch):
    for name in ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)

    monkeypatch.setenv("NUMPY_MADVISE_HUGEPAGE", "0")

    def faults(mode: str) -> int:
        command = [sys.executable, "-c", FAULTS, mode, memory.__file__]  # by path: the package takes long to import
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert faults("kept") * 4 < faults("given back")


def test_settings_in_the_environment_take_precedence(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not keep_freed_memory()
