"""The chunked cross-entropy gives the numbers of logits and softmax, in every head that offers `skip_logits`."""

import copy

import pytest
import torch
from tiny import build, inputs_for, random_ids
from torch.nn import functional as F

from hf_tfm.models import modeling_tfm_loss
from hf_tfm.models.modeling_tfm_loss import linear_cross_entropy


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("items", [None, 1000])
@pytest.mark.parametrize("buffered", [1, 512 * 97, 1 << 24])
def test_linear_cross_entropy_equals_logits_and_softmax(bias, softcap, items, buffered, monkeypatch):
    """With the weights' gradient added up every 256 rows, every 512, and at the end."""
    monkeypatch.setattr(modeling_tfm_loss, "_BUFFERED_GRADIENTS", buffered)
    torch.manual_seed(0)
    layer = torch.nn.Linear(16, 97, bias=bias)
    states = torch.randn(6, 200, 16)
    labels = torch.randint(0, 97, (6, 200)).masked_fill(torch.rand(6, 200) < 0.3, -100)

    def gradients(loss_of):
        copied, inputs = copy.deepcopy(layer), states.clone().requires_grad_()
        loss = loss_of(copied, inputs)
        (3 * loss).backward()
        return [loss.detach(), inputs.grad, *(p.grad for p in copied.parameters())]

    def plain(output_layer, inputs):
        logits = output_layer(inputs)
        logits = logits if softcap is None else torch.tanh(logits / softcap) * softcap
        total = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        return total / (items or (labels != -100).sum())

    chunked = gradients(lambda output_layer, inputs: linear_cross_entropy(inputs, output_layer, labels, items, softcap))
    for actual, expected in zip(chunked, gradients(plain), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("items", [None, 0, torch.tensor(0)])
def test_linear_cross_entropy_without_labels_is_zero(items):
    layer, states = torch.nn.Linear(8, 16), torch.randn(2, 3, 8, requires_grad=True)
    loss = linear_cross_entropy(states, layer, torch.full((2, 3), -100), items)
    loss.backward()
    assert loss == 0 and not states.grad.any() and not layer.weight.grad.any() and not layer.bias.grad.any()


def test_linear_cross_entropy_with_a_frozen_output_layer():
    layer = torch.nn.Linear(8, 11).requires_grad_(False)
    states = torch.randn(4, 8, requires_grad=True)
    linear_cross_entropy(states, layer, torch.tensor([1, 2, -100, 3])).backward()
    assert layer.weight.grad is None and states.grad[2].abs().sum() == 0 and states.grad[0].abs().sum() > 0


@pytest.mark.parametrize("name", ["TfmDecoderForCausalLM", "TfmEncoderForMaskedLM", "TfmEncoderForPreTraining"])
@pytest.mark.parametrize("items", [None, 100])
def test_skip_logits_gives_the_same_loss(name, items):
    model, inputs = build(name).train(), inputs_for(name)
    inputs["num_items_in_batch"] = items
    outputs = model(**inputs, skip_logits=True)
    assert "logits" not in outputs and "prediction_logits" not in outputs
    torch.testing.assert_close(outputs.loss, model(**inputs).loss)


def test_skip_logits_takes_shifted_labels():
    model, ids = build("TfmDecoderForCausalLM"), random_ids(2, 8)
    shifted = random_ids(2, 8, seed=5)
    with torch.no_grad():
        with_logits, without_logits = (
            model(ids, labels=ids, shift_labels=shifted, skip_logits=skip).loss for skip in (False, True)
        )
    torch.testing.assert_close(without_logits, with_logits)
    for name in ("TfmDecoderForCausalLM", "TfmEncoderForMaskedLM"):
        with pytest.raises(ValueError, match="needs labels"):
            build(name)(ids, skip_logits=True)
