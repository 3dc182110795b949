"""Finding files: lists, globs, splits, close names, files about the data, archives."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hf_tfm.core.errors import InputError
from hf_tfm.data.files import list_files, list_skipped_files, named_split
from hf_tfm.data.sources import read_documents


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name}\n")
    return folder


def names_of(location, *arguments, **options) -> list[str]:
    return [file.path.name for file in list_files(location, *arguments, **options)]


def test_several_locations(tmp_path):
    make(tmp_path, "a.csv", "b.csv", "more/c.jsonl", "more/d.txt", "other.csv")
    assert names_of([tmp_path / "other.csv", f"{tmp_path}/*.csv", tmp_path / "more"]) == [
        *("other.csv", "a.csv", "b.csv"),
        *("c.jsonl", "d.txt"),
    ]
    with pytest.raises(InputError, match="c.csv: no such file"):
        list_files([tmp_path / "a.csv", tmp_path / "c.csv"])


def test_a_missing_file_is_refused_with_names_that_are_close(tmp_path):
    make(tmp_path, "train.jsonl", "train.csv", "reviews.csv")
    with pytest.raises(InputError, match=r"tarin.jsonl: no such file, folder or glob \(there is train.jsonl") as error:
        list_files(tmp_path / "tarin.jsonl")
    assert "reviews" not in str(error.value)
    with pytest.raises(InputError, match=r"glob; a dataset of the Hub is written hub:NAME$"):
        list_files(tmp_path / "nowhere" / "x.csv")


def test_a_clone_of_the_hub_has_data_and_files_about_it(tmp_path):
    make(tmp_path, "README.md", "dataset_info.json", "dataset_infos.json", ".gitattributes", "data/train-00000.parquet")
    make(tmp_path, "data/test-00000.parquet", "script.py", "data/state.json", "data/cache-1f.arrow")
    assert names_of(tmp_path) == ["train-00000.parquet"]
    skipped = {reason: [path.name for path in paths] for reason, paths in list_skipped_files(str(tmp_path)).items()}
    assert skipped == {
        "about the data": ["cache-1f.arrow", "state.json", "dataset_info.json", "dataset_infos.json"],
        "named for another split": ["test-00000.parquet"],
        "of another kind": ["README.md", "script.py"],
    }


def test_a_folder_of_code_or_markdown_is_text(tmp_path):
    make(tmp_path, "README.md", "main.py", "lib/a.rs", "logo.png")
    assert names_of(tmp_path) == ["README.md", "a.rs", "main.py"]
    assert list_skipped_files(str(tmp_path)) == {"of another kind": [tmp_path / "logo.png"]}
    assert list(read_documents(tmp_path)) == ["README.md\n", "lib/a.rs\n", "main.py\n"]
    make(tmp_path, "test.txt")  # data, even if it is that of another split
    with pytest.raises(InputError, match="no file of the 'train' split"):
        list_files(tmp_path)
    assert names_of(tmp_path / "main.py") == ["main.py"]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("wiki.valid.tokens", "validation"),
        ("wiki.train.raw", "train"),
        ("dev/a.csv", "validation"),
        ("a.test.csv", None),
    ],
)
def test_splits_in_names(name, split):
    assert named_split(Path(name)) == split


def test_a_zip_with_one_file_among_the_junk_of_a_mac(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("reviews.csv", "text,label\nfine,1\n")
        archive.writestr("__MACOSX/._reviews.csv", b"\0\5\x16\7")
        archive.writestr("README.md", "about")
    assert [file.member for file in list_files(tmp_path / "a.zip")] == ["reviews.csv"]
    assert list(read_documents(tmp_path / "a.zip")) == ["fine"]


def test_readers_are_imported_without_torch():
    """They have to be quick, because commands read files before they need a model."""
    code = (
        "import sys, types; package = types.ModuleType('hf_tfm'); package.__path__ = [sys.argv[1]]\n"
        "sys.modules['hf_tfm'] = package\n"
        "import hf_tfm.data.files, hf_tfm.data.tables, hf_tfm.data.plain_text, hf_tfm.data.encodings\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'pandas', 'pyarrow') if name in sys.modules])"
    )
    package = Path(__file__).parents[2] / "hf_tfm"
    found = subprocess.run([sys.executable, "-c", code, str(package)], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
