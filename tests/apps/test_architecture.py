"""`hf-tfm inspect`: counts compared with those of the model itself, and pictures."""

import pytest
import tiny
import torch
from parity_table import native_model
from tiny import build_tokenizer
from torch.utils.flop_counter import FlopCounterMode

from hf_tfm.apps.cli import main
from hf_tfm.apps.inspect import architecture
from hf_tfm.apps.inspect.architecture import (
    ATTENTION_FILE,
    NEIGHBOURS_FILE,
    draw_attention,
    inspect_model,
    nearest_tokens,
)
from hf_tfm.core.errors import InputError


MODELS = {
    "decoder": lambda: tiny.build("TfmDecoderForCausalLM"),
    "own": lambda: tiny.build("TfmDecoderForCausalLM", attention_gate=True, value_residual=True),
    "untied": lambda: tiny.build("TfmDecoderForCausalLM", "llama"),
    "encoder": lambda: tiny.build("TfmEncoderForMaskedLM", "bert"),
    "classifier": lambda: tiny.build("TfmEncoderForSequenceClassification"),
    "base": lambda: tiny.build("TfmEncoderModel"),
    "gpt2": lambda: native_model("gpt2", "CausalLM", vocab_size=tiny.VOCAB_SIZE),
    "modernbert": lambda: native_model("modernbert", "MaskedLM", vocab_size=tiny.VOCAB_SIZE),
}


@pytest.mark.parametrize("name", MODELS)
def test_parts_contain_all_parameters(name):
    model = MODELS[name]()
    inspection = inspect_model(model)
    assert sum(inspection.parameters.values()) == model.num_parameters()
    assert "other" not in inspection.parameters, "a part has no name"
    embedding = model.get_input_embeddings().weight.numel()
    assert inspection.parameters["embeddings"] >= embedding
    if name == "own":  # the matrix that brings embeddings to the values is none of them
        assert inspection.parameters["embeddings"] == embedding and inspection.shape["gates on heads"] == "yes"
    assert ("head" in inspection.parameters) == (name not in ("decoder", "own", "base", "gpt2"))
    assert inspection.memory["weights, bf16"] == 2 * model.num_parameters()


@pytest.mark.parametrize("name", ["decoder", "own", "untied", "gpt2"])
def test_operations_equal_those_of_torchs_counter(name):
    model, length = MODELS[name](), 32
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=tiny.random_ids(1, length))
    inspection = inspect_model(model, length)
    # Rotary frequencies and the like are below a percent of a model this small.
    assert inspection.flops["forward"] * length == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert inspection.flops["training step"] == 3 * inspection.flops["forward"]


def test_a_window_bounds_the_context():
    whole, half = (inspect_model(tiny.build("TfmDecoderForCausalLM", shape), 64) for shape in ("llama", "mistral"))
    assert half.flops["of these attention"] == whole.flops["of these attention"] * 4 // 64
    assert whole.memory["cache of a token, bf16"] == 2 * 2 * 2 * 8 * 1
    assert whole.memory["cache of 64 tokens"] == 64 * whole.memory["cache of a token, bf16"]
    assert half.memory["cache of 64 tokens"] == 4 * half.memory["cache of a token, bf16"]
    # Its configuration names no kinds of layers.
    slid, full = (
        inspect_model(native_model("mistral", "CausalLM", sliding_window=window), 64).flops["of these attention"]
        for window in (4, None)
    )
    assert slid == full * 4 // 64


def test_an_encoders_window_is_on_each_side():
    # One full layer of 64 tokens, and one of two on each side of a token.
    inspection = inspect_model(tiny.build("TfmEncoderModel", "modernbert"), 64)
    assert inspection.flops["of these attention"] == 4 * 32 * (64 + 5)


def test_nearest_tokens_are_by_cosine():
    model = tiny.build("TfmDecoderForCausalLM")
    weight = model.get_input_embeddings().weight.data
    weight[50] = 3 * weight[40]
    weight[60] = -weight[40]
    (near,) = nearest_tokens(model, [40])
    assert near[0][0] == 50 and near[0][1] == pytest.approx(1) and len(near) == 8
    assert 40 not in [token for token, _ in near] and 60 not in [token for token, _ in near]


@pytest.mark.parametrize("name", ["decoder", "encoder", "gpt2"])
def test_inspect_prints_and_draws(name, tmp_path, capsys, monkeypatch):
    MODELS[name]().save_pretrained(tmp_path / name)
    build_tokenizer().save_pretrained(tmp_path / name)
    pictures = tmp_path / "pictures"
    if name != "decoder":  # rendering takes seconds, and is the same for all
        pictures.mkdir()
        monkeypatch.setattr(architecture, "save_figure", lambda figure, path: path.write_bytes(b"\x89PNG"))
    assert main(["inspect", str(tmp_path / name), "--picture", str(pictures), "--text", "the cat sat"]) == 0
    printed = capsys.readouterr().out
    for heading in ("architecture", "parameters  ", "memory", "operations for a token", "attention"):
        assert heading in printed
    for file in (ATTENTION_FILE, NEIGHBOURS_FILE):
        assert (pictures / file).read_bytes().startswith(b"\x89PNG")


def test_a_picture_of_tokens_without_embeddings_is_refused(tmp_path):
    model = tiny.build("TfmEncoderForMaskedLM", vocab_size=200)
    with pytest.raises(InputError, match="the model has embeddings of 200"):
        draw_attention(model, build_tokenizer(), "the cat", tmp_path / ATTENTION_FILE)
