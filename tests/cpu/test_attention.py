"""Attention for training on a CPU gives the numbers of torch's, blockwise, in windows and on flattened rows."""

import copy

import pytest
import torch
from steps import relative_error, step
from tiny import VOCAB_SIZE, build, inputs_for
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from hf_tfm.cpu.attention import (
    BLOCK,
    MAX_LENGTH,
    BlockwiseAttention,
    FlattenedRows,
    WindowedAttention,
    blockwise_mask,
    disable_unpadded_training,
    enable_blockwise_attention,
    enable_unpadded_training,
)


def test_every_training_batch_has_a_mask():
    """Also without padding and packed rows, so that a compiled model is not compiled again for those."""
    mask = blockwise_mask(3, 8, 8)
    assert torch.equal(mask, torch.ones(3, 1, 8, 8).tril().bool()) and mask.is_contiguous()
    assert blockwise_mask(1, MAX_LENGTH + 1, MAX_LENGTH + 1) is None
    with torch.no_grad():
        assert blockwise_mask(3, 8, 8) is None


def attention_gradients(length, is_causal, mask, blockwise, dtype=torch.bfloat16):
    torch.manual_seed(0)
    inputs = [torch.randn(3, 2, length, 16).to(dtype).requires_grad_() for _ in range(3)]
    output_grad = torch.randn(3, 2, length, 16).to(dtype)
    if blockwise:
        output = BlockwiseAttention.apply(*inputs, mask, is_causal, 0.25)
    else:
        causal_alone = is_causal and mask is None
        output = F.scaled_dot_product_attention(*inputs, attn_mask=mask, is_causal=causal_alone, scale=0.25)
    output.backward(output_grad)
    return [output.detach(), *(x.grad for x in inputs)]


@pytest.mark.parametrize("length", [7, BLOCK, BLOCK + 1, 3 * BLOCK - 5])
@pytest.mark.parametrize("masked", ["none", "causal", "documents"])
def test_blockwise_attention_is_as_precise_as_torchs(length, masked):
    mask, is_causal = None, masked != "none"
    if masked == "documents":
        documents = torch.arange(length) // 5
        mask = (documents[:, None] == documents[None, :]).tril().expand(3, 1, -1, -1)
    blockwise = attention_gradients(length, is_causal, mask, blockwise=True)
    sdpa = attention_gradients(length, is_causal, mask, blockwise=False)
    reference = attention_gradients(length, is_causal, mask, blockwise=False, dtype=torch.float32)
    for actual, other, expected in zip(blockwise, sdpa, reference, strict=True):
        assert relative_error(actual, expected) < max(2.5 * relative_error(other, expected), 0.01)


def test_a_query_without_visible_keys_stays_finite():
    mask = torch.ones(3, 1, 20, 20, dtype=torch.bool).tril()
    mask[1, :, :4] = False
    for result in attention_gradients(20, True, mask, blockwise=True):
        assert result.isfinite().all()


@pytest.mark.parametrize("window, block, length", [(32, 32, 128), (1, 32, 64), (40, 64, 256), (3, 32, 32)])
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
def test_windowed_attention_equals_masked_attention(window, block, length, batch, is_causal):
    torch.manual_seed(0)
    inputs = [torch.randn(3, 2, length, 16) for _ in range(3)]
    output_grad = torch.randn(3, 2, length, 16)
    distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    documents = torch.randint(0, 3, (batch, length)).sort(-1).values
    mask = ((distance <= window) & (distance >= (0 if is_causal else -window)))[None, None]
    mask = mask & (documents[:, None, :, None] == documents[:, None, None, :])

    def results(attend):
        leaves = [x.clone().requires_grad_() for x in inputs]
        output = attend(*leaves)
        output.backward(output_grad)
        return [output.detach(), *(x.grad for x in leaves)]

    windowed = results(lambda *qkv: WindowedAttention.apply(*qkv, mask, is_causal, 0.25, window, block))
    masked = results(lambda *qkv: F.scaled_dot_product_attention(*qkv, mask, scale=0.25))
    for actual, expected in zip(windowed, masked, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def windowed_calls(monkeypatch):
    """One entry for each use of `WindowedAttention`."""
    calls, plain = [], WindowedAttention.forward
    monkeypatch.setattr(WindowedAttention, "forward", staticmethod(lambda *args: calls.append(1) or plain(*args)))
    return calls


@pytest.fixture
def flattened_calls(monkeypatch):
    """The number of tokens for each layer that received a flattened batch."""
    calls, attend = [], FlattenedRows.attend

    def spy(self, module, query, key, value, **kwargs):
        if query.shape[0] != self.shape[0]:
            calls.append(query.shape[2])
        return attend(self, module, query, key, value, **kwargs)

    monkeypatch.setattr(FlattenedRows, "attend", spy)
    return calls


def steps_with_both(model, inputs, bf16, unpadded=False):
    """A training step with this package's attention, and one with torch's."""
    plain, blockwise = copy.deepcopy(model).train(), model.train()
    assert enable_blockwise_attention(blockwise) and (not unpadded or enable_unpadded_training(blockwise))
    return step(blockwise, inputs, bf16), step(plain, inputs, bf16)


IDS = torch.randint(5, VOCAB_SIZE, (2, 128), generator=torch.Generator().manual_seed(0))
LABELS = IDS.masked_fill(torch.arange(128) <= 10, -100)  # one case has padding up to there
PACKED = torch.cat([torch.arange(27), torch.arange(101)]).expand(2, -1)
PREFIX = (PACKED < 9).long()
PREPARED = torch.ones(2, 1, 128, 128, dtype=torch.bool).tril()


@pytest.mark.parametrize(
    "name, extra",
    [
        ("TfmDecoderForCausalLM", {"position_ids": PACKED}),
        ("TfmDecoderForCausalLM", {"position_ids": PACKED, "is_causal": False}),
        ("TfmDecoderForCausalLM", {"position_ids": PACKED, "prefix_mask": PREFIX}),
        ("TfmDecoderForCausalLM", {"attention_mask": (torch.arange(128) > 9).long().expand(2, -1)}),
        ("TfmDecoderForCausalLM", {"attention_mask": PREPARED}),
        ("TfmEncoderForMaskedLM", {"position_ids": PACKED}),
        ("TfmEncoderForMaskedLM", {"attention_mask": PREPARED}),
    ],
)
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("unpadded", [False, True])
def test_layers_with_a_window_train_alike(name, extra, bf16, unpadded, windowed_calls, flattened_calls):
    """A prepared mask may let a token see beyond the window: then neither the window nor flattened rows are used."""
    layers = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5}
    model = build(name, **layers)
    inputs = {"input_ids": IDS, "labels": LABELS, **({"use_cache": False} if "Decoder" in name else {}), **extra}
    (loss, gradient), (expected_loss, expected) = steps_with_both(model, inputs, bf16, unpadded)
    is_prepared = extra.get("attention_mask") is PREPARED
    assert len(windowed_calls) == (not is_prepared)
    assert len(flattened_calls) == (2 if unpadded and not is_prepared else 0)
    torch.testing.assert_close(loss, expected_loss, rtol=5e-3 if bf16 else 1e-6, atol=0)
    assert relative_error(gradient, expected) < (0.05 if bf16 else 1e-5)


def test_rows_are_flattened_only_where_nothing_depends_on_rows(flattened_calls):
    """Not with a cache, cross-attention, recorded hidden states or gradient checkpointing. A copy is independent."""
    model = build("TfmDecoderForCausalLM")
    enable_blockwise_attention(model)
    expected = model(IDS, output_hidden_states=True, use_cache=False)
    generated = model.generate(IDS[:, :9], max_new_tokens=5, do_sample=False)
    assert enable_unpadded_training(model) and not enable_unpadded_training(build("TfmDecoderForCausalLM"))
    copied = copy.deepcopy(model)
    torch.nn.init.zeros_(model.model.layers[0].mlp.down_proj.weight)
    torch.testing.assert_close(copied(IDS, use_cache=False).logits, expected.logits)
    assert flattened_calls == [IDS.numel()] * copied.config.num_hidden_layers

    flattened_calls.clear()
    torch.testing.assert_close(copied(IDS, use_cache=True).logits, expected.logits)
    torch.testing.assert_close(copied(IDS, output_hidden_states=True, use_cache=False), expected)
    assert torch.equal(copied.generate(IDS[:, :9], max_new_tokens=5, do_sample=False), generated)
    copied.gradient_checkpointing_enable()
    copied.train()(IDS, labels=IDS, use_cache=False).loss.backward()

    crossed = build("TfmDecoderForCausalLM", add_cross_attention=True)
    for source_length in (7, IDS.shape[1]):
        states = torch.randn(2, source_length, crossed.config.hidden_size)
        source = {"encoder_hidden_states": states, "encoder_attention_mask": torch.ones(2, source_length)}
        crossed.set_attn_implementation("sdpa")
        expected_logits = crossed(IDS, **source).logits
        assert enable_blockwise_attention(crossed) and enable_unpadded_training(crossed)
        torch.testing.assert_close(crossed(IDS, **source, use_cache=False).logits, expected_logits)

    disable_unpadded_training(model)
    model(IDS, use_cache=False)
    assert not flattened_calls


def test_models_train_alike():
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    llama = LlamaForCausalLM(config)
    causal, masked = inputs_for("TfmDecoderForCausalLM"), inputs_for("TfmEncoderForMaskedLM")
    models = [(build("TfmDecoderForCausalLM"), causal), (build("TfmEncoderForMaskedLM"), masked), (llama, causal)]
    for model, inputs in models:
        (loss, gradient), (expected_loss, expected) = steps_with_both(model, inputs, bf16=True)
        torch.testing.assert_close(loss, expected_loss, rtol=5e-3, atol=0)
        assert relative_error(gradient, expected) < 0.05


def test_packed_documents_stay_separate():
    """A change in one document of a packed row changes no gradient that comes from the other."""
    model = build("TfmDecoderForCausalLM").train()
    enable_blockwise_attention(model)
    ids = torch.randint(5, VOCAB_SIZE, (1, 20))
    positions = torch.cat([torch.arange(12), torch.arange(8)]).unsqueeze(0)
    labels = ids.masked_fill(torch.arange(20) <= 12, -100)  # the first token of a document has nothing before it
    results = []
    for first_token in (5, 6):
        ids = ids.clone()
        ids[0, 3] = first_token
        with torch.autocast("cpu", torch.bfloat16):
            results.append(model(input_ids=ids, position_ids=positions, labels=labels).loss)
    assert results[0] == results[1]


def test_unsupported_calls_use_torchs_attention():
    """Generation with a cache and fp32 give exactly torch's numbers; rows beyond the largest length are computed."""
    model = build("TfmDecoderForCausalLM").eval()
    ids = torch.randint(5, VOCAB_SIZE, (2, 9))
    expected = model.generate(ids, max_new_tokens=5, do_sample=False), model(ids).logits
    enable_blockwise_attention(model)
    assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False), expected[0])
    assert torch.equal(model(ids).logits, expected[1])
    long = torch.randint(5, VOCAB_SIZE, (1, MAX_LENGTH + 1))
    with torch.autocast("cpu", torch.bfloat16):
        assert model(long, labels=long, use_cache=False).loss.isfinite()


def test_the_setting_is_not_saved(tmp_path):
    model = build("TfmDecoderForCausalLM")
    enable_blockwise_attention(model)
    model.save_pretrained(tmp_path)
    assert "blockwise" not in (tmp_path / "config.json").read_text()


def test_another_attention_implementation_is_kept():
    model = build("TfmDecoderForCausalLM")
    model.set_attn_implementation("eager")
    assert not enable_blockwise_attention(model) and model.config._attn_implementation == "eager"
