"""The installed package: it carries the scripts, recipes and data of `training/`, and runs them from anywhere."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from hf_tfm.core.package_data import find_packaged


REPOSITORY = Path(__file__).parents[2]
TRAINING = REPOSITORY / "training"


def test_recipes_and_data_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_packaged("pretrain_clm.yaml") == str(TRAINING / "recipes/pretrain_clm.yaml")
    assert find_packaged("ablations/heads.yaml") == str(TRAINING / "recipes/ablations/heads.yaml")
    assert find_packaged("training/data/text") == str(TRAINING / "data/text")
    (tmp_path / "pretrain_clm.yaml").touch()
    for location in ("pretrain_clm.yaml", "nowhere.yaml", "hub:user/name", "hf_tfm", "../README.md", str(tmp_path)):
        assert find_packaged(location) == location


def test_the_data_that_recipes_name_is_in_the_repository():
    recipes = [*(TRAINING / "recipes").glob("*.yaml"), *(TRAINING / "recipes/ablations").glob("*.yaml")]
    for path in recipes:
        for field in yaml.safe_load(path.read_text()).values():
            for location in field if isinstance(field, list) else [field]:
                if isinstance(location, str) and location.startswith("training/"):
                    assert (REPOSITORY / location).is_file(), f"{path.name}: {location}"


@pytest.mark.slow
def test_a_wheel_trains_without_the_repository(tmp_path):
    source, installed, run = (tmp_path / name for name in ("source", "installed", "run"))
    run.mkdir()
    for name in ("hf_tfm", "training"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("hf_tfm_command.py", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, source]
    subprocess.run(build, check=True, timeout=300)
    [wheel] = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(installed)
    carried = {path.relative_to(installed / "hf_tfm/training") for path in (installed / "hf_tfm/training").rglob("*")}
    for pattern in ("*.py", "recipes/**/*.yaml", "data/*/*", "launch/*.yaml"):
        assert {path.relative_to(TRAINING) for path in TRAINING.glob(pattern)} <= carried, pattern
    for path in (REPOSITORY / "hf_tfm").rglob("*.py"):
        assert (installed / path.relative_to(REPOSITORY)).is_file()

    def command(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "hf_tfm_command", *arguments], cwd=run, capture_output=True, text=True, timeout=300,
            env={**os.environ, "PYTHONPATH": str(installed)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "--train_file" in command("train", "classification", "--help")
    command("train", "tokenizer", "--data", "training/data/text/validation.jsonl.gz", "--vocab-size", "512",
            "--output", "tokenizer")  # fmt: skip
    small = '{"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}'
    data = "training/data/text/validation.jsonl.gz"
    command("train", "clm", "quickstart_clm.yaml", "--data", data, "--tokenizer", "tokenizer", "--max_steps", "2",
            "--validation_tokens", "500", "--model_overrides", small, "--output_dir", "model")  # fmt: skip
    record = (run / "model/run_record.json").read_text()
    assert "hf-tfm train clm quickstart_clm.yaml" in record and str(tmp_path) not in record
