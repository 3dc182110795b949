"""Estimates of training costs compared with real models, optimizers and losses, and with published runs."""

import contextlib
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_tfm import InputError, TfmDecoderConfig, TfmDecoderForCausalLM, TfmEncoderConfig, TfmEncoderForMaskedLM
from hf_tfm.apps.inspect.training_cost import count_parameters, estimate_cost
from hf_tfm.models.modeling_tfm_loss import LinearLoss, chunk_cross_entropy
from hf_tfm.train.optim import build_optimizer


pytestmark = pytest.mark.quick


FAMILIES = {
    **{("decoder", name): (TfmDecoderConfig, TfmDecoderForCausalLM) for name in TfmDecoderConfig.lookalikes},
    **{("encoder", name): (TfmEncoderConfig, TfmEncoderForMaskedLM) for name in TfmEncoderConfig.lookalikes},
}


@pytest.mark.parametrize("kind, preset", FAMILIES)
@pytest.mark.parametrize("switches", [{}, {"tie_word_embeddings": False}])
def test_parameters_are_those_of_the_model(kind, preset, switches):
    config_class, model_class = FAMILIES[kind, preset]
    config = config_class.preset(preset, "nano", vocab_size=1000, **switches)
    assert count_parameters(config) == sum(weight.numel() for weight in model_class(config).parameters())


def test_an_encoder_has_a_prediction_head():
    # BERT's: a dense layer, a norm, and a bias for each token.
    embeddings = (1000 + 512 + 2) * 128 + 2 * 128
    block = 4 * (128 * 128 + 128) + 2 * 128 * 512 + 512 + 128 + 2 * 2 * 128
    head = 128 * 128 + 128 + 2 * 128 + 1000
    config = TfmEncoderConfig.preset("bert", "nano", vocab_size=1000)
    assert count_parameters(config) == embeddings + 4 * block + head == 1_004_904


def test_a_published_run():
    # GPT-2 124M on 10 billion tokens takes some 8.5e18 operations (6ND with the attention at 1,024 tokens).
    config = TfmDecoderConfig.preset("gpt2", vocab_size=50304)
    found = estimate_cost(config, "a100", tokens=10e9, devices=8, rows=16, utilisation=0.5)
    assert found.compute == pytest.approx(8.5e18, rel=0.05)
    assert found.hours == pytest.approx(8.5e18 / (8 * 312e12 * 0.5) / 3600, rel=0.05)
    assert found.fits


@pytest.mark.parametrize(
    "config, context",
    [
        (TfmDecoderConfig.preset("mistral", "nano", sliding_window=256), 4 * 256),
        (TfmDecoderConfig.preset("mistral", "nano", sliding_window=4096), 4 * 1024),
        # Layers 1 and 4 see everything; the others 64 tokens on each side.
        (TfmEncoderConfig.preset("modernbert", "nano"), 2 * 1024 + 2 * 129),
    ],
)
def test_a_window_bounds_the_operations_of_attention(config, context):
    full = type(config)(**{**config.to_dict(), "layer_types": None, "sliding_window": None, "rope_parameters": None})
    saved = estimate_cost(full, "l4", tokens=1).compute - estimate_cost(config, "l4", tokens=1).compute
    assert saved == 12 * 128 * (4 * 1024 - context)


def optimizer_bytes(model, optimizer):
    """Bytes of the state after a step, without step counts."""
    built = build_optimizer(model, optimizer)
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    built.step()
    state = [value for kept in built.state.values() for name, value in kept.items() if name != "step"]
    return sum(value.nbytes for value in state)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "normuon"])
@pytest.mark.parametrize("kind, preset", [("decoder", "mistral"), ("encoder", "bert")])
def test_state_is_that_of_the_optimizer(kind, preset, optimizer):
    config_class, model_class = FAMILIES[kind, preset]
    config = config_class.preset(preset, "nano", vocab_size=1000)
    model = model_class(config)
    found = estimate_cost(config, "l4", optimizer=optimizer)
    # Beside it weights and gradients in fp32, and weights in bf16.
    assert found.weights_and_state == optimizer_bytes(model, optimizer) + (4 + 4 + 2) * model.num_parameters()


def test_muon_has_one_moment_for_matrices_and_two_for_others():
    config = TfmDecoderConfig.preset("llama", "nano", vocab_size=1000)
    block = 4 * 128 * 128 + 3 * 128 * 384
    others = 1000 * 128 + (2 * 4 + 1) * 128
    rows = 4 * (4 * 128 + 2 * 384 + 128)
    assert count_parameters(config) == 4 * block + others
    for optimizer, state in {
        "adamw": 8 * (4 * block + others),
        "muon": 4 * 4 * block + 8 * others,
        "normuon": 4 * (4 * block + rows) + 8 * others,
    }.items():
        found = estimate_cost(config, "l4", optimizer=optimizer)
        assert found.weights_and_state == state + 10 * (4 * block + others)


class Live(TorchDispatchMode):
    """Measures the peak of bytes in tensors created inside it."""

    def __init__(self, *inputs):
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in inputs}
        self.now = self.most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.known:
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self.free, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.now)
        return made

    def free(self, storage, size):
        self.known.remove(storage)
        self.now -= size


def loss_bytes(tokens, width, vocabulary):
    """Peak bytes of the loss on the meta device, without its inputs and their bf16 copy."""
    states = torch.empty(tokens, width, device="meta", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.empty(vocabulary, width, device="meta", requires_grad=True)
    labels = torch.empty(tokens, device="meta", dtype=torch.long)
    with Live(states, weight, labels) as live:
        loss = chunk_cross_entropy(labels)
        LinearLoss.apply(states, weight, None, loss, torch.ones((), device="meta"), None, torch.bfloat16)
    return live.most - 2 * vocabulary * width


def test_the_loss_has_blocks_of_logits_in_memory(monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())  # unknown to meta
    few, many = (
        estimate_cost(TfmDecoderConfig.preset("llama", "base", vocab_size=size), "h100", tokens=1, rows=16).activations
        for size in (16_000, 128_000)
    )
    real = loss_bytes(16 * 1024, 768, 128_000) - loss_bytes(16 * 1024, 768, 16_000)
    assert many - few == pytest.approx(real, rel=0.01)


def test_a_large_vocabulary_fits():
    """Llama 3.2 1B with its own vocabulary: all logits of 65,536 tokens in fp32 would be 34 GB, their gradient too."""
    config = TfmDecoderConfig.preset("llama", vocab_size=128_256)
    found = estimate_cost(config, "h100", devices=16, length=8192, sharded=True, checkpointing=True)
    # A block's states in bf16: four of the width, queries and what they found, keys and values, feed-forward.
    block = 2 * 65_536 * (4 * 2048 + 2 * 2048 + 2 * 512 + 4 * 8192)
    inputs_of_blocks = 2 * 65_536 * 2048 * 16
    gradients = 2 * 65_536 * 2048 + 4 * 128_256 * 2048
    logits = 16 * 4096 * 128_256
    assert logits > block
    assert found.activations == inputs_of_blocks + gradients + logits
    assert found.fits


def test_a_shard_gathers_one_layer_and_the_weights_outside_layers():
    config = TfmDecoderConfig.preset("mistral", vocab_size=32_000)
    found = estimate_cost(config, "h100", devices=8, optimizer="adamw", sharded=True)
    layer = 2 * 4096 * (4096 + 1024) + 3 * 4096 * 14_336 + 2 * 4096
    outside = 2 * 32_000 * 4096 + 4096
    # A shard of weights, gradients and two moments; weights and gradients in bf16 of what is whole.
    shard = 16 * (32 * layer + outside) / 8
    assert found.weights_and_state == shard + 4 * (layer + outside)


def test_sharding_and_checkpointing_save_memory_and_checkpointing_costs_a_third():
    config = TfmDecoderConfig.preset("mistral")
    plain = estimate_cost(config, "h100", tokens=1e9, devices=8)
    sharded = estimate_cost(config, "h100", tokens=1e9, devices=8, sharded=True)
    both = estimate_cost(config, "h100", tokens=1e9, devices=8, sharded=True, checkpointing=True)
    assert not plain.fits and "DOES NOT FIT" in str(plain)
    assert both.memory_per_device < sharded.memory_per_device < plain.memory_per_device
    assert both.hours == pytest.approx(sharded.hours * 4 / 3)
    assert both.fits and "FSDP2, activation checkpointing" in str(both)


def test_default_tokens_follow_chinchilla():
    config = TfmDecoderConfig.preset("small")
    assert estimate_cost(config, "l4").tokens == 20 * count_parameters(config)


@pytest.mark.parametrize(
    "mistake, said",
    [({"device": "abacus"}, "device 'abacus'"), ({"tokens": 0}, "tokens must be"), ({"optimizer": "sgd"}, "optimizer"),
     ({"utilisation": 2}, "utilisation")],
)  # fmt: skip
def test_mistakes_name_the_argument(mistake, said):
    with pytest.raises(InputError, match=said):
        estimate_cost(TfmDecoderConfig.preset("nano"), **{"device": "l4", **mistake})
