"""Kinds and layouts of parameters: what the optimizers treat as a matrix, and how it is stored."""

import pytest
import tiny
from optimizer_families import FAMILIES, SIZE
from transformers import LlamaConfig, LlamaForSequenceClassification

from hf_tfm.train.optim import build_optimizer
from hf_tfm.train.parameters import fused_blocks, parameter_kinds


pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    "family, expected",
    [
        (
            "llama",
            {"embed_tokens": "embeddings", "lm_head": "head", "q_proj": "matrices", "input_layernorm": "scalars"},
        ),
        ("qwen3", {"embed_tokens": "embeddings", "q_norm": "scalars", "down_proj": "matrices"}),
        ("gpt2", {"wte": "embeddings", "wpe": "embeddings", "c_attn": "matrices", "ln_f": "scalars"}),
        ("bert", {"position_embeddings": "embeddings", "pooler.dense": "matrices", "seq_relationship": "head"}),
        ("modernbert", {"tok_embeddings": "embeddings", "Wqkv": "matrices", "head.dense": "matrices"}),
        ("decoder", {"embed_tokens": "embeddings", "o_proj": "matrices", "norm": "scalars"}),
        ("encoder", {"embed_tokens": "embeddings", "up_proj": "matrices"}),
        ("mixtral", {"experts.gate_up_proj": "matrices", "experts.down_proj": "matrices", "mlp.gate": "matrices"}),
        ("gpt_oss", {"experts.gate_up_proj": "matrices", "gate_up_proj_bias": "scalars", "router": "matrices"}),
        ("llama4", {"experts.gate_up_proj": "matrices", "experts.down_proj": "matrices", "router": "matrices"}),
    ],
)
def test_kinds_of_parameters(family, expected):
    kinds = parameter_kinds(FAMILIES[family]())
    for part, kind in expected.items():
        actual = {k for name, k in kinds.items() if f".{name.removesuffix('.weight')}".endswith(f".{part}")}
        assert actual == {kind}, f"{part} is {actual}, not {kind}"


def test_frozen_parameters_have_no_kind():
    model = LlamaForSequenceClassification(LlamaConfig(**SIZE, num_labels=32))
    model.model.embed_tokens.weight.requires_grad_(False)
    assert "model.embed_tokens.weight" not in parameter_kinds(model)


def test_the_value_projection_of_embeddings_is_a_layer_matrix():
    """It is not square with grouped queries; by its shape alone it would be a head."""
    model = tiny.build("TfmDecoderForCausalLM", value_residual=True, num_key_value_heads=2)
    assert model.model.embed_values.weight.shape == (16, 32)
    assert parameter_kinds(model)["model.embed_values.weight"] == "matrices"
    assert parameter_kinds(model)["model.layers.0.self_attn.value_mix"] == "scalars"


@pytest.mark.parametrize(
    "family, module, blocks",
    [
        ("gpt2", "c_attn", (32, 32, 32)),
        ("modernbert", "Wqkv", (32, 32, 32)),
        ("modernbert", "Wi", (48, 48)),
        ("phi3", "qkv_proj", (32, 16, 16)),
        ("phi3", "gate_up_proj", (48, 48)),
    ],
)
def test_fused_projections_are_split_into_their_parts(family, module, blocks):
    model = FAMILIES[family]()
    optimizer = build_optimizer(model)
    weights = {id(p) for name, p in model.named_parameters() if f".{module}.weight" in name}
    actual = {g["blocks"] for g in optimizer.param_groups for p in g["params"] if id(p) in weights}
    assert actual == {blocks}


def test_fused_projections_that_do_not_follow_the_configuration():
    """Lightning attention has as many keys as queries, even if the configuration groups them."""
    grouped = LlamaConfig(**{**SIZE, "num_attention_heads": 8}, num_key_value_heads=1, head_dim=8)
    assert fused_blocks("model.layers.0.self_attn.qkv_proj.weight", 192, 32, grouped) == (32,) * 6
    assert fused_blocks("model.layers.0.self_attn.qkv_proj.weight", 80, 32, grouped) == (64, 8, 8)
    assert fused_blocks("model.layers.0.self_attn.qkv_proj.weight", 100, 32, grouped) is None
