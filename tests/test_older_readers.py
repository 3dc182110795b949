"""Tokenizers opened by transformers 4, by stock Auto classes that are told nothing: the same ids."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from tiny import build, build_tokenizer
from transformers import AutoTokenizer

from hf_tfm.tokenization import mend_tokenizer_files, save_tokenizer, train_tokenizer


OLDER = os.environ.get("HF_TFM_V4_PYTHON")
with_older = pytest.mark.skipif(not OLDER, reason="HF_TFM_V4_PYTHON names no Python with transformers 4")
READER = Path(__file__).with_name("older_reader.py")


def ask(python: str, folder: Path, requests: list[dict], **environment: str) -> list[dict]:
    """What a Python with its own transformers reads."""
    (folder / "requests.json").write_text(json.dumps(requests))
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        [python, READER, folder / "requests.json", folder / "answers.json"],
        check=True,
        stdin=subprocess.DEVNULL,
        env={**variables, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", **environment},
    )
    return json.loads((folder / "answers.json").read_text())["answers"]


TEXTS = [
    "The old house stood  at the end.\n\n  Nobody lived there; 37 years!",
    "<|bos|> [MASK] <|user|>hi<|end|> <|spare_3|> [CLS] [SEP] <|mask|>",
    "Ünïcode 🙂 été",
    "",
]
CHAT = [{"role": "user", "content": "who?"}, {"role": "assistant", "content": " me"}]
KINDS = [(kind, style) for kind in ("bpe", "wordpiece", "bytes") for style in ("decoder", "encoder")]
SIZES = {"bpe": 400, "wordpiece": 200, "bytes": 8192}


def made_tokenizer(kind: str, style: str):
    return train_tokenizer(tiny.CORPUS, kind, vocab_size=SIZES[kind], style=style, min_frequency=1)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> dict[tuple[str, str], Path]:
    """Tokenizers beside the configuration of a model of this package, as runs write them."""
    root = tmp_path_factory.mktemp("tokenizers")
    for kind, style in KINDS:
        folder = root / f"{kind}-{style}"
        build(f"Tfm{style.title()}Model", vocab_size=8192).save_pretrained(folder)
        save_tokenizer(made_tokenizer(kind, style), folder)
    return {(kind, style): root / f"{kind}-{style}" for kind, style in KINDS}


def expected_of(tokenizer) -> dict:
    ids = tokenizer(TEXTS)["input_ids"]
    return {
        "ids": ids,
        "padded": dict(tokenizer(TEXTS, padding=True)),
        "decoded": tokenizer.batch_decode(ids),
        "skipped": tokenizer.batch_decode(ids, skip_special_tokens=True),
        "special": sorted(tokenizer.all_special_tokens),
        "named": tokenizer.special_tokens_map,
    }


@with_older
def test_transformers_4_opens_the_tokenizers(tokenizers, tmp_path):
    requests = [
        {"folder": str(folder), "texts": TEXTS, "chat": CHAT if style == "decoder" else None}
        for (_, style), folder in tokenizers.items()
    ]
    for (kind, style), request, answer in zip(tokenizers, requests, ask(OLDER, tmp_path, requests), strict=True):
        tokenizer = made_tokenizer(kind, style)
        assert answer["said"] == [], (kind, style)
        expected = expected_of(tokenizer)
        if style == "decoder":
            expected["chat"] = tokenizer.apply_chat_template(CHAT, tokenize=False)
        assert {key: answer.get(key) for key in expected} == expected, answer.get("error")
        # What version 4 has saved again is the same tokenizer here.
        again = AutoTokenizer.from_pretrained(f"{request['folder']}/again")
        assert expected_of(again) == expected_of(tokenizer)


@pytest.mark.parametrize("kind, style", KINDS)
def test_saved_tokenizers_have_no_field_of_one_version_alone(tokenizers, kind, style, tmp_path):
    folder = tokenizers[kind, style]
    fields = json.loads((folder / "tokenizer_config.json").read_text())
    assert fields["tokenizer_class"] == "PreTrainedTokenizerFast" and "extra_special_tokens" not in fields
    assert "<|spare_0|>" in fields["additional_special_tokens"] and not {"is_local", "local_files_only"} & set(fields)
    tokenizer, read = made_tokenizer(kind, style), AutoTokenizer.from_pretrained(folder)
    save_tokenizer(read, tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name
    assert expected_of(read) == expected_of(tokenizer)
    assert read.extra_special_tokens == tokenizer.extra_special_tokens
    assert read.chat_template == tokenizer.chat_template
    assert read.added_tokens_decoder == tokenizer.added_tokens_decoder


def test_a_tokenizer_of_version_5_is_mended_once(tmp_path):
    tokenizer = made_tokenizer("bpe", "encoder")
    untrimmed = tokenizer.backend_tokenizer.post_processor[1]
    old = made_tokenizer("bpe", "encoder")
    old.backend_tokenizer.post_processor = untrimmed
    old.save_pretrained(tmp_path / "old")
    (tmp_path / "link").mkdir()
    for file in (tmp_path / "old").iterdir():
        (tmp_path / "link" / file.name).symlink_to(file)
    before = {file.name: file.read_bytes() for file in (tmp_path / "old").iterdir()}
    assert mend_tokenizer_files(tmp_path / "link") and not mend_tokenizer_files(tmp_path / "link")
    assert before == {file.name: file.read_bytes() for file in (tmp_path / "old").iterdir()}, "links are replaced"
    save_tokenizer(tokenizer, tmp_path / "new")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "link" / name).read_bytes() == (tmp_path / "new" / name).read_bytes(), name
    mended = AutoTokenizer.from_pretrained(tmp_path / "link")
    assert expected_of(mended) == expected_of(tokenizer) == expected_of(AutoTokenizer.from_pretrained(tmp_path / "old"))
    assert not mend_tokenizer_files(tmp_path), "no tokenizer there"


def test_tokenizers_are_saved_in_one_place():
    root = Path(__file__).parents[1]
    files = [*root.glob("hf_tfm/**/*.py"), *root.glob("training/*.py")]
    saved = re.compile(r"(tokenizer|trained|AutoTokenizer\.from_pretrained\(.*\))\.save_pretrained\(")
    assert [file.name for file in files if saved.search(file.read_text(encoding="utf-8"))] == ["tokenization.py"]


def test_another_librarys_tokenizer_keeps_its_offsets(tmp_path):
    save_tokenizer(build_tokenizer(), tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert read("a cat", return_offsets_mapping=True)["offset_mapping"][2][0] == 1
    assert read.backend_tokenizer.to_str() == build_tokenizer().backend_tokenizer.to_str()


def test_this_version_reads_tokenizers_without_a_word(tokenizers, tmp_path):
    """Beside a native configuration, or none, it neither asks nor warns."""
    folders = []
    for (kind, style), folder in tokenizers.items():
        alone = tmp_path / f"{kind}-{style}"
        alone.mkdir()
        for file in folder.glob("*"):
            if file.name.startswith(("tokenizer", "chat_template", "special")):
                (alone / file.name).symlink_to(file)
        folders.append(alone)
    requests = [{"folder": str(folder), "texts": TEXTS} for folder in folders]
    path = os.environ.get("PYTHONPATH", "")
    for (kind, style), answer in zip(tokenizers, ask(sys.executable, tmp_path, requests, PYTHONPATH=path)):
        assert answer["said"] == [] and answer["ids"] == made_tokenizer(kind, style)(TEXTS)["input_ids"], answer
