"""A directory or a file appears complete or not at all."""

import pytest

from hf_tfm import InputError
from hf_tfm.core.atomic_files import atomic_directory, atomic_file, require_empty, write_atomically


pytestmark = pytest.mark.quick


def test_a_directory_appears_when_it_is_complete(tmp_path):
    target = tmp_path / "new" / "model"
    with atomic_directory(target) as staging:
        (staging / "weights").write_text("w")
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["weights"]
    assert [path.name for path in target.parent.iterdir()] == ["model"]


def test_a_failed_directory_leaves_no_trace(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with atomic_directory(tmp_path / "new" / "model") as staging:
            (staging / "weights").write_text("w")
            raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_leftover_of_a_killed_process_is_replaced(tmp_path):
    (tmp_path / ".model.partial").mkdir()
    (tmp_path / ".model.partial" / "old").touch()
    with atomic_directory(tmp_path / "model") as staging:
        (staging / "weights").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["model", "weights"]


@pytest.mark.parametrize("kind", ["file", "full directory", "empty directory"])
def test_an_existing_target_is_replaced_only_on_request(tmp_path, kind):
    target = tmp_path / "model"
    if kind == "file":
        target.touch()
    else:
        target.mkdir()
    if kind == "full directory":
        (target / "old").touch()
    if kind == "empty directory":
        require_empty(target)
    else:
        with pytest.raises(InputError, match="not an empty folder"):
            with atomic_directory(target):
                pass
    if kind != "file":
        with atomic_directory(target, replace=True) as staging:
            (staging / "new").touch()
        assert [path.name for path in target.iterdir()] == ["new"]


def test_a_directory_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="model: cannot be written .*; give another folder") as caught:
        with atomic_directory(tmp_path / "file" / "model", hint="give another folder"):
            pass
    assert "\n" not in str(caught.value)


def test_a_file_is_replaced_when_it_is_complete(tmp_path):
    target = tmp_path / "facts.json"
    write_atomically(target, "old")
    with pytest.raises(RuntimeError):
        with atomic_file(target) as partial:
            partial.write_text("half")
            raise RuntimeError
    assert target.read_text() == "old"
    with atomic_file(target) as partial:
        partial.write_text("new")
    assert target.read_text() == "new" and len(list(tmp_path.iterdir())) == 1


def test_a_linked_file_is_replaced_and_its_other_name_keeps_the_content(tmp_path):
    (tmp_path / "original").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "original")
    write_atomically(tmp_path / "link", "new")
    assert (tmp_path / "original").read_text() == "old" and (tmp_path / "link").read_text() == "new"
