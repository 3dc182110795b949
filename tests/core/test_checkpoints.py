"""A checkpoint is complete or not there."""

import errno
import json

import pytest

from hf_tfm import InputError
from hf_tfm.core.checkpoints import (
    MARKER,
    atomic_checkpoint,
    complete_checkpoints,
    is_complete,
    last_checkpoint,
    rotate_checkpoints,
)


def make(run, step, size=10):
    with atomic_checkpoint(run / f"checkpoint-{step}") as folder:
        (folder / "weights").write_bytes(b"x" * size)
        (folder / "sub").mkdir()
        (folder / "sub" / "state").write_text("s")


def test_a_finished_checkpoint_is_complete(tmp_path):
    make(tmp_path, 5)
    assert is_complete(tmp_path / "checkpoint-5")
    assert json.loads((tmp_path / "checkpoint-5" / MARKER).read_text()) == {"sub/state": 1, "weights": 10}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


def test_a_failure_keeps_the_checkpoint_of_that_name(tmp_path):
    make(tmp_path, 5, size=10)
    with pytest.raises(RuntimeError):
        with atomic_checkpoint(tmp_path / "checkpoint-5") as folder:
            (folder / "weights").write_bytes(b"half")
            raise RuntimeError
    assert (tmp_path / "checkpoint-5" / "weights").stat().st_size == 10
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail] PytorchStreamWriter failed writing"),
    ],
)
def test_a_full_disk_is_one_line_and_keeps_the_old_checkpoint(tmp_path, error):
    make(tmp_path, 5)
    with pytest.raises(InputError, match="checkpoint-6: the disk is full") as caught:
        with atomic_checkpoint(tmp_path / "checkpoint-6"):
            raise error
    assert "\n" not in str(caught.value)
    assert last_checkpoint(tmp_path).name == "checkpoint-5"


@pytest.mark.parametrize("damage", ["truncated", "missing", "no marker", "torn marker"])
def test_damaged_checkpoints_are_skipped(tmp_path, damage):
    make(tmp_path, 9)
    make(tmp_path, 10)
    newest = tmp_path / "checkpoint-10"
    if damage == "truncated":
        (newest / "weights").write_bytes(b"x" * 9)
    elif damage == "missing":
        (newest / "sub" / "state").unlink()
    elif damage == "no marker":
        (newest / MARKER).unlink()
    else:
        (newest / MARKER).write_text('{"weights": 1')
    assert last_checkpoint(tmp_path).name == "checkpoint-9"


def test_other_folders_are_not_taken_for_checkpoints(tmp_path):
    (tmp_path / ".checkpoint-7.partial").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    assert last_checkpoint(tmp_path) is None


def test_checkpoints_are_ordered_by_step_and_rotation_keeps_newest_and_best(tmp_path):
    for step in (2, 10, 9, 30):
        make(tmp_path, step)
    assert [path.name for path in complete_checkpoints(tmp_path)] == [f"checkpoint-{s}" for s in (2, 9, 10, 30)]
    rotate_checkpoints(tmp_path, keep=2, best=str(tmp_path / "checkpoint-9"))
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-30"]
    rotate_checkpoints(tmp_path, keep=1)
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-30"]
    rotate_checkpoints(tmp_path, keep=None)
    assert len(list(tmp_path.iterdir())) == 1
