"""`hf-tfm refresh` brings the code of a saved folder up to date, and nothing else."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import build, build_tokenizer

import hf_tfm
from hf_tfm import TfmEncoderDecoderModel
from hf_tfm.apps import cli
from hf_tfm.artifacts import refresh, verify_checks
from hf_tfm.core.checkpoints import MARKER, atomic_checkpoint, is_complete
from hf_tfm.core.errors import InputError


MODELS = Path(hf_tfm.__file__).parent / "models"
OLD_FILE = "modeling_tfm_generation.py"  # which folders of version 0.1 carry


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def make_old(folder: Path) -> None:
    """Change a folder to one of an earlier version: other code, an obsolete file, half an auto_map, card and record."""
    for file in folder.glob("modeling_tfm*.py"):
        file.write_text("raise ImportError('written for another transformers')\n")
    (folder / OLD_FILE).write_text("")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": config["auto_map"]["AutoConfig"]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "README.md").write_text("My card.\n")
    (folder / "run_record.json").write_text(json.dumps({"job": "a job", "versions": {"transformers": "5.20.0"}}))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    build("TfmDecoderForCausalLM").save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    make_old(folder)
    return folder


def test_refresh_replaces_code_only(folder, capsys):
    before = contents(folder)
    assert cli.main(["refresh", str(folder), "--dry-run"]) == 0
    assert contents(folder) == before and f"would be removed    {OLD_FILE}" in capsys.readouterr().out

    assert cli.main(["refresh", str(folder)]) == 0
    shown, after = capsys.readouterr().out, contents(folder)
    assert "clean process      ok" in shown and f"removed    {OLD_FILE}" in shown
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    code = {name for name in before if name.startswith("modeling_tfm")}
    assert changed == {*code, "config.json", "tokenizer_config.json", "run_record.json"}
    for name in {"configuration_tfm.py", *code} - {OLD_FILE}:
        assert after[name] == (MODELS / name).read_bytes()
    assert "AutoModelForCausalLM" in json.loads(after["config.json"])["auto_map"]

    assert cli.main(["refresh", str(folder)]) == 0
    assert "is up to date" in capsys.readouterr().out and contents(folder) == after


@pytest.fixture
def in_process(monkeypatch):
    """Skip the slowest check, which the test above runs."""
    monkeypatch.delitem(verify_checks.CHECKS, "clean process")


def test_the_record_gets_the_verified_versions(folder, in_process):
    refresh.refresh(folder)
    record = json.loads((folder / "run_record.json").read_text())
    assert record["job"] == "a job" and len(record["reference"]["outputs"]["tokens"]) == 24
    assert [each.keys() for each in record["verified_with"]] == [{"hf-tfm", "transformers", "torch"}]
    record["reference"]["outputs"]["tokens"][3] += 1
    (folder / "run_record.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="is unchanged, because reference fails"):
        refresh.refresh(folder)


@pytest.mark.parametrize("name", ["TfmEncoderForQuestionAnswering", "TfmEncoderForMaskedLM"])
def test_encoders(name, tmp_path, in_process):
    build(name).save_pretrained(tmp_path / "model")
    build_tokenizer().save_pretrained(tmp_path / "model")
    make_old(tmp_path / "model")
    assert refresh.refresh(tmp_path / "model").removed == [OLD_FILE]
    reference = json.loads((tmp_path / "model/run_record.json").read_text())["reference"]
    assert all(reference["outputs"].values())


def test_encoder_decoder_models_are_refreshed(tmp_path, in_process):
    decoder = build("TfmDecoderForCausalLM", add_cross_attention=True)
    model = TfmEncoderDecoderModel(encoder=build("TfmEncoderModel"), decoder=decoder)
    model.config.decoder_start_token_id, model.config.pad_token_id = 1, 0
    model.save_pretrained(tmp_path / "model")
    build_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "model/modeling_tfm.py").write_text("")
    assert "modeling_tfm.py" in refresh.refresh(tmp_path / "model").replaced


def test_a_model_that_fails_a_check_stays_unchanged(folder, in_process):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    before = contents(folder)
    with pytest.raises(InputError, match="is unchanged, because loading fails"):
        refresh.refresh(folder)
    assert contents(folder) == before and [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_checkpoint_stays_complete(folder, tmp_path, in_process):
    with atomic_checkpoint(tmp_path / "checkpoint-3") as staging:
        shutil.copytree(folder, staging, dirs_exist_ok=True)
        torch.save({"step": 3}, staging / "optimizer.pt")
    refresh.refresh(tmp_path / "checkpoint-3")
    assert is_complete(tmp_path / "checkpoint-3")
    assert OLD_FILE not in json.loads((tmp_path / "checkpoint-3" / MARKER).read_text())


def test_adapters_get_tokenizer_files_for_all_versions(folder, tmp_path, capsys):
    adapted = get_peft_model(build("TfmDecoderForCausalLM"), LoraConfig())
    adapted.save_pretrained(tmp_path / "adapter")
    build_tokenizer().save_pretrained(tmp_path / "adapter")
    assert cli.main(["refresh", str(tmp_path / "adapter")]) == 0
    assert capsys.readouterr().out == "replaced   tokenizer_config.json\n"


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda config: config.update(model_type="llama"), "needs no code of this package"),
        (lambda config: config.update(auto_map={"AutoModel": "mine.Model"}), "names mine.Model"),
        (None, "config.json"),
    ],
)
def test_other_folders_are_refused(folder, change, words, capsys):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    if change is not None:
        change(config)
        (folder / "config.json").write_text(json.dumps(config))
    before = contents(folder)
    assert cli.main(["refresh", str(folder)]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and contents(folder) == before
