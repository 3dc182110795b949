"""Files of the cache: arrays that are written once and memory-mapped, and hashes of files."""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from huggingface_hub.constants import HF_HOME

from ..core.atomic_files import atomic_directory, write_atomically
from ..core.errors import InputError, cannot_write
from .files import explain_unreadable


CACHE_HINT = "free space, or set HF_TFM_CACHE to another folder"


def default_cache_dir() -> Path:
    """`$HF_TFM_CACHE`, or the folder `hf_tfm` beside transformers' own caches."""
    return Path(os.environ.get("HF_TFM_CACHE") or Path(HF_HOME) / "hf_tfm").expanduser()


def write_arrays(folder: Path, chunks: Iterable[Mapping[str, np.ndarray]], meta: dict[str, Any]) -> None:
    """
    Writes arrays that come in chunks to `folder/NAME.bin`, in constant memory, and `meta` to `folder/meta.json`.

    The folder appears complete or not at all. If several processes want the same folder, one writes it and the others
    wait. `meta` is written last, so that `chunks` may still change it.

    Raises:
        InputError: The folder cannot be written.
    """
    with explain_unwritable(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                with atomic_directory(folder, hint=CACHE_HINT) as staging:
                    _write_chunks(staging, chunks, meta)


@contextmanager
def explain_unwritable(path: Path) -> Iterator[None]:
    """Raises `InputError` for errors of the file system inside the block, which writes into the cache at `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # a broken connection to the source of the chunks, not an error of the file system
            raise
        raise InputError(f"{path}: {cannot_write(CACHE_HINT)(error)}") from None


def _write_chunks(folder: Path, chunks: Iterable[Mapping[str, np.ndarray]], meta: dict[str, Any]) -> None:
    arrays: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        files = {}
        for chunk in chunks:
            for name, array in chunk.items():
                if name not in files:
                    files[name] = stack.enter_context(open(folder / f"{name}.bin", "wb"))
                    arrays[name] = {"dtype": str(array.dtype), "length": 0}
                # Not array.tofile, whose error does not say that the disk is full.
                files[name].write(np.ascontiguousarray(array).data)
                arrays[name]["length"] += len(array)
    (folder / "meta.json").write_text(json.dumps({**meta, "arrays": arrays}, indent=1))


def open_arrays(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the memory-mapped arrays and the meta of a folder; raises `InputError` if it is damaged."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        # As plain arrays, because a slice of np.memmap takes several times as long.
        arrays = {
            name: np.asarray(np.memmap(folder / f"{name}.bin", array["dtype"], "r", shape=(array["length"],)))
            for name, array in meta["arrays"].items()
        }
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder}: is not a whole cache folder ({error}); delete it and run again") from None
    return arrays, meta


def digest(key: Any) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


def file_hash(path: Path, cache_dir: Path) -> str:
    """
    Returns a file's sha256; it is remembered while the file has the same size and times. One of them is the time of its
    last change of any kind, which `cp -p` and archives cannot set back.
    """
    with explain_unreadable(path):
        path = path.resolve()
        stat = path.stat()
        times = {"mtime_ns": stat.st_mtime_ns, "ctime_ns": stat.st_ctime_ns}
        state = {"path": str(path), "size": stat.st_size, "inode": stat.st_ino, **times}
        memo = memo_path(cache_dir, str(path))
        with suppress(OSError, ValueError):  # there is none, or a crash of the machine left it empty
            known = json.loads(memo.read_text())
            if known | state == known:
                return known["sha256"]
        sha256 = hashlib.sha256()
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                sha256.update(chunk)
    # A file that changed a moment ago can change again without a change of its times.
    if time.time() - max(stat.st_mtime, stat.st_ctime) > 2:
        write_memo(memo, {**state, "sha256": sha256.hexdigest()})
    return sha256.hexdigest()


def memo_path(cache_dir: Path, key: str) -> Path:
    return cache_dir / "versions" / f"{digest(key)}.json"


def write_memo(memo: Path, content: dict[str, Any]) -> None:
    with explain_unwritable(memo):
        memo.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(memo, json.dumps(content))
