"""Checkpoints that are whole or not there: written aside, listed, renamed; a half-written one is never resumed from."""

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError
from .limits import as_input_errors


MARKER = "checkpoint_complete.json"
_NAME = re.compile(r"checkpoint-(\d+)")


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """
    A folder to write into, which takes the name `target` when the block ends and disappears when it fails.

    Every file is flushed to disk and listed with its size in the marker file before the rename, so a folder called
    `target` is whole after a crash of the process or of the machine.

    Raises:
        InputError: the disk is full; what was at `target` before is still there.
    """
    target = Path(target)
    staging = staging_folder(target)
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
        yield staging
        _seal(staging)
    except BaseException as error:
        full = isinstance(error, Exception) and _is_disk_full(error, staging)
        shutil.rmtree(staging, ignore_errors=True)
        if full:
            raise InputError(
                f"{target}: the disk is full, so this was not saved (earlier checkpoints are kept): free some space "
                "and run the same command again"
            ) from error
        raise
    discard(target)
    os.rename(staging, target)
    _flush(target.parent)


def staging_folder(target: Path) -> Path:
    """Where `atomic_folder(target)` is written until it is whole."""
    return target.with_name(f".{target.name}.partial")


def discard(folder: Path) -> None:
    """Delete a folder so that it is never seen half deleted under its own name."""
    if folder.exists():
        aside = folder.with_name(f".{folder.name}.deleted")
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)


def is_complete(folder: Path) -> bool:
    """Whether every file that was listed when the folder was written is there in its full size."""
    try:
        sizes = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def complete_checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [(int(match[1]), path) for path in Path(run).glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found) if is_complete(path)]


def last_checkpoint(run: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    return next(iter(complete_checkpoints(run)[::-1]), None)


def rotate(run: Path, keep: int | None, best: str | None = None) -> None:
    """Delete the oldest checkpoints beyond `keep`, but neither the newest nor the best."""
    checkpoints = complete_checkpoints(run)
    if not keep or keep < 0:
        return
    protected = {checkpoints[-1].name, Path(best).name if best else ""} if checkpoints else set()
    excess = len(checkpoints) - max(keep, len(protected - {""}))
    for checkpoint in [path for path in checkpoints if path.name not in protected][: max(excess, 0)]:
        discard(checkpoint)


def _seal(folder: Path) -> None:
    sizes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            _flush(path)
            sizes[str(path.relative_to(folder))] = path.stat().st_size
    marker = folder / MARKER
    marker.write_text(json.dumps(sizes, indent=1), encoding="utf-8")
    _flush(marker)
    _flush(folder)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_disk_full(error: BaseException | None, folder: Path) -> bool:
    """Whether an error came of a full disk: torch and safetensors wrap it in their own, which may not say so."""
    with contextlib.suppress(OSError):
        if shutil.disk_usage(folder).free < 1 << 16:
            return True
    while error is not None:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        text = str(error)
        if full or "No space left" in text or "Disk quota" in text or "PytorchStreamWriter failed" in text:
            return True
        error = error.__cause__ or error.__context__
    return False


def refuse_existing(target: str | os.PathLike) -> None:
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} exists and is not an empty folder; remove it or choose another name")


@contextmanager
def whole_folder(target: str | os.PathLike) -> Iterator[Path]:
    """A new folder that takes its name once it is complete, and leaves no trace if it does not get there."""
    target = Path(target).absolute()
    parents = [parent for parent in target.parents if not parent.exists()]
    folder = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with as_input_errors(target):
            folder.mkdir(parents=True)
        yield folder
        if target.exists():
            target.rmdir()
        folder.rename(target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in parents:
            if parent.exists() and not any(parent.iterdir()):
                parent.rmdir()
        raise
