"""The plan's formulas against models that are really built, and against published runs."""

import pytest
import torch

from hf_tfm import InputError, TfmDecoderConfig, TfmDecoderForCausalLM
from hf_tfm.planning import count_parameters, plan


@pytest.mark.parametrize("preset", ["nano", "small", "large", "gpt2", "llama", "qwen3"])
def test_parameters_are_those_of_the_model(preset):
    config = TfmDecoderConfig.preset(preset)
    with torch.device("meta"):
        real = TfmDecoderForCausalLM(config).num_parameters()
    assert count_parameters(config) == pytest.approx(real, rel=0.01)


@pytest.mark.parametrize("preset", ["gpt2", "vaswani2017", "llama", "qwen3", "mistral"])
@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"attention_bias": True, "mlp_bias": True},
        {"embedding_norm": True},
        {"type_vocab_size": 3},
        {"attention_gate": True, "value_residual": True},
    ],
)
def test_parameters_of_small_ones_are_exact(preset, switches):
    """There biases, norms and learned positions weigh: an eighth of a nano GPT-2 with a vocabulary of 1,000."""
    config = TfmDecoderConfig.preset(preset, "nano", vocab_size=1000, **switches)
    with torch.device("meta"):
        real = TfmDecoderForCausalLM(config).num_parameters()
    assert count_parameters(config) == real


def test_a_published_run():
    # GPT-2 124M on 10 billion tokens takes some 8.5e18 operations (6ND with the attention at 1,024 tokens).
    config = TfmDecoderConfig.preset("gpt2", vocab_size=50304)
    found = plan(config, "a100", tokens=10e9, devices=8, rows=16, utilisation=0.5)
    assert found.compute == pytest.approx(8.5e18, rel=0.05)
    assert found.hours == pytest.approx(8.5e18 / (8 * 312e12 * 0.5) / 3600, rel=0.05)
    assert found.fits


def test_sharding_and_checkpointing_save_memory_and_checkpointing_costs_a_third():
    config = TfmDecoderConfig.preset("mistral")
    plain = plan(config, "h100", tokens=1e9, devices=8)
    sharded = plan(config, "h100", tokens=1e9, devices=8, sharded=True)
    both = plan(config, "h100", tokens=1e9, devices=8, sharded=True, checkpointing=True)
    assert not plain.fits and "DOES NOT FIT" in str(plain)
    assert both.memory_per_device < sharded.memory_per_device < plain.memory_per_device
    assert both.hours == pytest.approx(sharded.hours * 4 / 3)
    assert both.fits and "FSDP2, activation checkpointing" in str(both)


def test_default_tokens_follow_chinchilla():
    config = TfmDecoderConfig.preset("small")
    assert plan(config, "l4").tokens == 20 * count_parameters(config)


@pytest.mark.parametrize(
    "mistake, said",
    [({"device": "abacus"}, "device 'abacus'"), ({"tokens": 0}, "tokens must be"), ({"optimizer": "sgd"}, "optimizer"),
     ({"utilisation": 2}, "utilisation")],
)  # fmt: skip
def test_mistakes_are_named(mistake, said):
    with pytest.raises(InputError, match=said):
        plan(TfmDecoderConfig.preset("nano"), **{"device": "l4", **mistake})
