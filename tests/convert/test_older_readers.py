"""Exports and tokenizers opened by transformers 4, by stock Auto classes that are told nothing: the same outputs."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tiny import PAD, VOCAB_SIZE, build, build_tokenizer
from transformers import AutoTokenizer

from hf_tfm.apps.cli import main as cli
from hf_tfm.artifacts.native_families import FAMILIES
from hf_tfm.artifacts.tokenizer_files import mend_tokenizer_files, save_tokenizer
from hf_tfm.convert.native import export_folder, import_model, load_tfm
from hf_tfm.data.tokenizer import train_tokenizer


OLDER = os.environ.get("HF_TFM_V4_PYTHON")
with_older = pytest.mark.skipif(not OLDER, reason="HF_TFM_V4_PYTHON names no Python with transformers 4")
READER = Path(__file__).parents[1] / "helpers" / "older_reader.py"


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


YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16}
SCALED = {
    "linear": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0},
    "yarn": YARN,
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 700.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 500.0,
        "factor": 3.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.0, 2.0, 3.0, 4.0],
        "original_max_position_embeddings": 16,
    },
}
BASE = {"rope_type": "default", "rope_theta": 70.0}
MIXED = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
EVERY_THIRD = ["full_attention", "sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
TWO_BASES = {"full_attention": {**BASE, "rope_theta": 300.0}, "sliding_attention": {**BASE, "rope_theta": 20.0}}
TWO_YARNS = {name: {**YARN, "rope_theta": each["rope_theta"]} for name, each in TWO_BASES.items()}


def layers(layer_types: list[str], **fields: Any) -> dict:
    return {"layer_types": layer_types, "num_hidden_layers": len(layer_types), "sliding_window": 3, **fields}


# Name of the export: its family, class, shape and switches.
EXPORTS: dict[str, tuple[str, str, str, dict]] = {
    "gpt2": ("gpt2", "TfmDecoderForCausalLM", "gpt2", {}),
    "gpt2 labels": ("gpt2", "TfmDecoderForTokenClassification", "gpt2", {"intermediate_size": 128}),
    "llama": ("llama", "TfmDecoderForCausalLM", "llama", {"rope_parameters": BASE}),
    "llama, no tokens": ("llama", "TfmDecoderForCausalLM", "llama", {"bos_token_id": None, "eos_token_id": None}),
    "llama questions": ("llama", "TfmDecoderForQuestionAnswering", "llama", {"rope_parameters": BASE}),
    "qwen3": ("qwen3", "TfmDecoderForCausalLM", "qwen3", {"rope_parameters": BASE}),
    "qwen3 windows": ("qwen3", "TfmDecoderForCausalLM", "qwen3", layers(MIXED, rope_parameters=BASE)),
    "qwen3 classes": ("qwen3", "TfmDecoderForSequenceClassification", "qwen3", layers(MIXED)),
    "mistral": ("mistral", "TfmDecoderForCausalLM", "mistral", {"rope_parameters": BASE}),
    "bert": ("bert", "TfmEncoderForPreTraining", "bert", {}),
    "bert masked": ("bert", "TfmEncoderForMaskedLM", "bert", {"tie_word_embeddings": False}),
    "bert classes": ("bert", "TfmEncoderForSequenceClassification", "bert", {"num_labels": 5}),
    "modernbert": ("modernbert", "TfmEncoderForMaskedLM", "modernbert", layers(EVERY_THIRD, rope_parameters=TWO_BASES)),
    "modernbert full": ("modernbert", "TfmEncoderForMaskedLM", "default", {"rope_parameters": BASE}),
    "modernbert first": ("modernbert", "TfmEncoderModel", "modernbert", layers(MIXED[:3], rope_parameters=TWO_BASES)),
    "modernbert yarn": ("modernbert", "TfmEncoderForMaskedLM", "modernbert", {"rope_parameters": TWO_YARNS}),
    "modernbert tags": ("modernbert", "TfmEncoderForTokenClassification", "modernbert", {"num_labels": 7}),
    **{
        f"{family} {kind}": (family, "TfmDecoderForCausalLM", family, {"rope_parameters": rope})
        for family in ("llama", "qwen3", "mistral")
        for kind, rope in SCALED.items()
    },
}  # fmt: skip
# Exports that transformers 4 has no fields for: a part of what the report says.
UNREADABLE: dict[str, tuple[str, str, str, dict]] = {
    "layer_types": ("modernbert", "TfmEncoderForMaskedLM", "modernbert", layers(["sliding_attention"] * 2)),
    "rope_parameters": (
        "modernbert",
        "TfmEncoderForMaskedLM",
        "modernbert",
        {"rope_parameters": {"full_attention": YARN, "sliding_attention": BASE}},
    ),
}


def rows_for(family: str, head: str) -> list[dict]:
    """A row longer than any window, original length and most positions here, and two of which one is padded."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(PAD + 1, VOCAB_SIZE, (2, 60), generator=generator)
    mask = torch.ones_like(ids)
    left = FAMILIES[family].side == "decoder" and "Classification" not in head
    columns = slice(0, 17) if left else slice(43, None)
    ids[1, columns], mask[1, columns] = PAD, 0
    padded = {"input_ids": ids, "attention_mask": mask}
    if left:
        padded["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    alone = {"input_ids": torch.randint(PAD + 1, VOCAB_SIZE, (1, 60), generator=generator)}
    short = {"input_ids": alone["input_ids"][:, :9]}
    # Dynamic scaling begins behind the last position; a shorter row comes after it.
    longer = torch.randint(PAD + 1, VOCAB_SIZE, (1, 90), generator=generator)
    rows = [padded, alone, *([{"input_ids": longer}] if family in ("llama", "qwen3", "mistral") else []), short]
    return [{name: value.tolist() for name, value in row.items()} for row in rows]


def exported(folder: Path, name: str, family: str, class_name: str, shape: str, switches: dict) -> Path:
    """The folder of an export, with a tokenizer; the source stands beside it."""
    name = name.replace(",", "").replace(" ", "_")
    build(class_name, shape, **switches).save_pretrained(folder / "ours" / name)
    save_tokenizer(build_tokenizer(), folder / "ours" / name)
    export_folder(folder / "ours" / name, folder / "native" / name, family)
    return folder / "native" / name


def source_of(export: Path) -> Path:
    return export.parents[1] / "ours" / export.name


def auto_class_of(class_name: str) -> str:
    return tiny.MODELS[class_name]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("exports")
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = exported(root, name, *{**EXPORTS, **UNREADABLE}[name])
        return made[name]

    return folder


@with_older
def test_transformers_4_computes_the_same(folders, tmp_path):
    requests = [
        {
            "folder": str(folders(name)),
            "auto_class": auto_class_of(class_name),
            "texts": ["the cat sat on the mat", "[CLS] rain [SEP] fell [MASK]", ""],
            "rows": rows_for(family, class_name),
        }
        for name, (family, class_name, *_) in EXPORTS.items()
    ]
    wrong = {}
    for name, request, answer in zip(EXPORTS, requests, ask(OLDER, tmp_path, requests), strict=True):
        if "error" in answer:
            wrong[name] = answer["error"]
            continue
        assert not answer["missing"] and answer["ids"] == build_tokenizer()(request["texts"])["input_ids"], name
        ours = load_tfm(source_of(folders(name))).eval()
        for row, found in zip(request["rows"], answer["outputs"], strict=True):
            inputs = {key: torch.tensor(value) for key, value in row.items()}
            real = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
            with torch.no_grad():
                expected = ours(**inputs)
            for key, value in found.items():
                error = (expected[key] - torch.tensor(value)).abs()
                error = error[real] if error.shape[:2] == real.shape else error
                if not error.max() <= 1e-4:
                    wrong[name, key, tuple(real.shape)] = error.max().item()
        if answer["said"]:
            wrong[name, "said"] = answer["said"]
    assert not wrong


@with_older
def test_transformers_4_raises_without_a_matching_field(folders, tmp_path):
    requests = [
        {"folder": str(folders(name)), "auto_class": auto_class_of(class_name)}
        for name, (_, class_name, *_) in UNREADABLE.items()
    ]
    assert all("TypeError" in answer.get("error", "") for answer in ask(OLDER, tmp_path, requests))


@pytest.mark.parametrize("name", UNREADABLE)
def test_the_report_names_obstacles_for_transformers_4(folders, name, tmp_path, capsys):
    family, *_ = UNREADABLE[name]
    report = json.loads((folders(name) / "export_check.json").read_text())
    assert len(report["unreadable_before_5"]) == 1 and name in report["unreadable_before_5"][0]
    source = source_of(folders(name))
    assert cli(["export", str(source), str(tmp_path / "again"), "--to", family]) == 0
    assert f"transformers before 5 cannot build this model: {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", EXPORTS)
def test_fields_of_both_versions_agree(folders, name, tmp_path):
    """The fields of one version alone describe the model, and so do those of both."""
    folder, family = folders(name), FAMILIES[EXPORTS[name][0]]
    assert json.loads((folder / "export_check.json").read_text())["unreadable_before_5"] == []
    fields = json.loads((folder / "config.json").read_text())
    assert fields["torch_dtype"] == fields["dtype"]
    ours = load_tfm(source_of(folder))
    inputs = {key: torch.tensor(value) for key, value in rows_for(EXPORTS[name][0], EXPORTS[name][1])[0].items()}
    older = {"rope_theta", "rope_scaling", "global_rope_theta", "local_rope_theta", "global_attn_every_n_layers"}
    newer = {"rope_parameters"} | ({"layer_types"} if family.title == "ModernBERT" else set())
    for left_out in (set(), newer, {*older, "torch_dtype", "original_max_position_embeddings"}):
        part = tmp_path / f"without{len(left_out)}"
        part.mkdir()
        (part / "config.json").write_text(json.dumps({k: v for k, v in fields.items() if k not in left_out}))
        (part / "model.safetensors").symlink_to(folder / "model.safetensors")
        model = import_model(part)
        with torch.no_grad():
            first, second = ours(**inputs), model(**inputs)
        key = next(iter(second.keys()))
        assert (first[key] - second[key]).abs().max() < 1e-5, left_out
        assert model.config.layer_types == ours.config.layer_types


def test_known_fields_of_transformers_4(folders):
    def fields(name):
        return json.loads((folders(name) / "config.json").read_text())

    assert fields("llama")["rope_theta"] == 70.0 and fields("llama")["rope_scaling"] is None
    llama3 = {key: value for key, value in SCALED["llama3"].items() if key != "rope_theta"}
    assert fields("llama llama3")["rope_theta"] == 700.0 and fields("llama llama3")["rope_scaling"] == llama3
    assert fields("qwen3 longrope")["original_max_position_embeddings"] == 16
    modernbert = fields("modernbert")
    assert (modernbert["global_rope_theta"], modernbert["local_rope_theta"]) == (300.0, 20.0)
    assert (modernbert["global_attn_every_n_layers"], modernbert["local_attention"]) == (3, 6)
    assert fields("modernbert full")["global_attn_every_n_layers"] == 1
    assert fields("modernbert first")["global_attn_every_n_layers"] == 3
    windows = fields("qwen3 windows")
    assert windows["use_sliding_window"] and windows["sliding_window"] == 3 and windows["layer_types"] == MIXED


# Tokenizers


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


def test_tokenizer_files_of_version_5_are_rewritten_once(tmp_path):
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
    root = Path(__file__).parents[2]
    files = [*root.glob("hf_tfm/**/*.py"), *root.glob("training/*.py")]
    saved = re.compile(r"(tokenizer|trained|AutoTokenizer\.from_pretrained\(.*\))\.save_pretrained\(")
    assert [file.name for file in files if saved.search(file.read_text(encoding="utf-8"))] == ["tokenizer_files.py"]


def test_another_librarys_tokenizer_keeps_its_offsets(tmp_path):
    save_tokenizer(build_tokenizer(), tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    assert read("a cat", return_offsets_mapping=True)["offset_mapping"][2][0] == 1
    assert read.backend_tokenizer.to_str() == build_tokenizer().backend_tokenizer.to_str()


def test_this_version_reads_tokenizers_without_warnings(tokenizers, tmp_path):
    """Neither beside a native configuration nor without one."""
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
