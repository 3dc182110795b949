"""Damaged or malicious model folders are refused in one line, and none of their code runs."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import finetune_classification
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import build

from hf_tfm.apps import cli


TOP = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tokenizer) -> Path:
    """An intact folder."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    build("TfmDecoderForCausalLM").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def cut_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def lying_header(folder: Path) -> None:
    """A header that is longer than the file."""
    file = folder / "model.safetensors"
    file.write_bytes((2**40).to_bytes(8, "little") + file.read_bytes()[8:])


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def wrong_shape(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "q_proj" in name)
    save_file({**weights, name: weights[name][:-8].clone()}, folder / "model.safetensors", {"format": "pt"})


def missing_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop(next(name for name in weights if "q_proj" in name))
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


class Harm:
    """Writes a file when it is unpickled."""

    def __init__(self, sign: Path):
        self.sign = sign

    def __reduce__(self):
        return (open, (str(self.sign), "w"))


def pickled_harm(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"model.norm.weight": Harm(folder.parent / "HARMED")}, file)


def torch_harm(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Harm(folder.parent / "HARMED")}, folder / "pytorch_model.bin")


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def junk_config(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff")


def list_config(folder: Path) -> None:
    (folder / "config.json").write_text("[1, 2]")


def unknown_type(folder: Path) -> None:
    change_config(folder, model_type="gpt9")


def contradiction(folder: Path) -> None:
    change_config(folder, num_attention_heads=5)


def huge_vocabulary(folder: Path) -> None:
    """More tokens than the weights have."""
    change_config(folder, vocab_size=100_000)


def no_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)


def junk_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


def code_outside(folder: Path) -> None:
    """`auto_map` names a file outside the folder."""
    (folder.parent / "outside.py").write_text(f"open({str(folder.parent / 'HARMED')!r}, 'w')\nclass Config: pass\n")
    change_config(folder, model_type="stranger", auto_map={"AutoConfig": "../outside.Config"})


def untrusted_code(folder: Path) -> None:
    """Code in the folder for an unknown model type."""
    (folder / "own.py").write_text(f"open({str(folder.parent / 'HARMED')!r}, 'w')\nclass Config: pass\n")
    names = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Config"}
    change_config(folder, model_type="stranger", auto_map=names)


def change_config(folder: Path, **fields) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


BREAKS = [cut_weights, empty_weights, lying_header, no_weights, wrong_shape, missing_weight, pickled_harm, torch_harm,
          no_config, junk_config, list_config, unknown_type, contradiction, huge_vocabulary, no_tokenizer,
          junk_tokenizer, code_outside, untrusted_code]  # fmt: skip


@pytest.mark.parametrize("arguments", [["generate", "{}", "the cat"], ["inspect", "{}"]], ids=["generate", "inspect"])
@pytest.mark.parametrize("break_it", BREAKS, ids=lambda function: function.__name__)
def test_a_broken_folder_is_refused_in_one_line(whole, tmp_path, capsys, break_it, arguments):
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    break_it(folder)
    code = cli.main([argument.replace("{}", str(folder)) for argument in arguments])
    captured = capsys.readouterr()
    assert not (tmp_path / "HARMED").exists()
    assert code == 2, captured.out
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and str(folder) in lines[0], captured.err
    assert captured.out == ""


def test_an_intact_folder_is_accepted(whole, capsys):
    assert cli.main(["generate", str(whole), "the cat", "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("break_it", [cut_weights, code_outside], ids=lambda function: function.__name__)
def test_training_scripts_refuse_it(whole, tmp_path, break_it, capsys):
    folder = shutil.copytree(whole, tmp_path / "model")
    break_it(folder)
    records = tmp_path / "train.jsonl"
    records.write_text("".join(json.dumps({"text": f"word {i}", "label": i % 2}) + "\n" for i in range(20)))
    paths = ["--model", str(folder), "--train_file", str(records), "--output_dir", str(tmp_path / "out")]
    assert finetune_classification.main([*paths, "--max_steps", "1"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and str(folder) in errors[0]
    assert not (tmp_path / "HARMED").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("break_it", [pickled_harm], ids=lambda function: function.__name__)
def test_training_scripts_refuse_it_from_the_shell(whole, tmp_path, break_it):
    """The base model of a fine-tuning run, in a process of its own."""
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    break_it(folder)
    records = tmp_path / "train.jsonl"
    records.write_text("".join(json.dumps({"text": f"word {i}", "label": i % 2}) + "\n" for i in range(20)))
    script = TOP / "training" / "finetune_classification.py"
    command = [sys.executable, script, "--model", folder, "--train_file", records, "--output_dir", tmp_path / "out"]
    run = subprocess.run([*command, "--max_steps", "1"], capture_output=True, text=True, timeout=300)
    assert not (tmp_path / "HARMED").exists()
    assert run.returncode == 2, run.stdout + run.stderr
    assert "Traceback" not in run.stderr
    errors = [line for line in run.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and str(folder) in errors[0], run.stderr
    assert not (tmp_path / "out").exists()
