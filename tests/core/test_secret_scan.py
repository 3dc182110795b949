"""What must not be published is found in any kind of file, and what only looks like it is not."""

import json

import pytest
import torch
from hub_server import TOKEN
from safetensors.torch import save_file

from hf_tfm.core.clean_process import stranger_environment
from hf_tfm.core.secret_scan import private_part, public_name


pytestmark = pytest.mark.quick


FINE = {
    "config.json": json.dumps({"url": "https://example.org/home/me/x", "name": "runs/decoder", "model_type": "hf_tfm"}),
    "README.md": "Run `/usr/bin/env python`, see https://huggingface.co/data/x or docs/tmp/x and/or ../tmp/y.",
    "run_record.json": json.dumps({"samples": ["either/or", "1/2 and 3/4"], "command": "python a.py --x=runs/tmp/y"}),
    "tokenizer.json": json.dumps({"model": {"vocab": {"/home/user": 1}}}),
    "vocab.txt": "/tmp/file\n",
    "modeling_tfm.py": "x = a /tmp/ b\n# hf_tfm and hf_hub_download\n",
    "chat_template.jinja": "{{ '</think>' }}{{ message }}/data",
}
PRIVATE = {
    "config.json": (json.dumps({"a": [{"b": "/home/someone/models/x"}]}), "/home/someone"),
    "tokenizer_config.json": (json.dumps({"name_or_path": "two\n/root/x"}), "/root/x"),
    "run_record.json": (json.dumps({"command": "python a.py --data=/mnt/disk/a.jsonl"}), "/mnt/disk"),
    "README.md": ("see `/Users/ann/x`", "/Users/ann"),
    "notes.md": ("see file:///var/lib", "/var/lib"),
    "a.yaml": ("path: 'C:\\Users\\ann\\x'", "Users"),
    "b.jsonl": (json.dumps({"a": 1}) + "\n" + json.dumps({"/tmp/key": 1}), "/tmp/key"),
    "modeling_tfm.py": (f"token = '{TOKEN}'", "access token of the Hub"),
    "tokenizer.json": (json.dumps({"x": TOKEN}), "access token of the Hub"),
    "c.txt": ("ghp_" + "a1B2" * 9, "access token of GitHub"),
    "d.txt": ("-----BEGIN RSA PRIVATE KEY-----", "private key"),
    "e.txt": ("hunter2-hunter2", "the value of SOME_API_KEY"),
    "f.json": ("{", "not JSON"),
    "picture.png": (f"\x89PNG\0\0tEXtComment\0{TOKEN}\0", "access token of the Hub"),
}


@pytest.mark.parametrize("name", FINE)
def test_what_is_public_passes(name, tmp_path):
    (tmp_path / name).write_text(FINE[name])
    assert private_part(tmp_path / name) is None


@pytest.mark.parametrize("name", PRIVATE)
def test_what_is_private_is_found_and_not_repeated(name, tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "hunter2-hunter2")
    text, found = PRIVATE[name]
    (tmp_path / name).write_text(text, encoding="latin-1")
    said = private_part(tmp_path / name)
    assert found in said and TOKEN not in said and "hunter2" not in said


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "some_api_key", "DB_PASSWORD"])
def test_secrets_go_by_the_end_of_their_name(name, tmp_path, monkeypatch):
    monkeypatch.setenv(name, "hunter2-hunter2")
    (tmp_path / "a.txt").write_text("hunter2-hunter2")
    assert private_part(tmp_path / "a.txt") == f"contains the value of {name}"
    assert name not in stranger_environment(tmp_path)


def test_a_file_is_not_called_after_its_owner(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    names = {"/data/banking77/test.jsonl": "banking77/test.jsonl", "/test.jsonl": "test.jsonl"}
    names |= {"/home/ann/test.jsonl": "test.jsonl", "/scratch/ann/test.jsonl": "test.jsonl"}
    assert {path: public_name(path) for path in names} == names
    monkeypatch.chdir("/")
    assert public_name("test.jsonl") == "test.jsonl"


def test_a_token_between_two_pieces_of_a_large_file_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_tfm.core.secret_scan._PIECE", 4096)
    (tmp_path / "log.txt").write_text("." * (4096 - 20) + " " + TOKEN + " " + "." * 9000)
    assert "access token" in private_part(tmp_path / "log.txt")


def test_weights_are_looked_at_by_their_header(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(100)}, path, {"format": "pt", "from": "/home/ann/x"})
    assert "/home/ann" in private_part(path)
    save_file({"a": torch.zeros(100)}, path, {"format": "pt"})
    assert private_part(path) is None
    path.write_bytes(path.read_bytes()[:-3])
    assert "damaged" in private_part(path)
    path.write_bytes(b"\x80\x02pickle, said to be something else")
    assert "no safetensors file" in private_part(path)
