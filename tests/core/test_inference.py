"""A model as it is measured."""

import pytest
import torch
from tiny import build

from hf_tfm.core.inference import evaluation_mode, is_bidirectional, unwrap_adapter


pytestmark = pytest.mark.quick


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_mode_ends_with_the_block_even_after_an_error(training):
    model = torch.nn.Dropout(0.5).train(training)
    with pytest.raises(KeyError), evaluation_mode(model):
        assert not model.training and not torch.is_grad_enabled()
        raise KeyError
    assert model.training is training and torch.is_grad_enabled()


def test_the_model_inside_an_adapter_keeps_the_adapters_layers():
    from peft import LoraConfig, get_peft_model

    model = build("TfmDecoderForCausalLM")
    assert unwrap_adapter(model) is model
    wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    assert unwrap_adapter(wrapped) is model and any("lora_A" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize(("name", "expected"), [("TfmEncoderModel", True), ("TfmDecoderForCausalLM", False)])
def test_a_model_is_bidirectional_if_its_tokens_see_later_ones(name, expected):
    model = build(name).train()
    assert is_bidirectional(model) is expected and model.training
