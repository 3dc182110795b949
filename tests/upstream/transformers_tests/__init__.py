"""
The tests of the installed transformers version as a package.

It consists of the files of transformers' source distribution and, for files that the distribution lacks, of the
stand-ins beside this file. The suites import one another relatively and start processes that import them again, so
every process must find them as a package. The distribution (some 10 MB) is downloaded once, outside the repository.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import transformers


CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hf_tfm" / "upstream"


def fetch(version: str = transformers.__version__) -> Path:
    """
    Returns the folder `tests` of transformers' source distribution; pip downloads it if it is not in the cache.

    Raises:
        RuntimeError: pip found no source distribution of that version, or no network.
    """
    folder = CACHE / f"transformers-{version}" / "tests"
    if folder.is_dir():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as work:
        download = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "transformers", "--dest", work]
        result = subprocess.run([*download, f"transformers=={version}"], capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(f"no source distribution of transformers {version}:\n{result.stderr}")
        with tarfile.open(next(Path(work).glob("*.tar.gz"))) as archive:
            members = [member for member in archive if "/tests/" in member.name]
            archive.extractall(work, members, filter="data")
        unpacked = next(Path(work).glob("*/tests"))
        # The suites execute this file to reach the module `transformers`.
        (unpacked / "__init__.py").touch()
        unpacked.parent.rename(folder.parent)
    return folder


__path__.insert(0, str(fetch()))
