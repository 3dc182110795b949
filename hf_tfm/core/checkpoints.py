"""A run's checkpoints: complete or not there; an incomplete or damaged one is never resumed from."""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from .atomic_files import atomic_directory, remove_directory


# Lists a checkpoint's files with their sizes in bytes.
MARKER = "checkpoint_complete.json"
_NAME = re.compile(r"checkpoint-(\d+)")


@contextlib.contextmanager
def atomic_checkpoint(target: Path) -> Iterator[Path]:
    """
    Yield a directory that becomes the checkpoint `target`, as [`atomic_directory`], with its marker file.

    Raises:
        InputError: The disk is full; an earlier checkpoint of this name is unchanged.
    """
    hint = "earlier checkpoints are kept: free some space and run the same command again"
    with atomic_directory(target, replace=True, hint=hint) as staging:
        yield staging
        write_marker(staging)


def write_marker(checkpoint: Path) -> None:
    """Write the marker file of a checkpoint, by which `is_complete` finds missing and truncated files."""
    files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path != checkpoint / MARKER]
    sizes = {str(path.relative_to(checkpoint)): path.stat().st_size for path in files}
    (checkpoint / MARKER).write_text(json.dumps(sizes, indent=1), encoding="utf-8")


def is_complete(checkpoint: Path) -> bool:
    """Whether every file that the marker lists is there in its full size."""
    try:
        sizes = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def complete_checkpoints(run: Path) -> list[Path]:
    """Returns the complete checkpoints of a run, oldest first."""
    matches = ((_NAME.fullmatch(path.name), path) for path in Path(run).glob("checkpoint-*"))
    by_step = sorted((int(match[1]), path) for match, path in matches if match)
    return [path for _, path in by_step if is_complete(path)]


def last_checkpoint(run: Path) -> Path | None:
    """Returns the newest complete checkpoint of a run, or None."""
    return next(iter(complete_checkpoints(run)[::-1]), None)


def rotate_checkpoints(run: Path, keep: int | None, best: str | None = None) -> None:
    """Delete the oldest checkpoints beyond `keep`, but neither the newest nor the best."""
    checkpoints = complete_checkpoints(run)
    if not keep or keep < 0:
        return
    protected = {checkpoints[-1].name, Path(best).name if best else ""} if checkpoints else set()
    excess = len(checkpoints) - max(keep, len(protected - {""}))
    for checkpoint in [path for path in checkpoints if path.name not in protected][: max(excess, 0)]:
        remove_directory(checkpoint)
