"""Initialization: every layer starts as the identity."""

import math

import pytest
import tiny
import torch
from optimizer_families import FAMILIES
from transformers import MambaConfig, MambaForCausalLM

from hf_tfm.train.initialization import zero_init_output_projections
from hf_tfm.train.parameters import parameter_kinds


pytestmark = pytest.mark.quick


@pytest.mark.parametrize(
    "family, zero",
    [
        ("llama", {"o_proj", "down_proj"}),
        ("qwen3", {"o_proj", "down_proj"}),
        ("gpt2", {"c_proj"}),
        ("bert", {"attention.output.dense", "output.dense"}),
        ("modernbert", {"attn.Wo", "mlp.Wo"}),
        ("decoder", {"o_proj", "down_proj"}),
        ("encoder", {"o_proj", "down_proj"}),
        ("opt", {"out_proj", "fc2"}),
        ("distilbert", {"out_lin", "lin2"}),
        ("albert", {"attention.dense", "ffn_output"}),
        ("bloom", {"self_attention.dense", "dense_4h_to_h"}),
        ("mixtral", {"o_proj", "experts.down_proj"}),
        ("gpt_oss", {"o_proj", "experts.down_proj"}),
    ],
)
def test_layers_start_as_the_identity(family, zero):
    model = FAMILIES[family]()
    zeroed = zero_init_output_projections(model)
    assert len(zeroed) == (2 if family == "albert" else 4)  # two a layer; ALBERT has one for all
    assert all(any(name.endswith(ending) for ending in zero) for name in zeroed)
    for name, parameter in model.named_parameters():
        if name.removesuffix(".weight") in zeroed:
            assert parameter.abs().max() == 0
        elif parameter_kinds(model)[name] == "matrices":
            transposed = family == "gpt2" or (family == "gpt_oss" and "experts" in name)
            inputs = parameter.shape[-2 if transposed else -1]
            assert parameter.std().item() == pytest.approx(0.6 / math.sqrt(inputs), rel=0.15)


def test_gates_start_half_open():
    model = tiny.build("TfmDecoderForCausalLM", attention_gate=True)
    gates = [name for name in dict(model.named_parameters()) if "head_gate" in name]
    assert len(gates) == 2 and {parameter_kinds(model)[name] for name in gates} == {"matrices"}
    assert all(model.get_parameter(name).any() for name in gates)
    zero_init_output_projections(model)
    assert not any(model.get_parameter(name).any() for name in gates)


def test_states_with_rules_of_their_own_are_not_changed():
    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4))
    initial = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    assert zero_init_output_projections(model)
    states = [name for name in initial if name.endswith(("A_log", ".D", "dt_proj.bias")) or "conv1d" in name]
    assert len(states) == 10 and all(torch.equal(initial[name], model.get_parameter(name)) for name in states)
