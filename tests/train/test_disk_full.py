"""A disk that fills up in the middle of a run: one line says so, what was saved stays, the same command goes on."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pretrain_clm
import pytest
import torch
from pretraining_runs import arguments, assert_equal_weights, files  # noqa: F401

from hf_tfm.core.checkpoints import complete_checkpoints, last_checkpoint


@pytest.mark.parametrize("moment", ["first checkpoint", "second checkpoint", "finished model"])
def test_full_disk_is_one_line_and_the_run_goes_on(files, tmp_path, monkeypatch, capsys, moment):  # noqa: F811
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert pretrain_clm.main(arguments(files, whole)) == 0
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as context:
        if moment == "finished model":
            context.setattr("hf_tfm.artifacts.write.plot_curve", lambda *args: (_ for _ in ()).throw(full))
        else:
            saved, real = [], torch.save

            def save(value, file, *args, **kwargs):
                if str(file).endswith("optimizer.pt"):
                    saved.append(file)
                    if len(saved) == 1 + (moment == "second checkpoint"):
                        raise full
                real(value, file, *args, **kwargs)

            context.setattr(torch, "save", save)
        capsys.readouterr()
        assert pretrain_clm.main(arguments(files, run)) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "the disk is full" in errors[0] and "run the same command again" in errors[0]
    kept = {"first checkpoint": [], "second checkpoint": ["checkpoint-4"]}.get(moment, ["checkpoint-4", "checkpoint-8"])
    assert [path.name for path in complete_checkpoints(run)] == kept
    assert not list(run.glob("*.partial")) and not list(run.glob(".*.partial")) and not (run / "finished").exists()
    assert pretrain_clm.main(arguments(files, run)) == 0
    assert_equal_weights(whole, run)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB, where one may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1000k", "tmpfs", str(disk)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_disk_that_is_really_full(files, small_disk, tmp_path, capsys):  # noqa: F811
    """Room for one checkpoint of about 0.6 MB and not for what comes after it."""
    run = small_disk / "run"
    assert pretrain_clm.main(arguments(files, run, save_total_limit=3)) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "the disk is full" in errors[0], errors
    kept = last_checkpoint(run)
    assert kept is not None and json.loads((kept / "trainer_state.json").read_text())["global_step"] in (4, 8)
    moved = Path(tmp_path / "elsewhere")
    subprocess.run(["cp", "-r", str(run), str(moved)], check=True)
    assert pretrain_clm.main(arguments(files, moved, save_total_limit=3)) == 0
