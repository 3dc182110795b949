"""Atomic files and directories: a reader finds a complete one or none, even after a crash."""

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

from .errors import InputError, cannot_write, explain


@contextlib.contextmanager
def atomic_directory(
    target: str | os.PathLike[str], *, replace: bool = False, hint: str = "free some space or give another folder"
) -> Iterator[Path]:
    """
    Yield a temporary directory that is renamed to `target` when the block ends, and removed when it fails.

    Every file is flushed to disk before the rename, so a directory called `target` is complete after a crash of the
    process or of the machine.

    Args:
        target: The directory to write. Missing parents are made, and removed again on failure.
        replace: Whether an existing `target` is replaced; otherwise it must be missing or empty.
        hint: What the user can do if the disk is full or the place not writable.

    Raises:
        InputError: The disk is full, `target` cannot be written, or it exists. An existing `target` is unchanged.
    """
    target = Path(target).absolute()
    if not replace:
        require_empty(target)
    new_parents = [parent for parent in target.parents if not parent.exists()]
    staging = partial_path(target)
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with explain(target, cannot_write(hint), OSError):
            staging.mkdir(parents=True)
        yield staging
        for path in sorted(staging.rglob("*")):
            flush_to_disk(path)
        flush_to_disk(staging)
        if replace:
            remove_directory(target)
        elif target.exists():
            target.rmdir()
        staging.rename(target)
        flush_to_disk(target.parent)
    except BaseException as error:
        is_full = isinstance(error, Exception) and _is_disk_full(error, target.parent)
        shutil.rmtree(staging, ignore_errors=True)
        for parent in new_parents:
            with contextlib.suppress(OSError):
                parent.rmdir()
        if is_full and not isinstance(error, InputError):
            raise InputError(f"{target}: the disk is full, so this was not saved; {hint}") from error
        raise


@contextlib.contextmanager
def atomic_file(target: str | os.PathLike[str]) -> Iterator[Path]:
    """
    Yield a path to write to, which is renamed to `target` when the block ends, and removed when it fails.

    Only one process at a time may write the same `target`; see `write_atomically` for several.
    """
    with _replacing(Path(target), partial_path(Path(target))) as partial:
        yield partial


def write_atomically(target: str | os.PathLike[str], text: str) -> None:
    """Write a text file that is complete or not there, also if several threads or processes write the same one."""
    target = Path(target)
    writer = f"{os.getpid()}-{threading.get_ident()}"
    with _replacing(target, target.with_name(f".{target.name}.{writer}.partial")) as partial:
        partial.write_text(text, encoding="utf-8")


def partial_path(target: Path) -> Path:
    """Returns the path where `atomic_directory` and `atomic_file` write until `target` is complete."""
    return target.with_name(f".{target.name}.partial")


def require_empty(target: str | os.PathLike[str]) -> None:
    """Raise `InputError` if `target` exists and is not an empty directory."""
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target} exists and is not an empty folder; remove it or choose another name")


def remove_directory(directory: Path) -> None:
    """Delete a directory, if it exists, so that it is never seen half deleted under its own name."""
    if directory.exists():
        aside = directory.with_name(f".{directory.name}.deleted")
        shutil.rmtree(aside, ignore_errors=True)
        directory.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def flush_to_disk(path: Path) -> None:
    """Wait until a file or a directory's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _replacing(target: Path, partial: Path) -> Iterator[Path]:
    try:
        yield partial
        flush_to_disk(partial)
        partial.replace(target)
    finally:
        with contextlib.suppress(OSError):  # renamed already, or its directory is a file
            partial.unlink()


def _is_disk_full(error: BaseException | None, directory: Path) -> bool:
    """Whether an error comes from a full disk: torch and safetensors wrap it in errors that may not say so."""
    with contextlib.suppress(OSError):
        if shutil.disk_usage(directory).free < 1 << 16:
            return True
    while error is not None:
        text = str(error)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left" in text or "Disk quota" in text or "PytorchStreamWriter failed" in text:
            return True
        error = error.__cause__ or error.__context__
    return False
