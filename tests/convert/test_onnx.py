"""ONNX graphs: any batch, any length, padding and cache, in ONNX Runtime; and the code on the card."""

import contextlib
import importlib.util
import io
import re

import pytest
import torch
from tiny import build, build_tokenizer
from transformers import GenerationConfig

from hf_tfm.convert.export import export
from hf_tfm.core.errors import InputError


DECODER = "TfmDecoderForCausalLM"


@pytest.fixture
def packages():
    for name in ("onnx", "onnxscript", "onnxruntime", "transformers.exporters"):
        pytest.importorskip(name)
    pytest.importorskip("torch", minversion="2.11", reason="transformers' ONNX exporter asks for torch 2.11")


def save(folder, name, shape):
    model = build(name, shape)
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return model


def code_of(card):
    return re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]


@pytest.mark.parametrize("shape", ["qwen3", pytest.param("mixed", marks=pytest.mark.slow)])
def test_decoders_continue_from_their_cache(packages, shape, tmp_path, monkeypatch):
    model = save(tmp_path / "model", DECODER, shape)
    (check,) = export(tmp_path / "model", tmp_path / "out", "onnx").checks
    assert check.max_difference < 1e-4 and check.greedy_same == check.greedy_tokens == 3 * 24

    # What the card shows, with onnxruntime alone: 40 tokens, well beyond the window of `mixed`.
    tokenizer = build_tokenizer()
    prompt = tokenizer("Once upon a time", return_tensors="pt")["input_ids"]
    settings = GenerationConfig(max_new_tokens=40, do_sample=False)
    model.generation_config = GenerationConfig()
    expected = tokenizer.decode(model.generate(prompt, generation_config=settings)[0])
    monkeypatch.chdir(tmp_path / "out")
    code, printed = code_of((tmp_path / "out/README.md").read_text()), io.StringIO()
    assert "torch" not in code and "hf_tfm" not in code
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    assert printed.getvalue().strip() == expected.strip()


HEADS = [
    ("TfmEncoderForSequenceClassification", "bert"),
    ("TfmEncoderModel", "bert"),
    ("TfmEncoderForMaskedLM", "modernbert"),
    ("TfmEncoderForQuestionAnswering", "default"),
    ("TfmEncoderForMultipleChoice", "bert"),
    ("TfmEncoderForTokenClassification", "none"),
    ("TfmEncoderForPreTraining", "bert"),
    (DECODER, "gpt2"),
    (DECODER, "none"),
    ("TfmDecoderModel", "llama"),
    ("TfmDecoderForMaskedLM", "qwen3"),
    ("TfmDecoderForSequenceClassification", "mistral"),
]


@pytest.mark.parametrize(
    "name, shape", [HEADS[0], *(pytest.param(*head, marks=pytest.mark.slow) for head in HEADS[1:])]
)
def test_every_head_reads_padded_batches(packages, name, shape, tmp_path, monkeypatch, capsys):
    """Compares a batch of three lengths with single rows in torch."""
    save(tmp_path / "model", name, shape)
    (check,) = export(tmp_path / "model", tmp_path / "out", "onnx").checks
    assert check.max_difference < 1e-4 and check.same_choice in (None, 1)
    if name != "TfmEncoderForMultipleChoice":
        monkeypatch.chdir(tmp_path / "out")
        exec(code_of((tmp_path / "out/README.md").read_text()), {})
        assert ("[CLS]" if name == DECODER else "tensor(") in capsys.readouterr().out


def test_obstacles_are_reported_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: None if name == "onnxruntime" else True)
    build("TfmEncoderModel").save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match=r"needs the package onnxruntime: pip install 'hf-tfm\[export\]'"):
        export(tmp_path / "model", tmp_path / "out", "onnx")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: True)
    build(DECODER, add_cross_attention=True).save_pretrained(tmp_path / "crossed")
    with pytest.raises(InputError, match="add_cross_attention=True: the ONNX export supports"):
        export(tmp_path / "crossed", tmp_path / "out", "onnx")
    longrope = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 32}
    for kind, fields in (("dynamic", {}), ("longrope", longrope)):
        rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0, **fields}
        build(DECODER, "qwen3", rope_parameters=rope).save_pretrained(tmp_path / kind)
        with pytest.raises(InputError, match=f"rope_type {kind}: its frequencies depend on the length of the text"):
            export(tmp_path / kind, tmp_path / "out", "onnx")
    assert not (tmp_path / "out").exists() and torch.is_grad_enabled()
