"""Kernels for training on a processor give the numbers of the plain ones."""

import copy
import platform
import subprocess
import sys

import pytest
import torch
from steps import relative_error, step
from tiny import VOCAB_SIZE, build, inputs_for
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from hf_tfm.cpu.attention import (
    BLOCK,
    MAX_LENGTH,
    EndToEnd,
    WindowedAttention,
    blockwise_mask,
    lay_rows_end_to_end,
    lay_rows_side_by_side,
    use_blockwise_attention,
)
from hf_tfm.cpu.compile import (
    compile_blocks,
    eager_blocks,
    keep_freed_memory,
    pays_to_compile,
    repeated_blocks,
    uncompile_blocks,
)
from hf_tfm.models import modeling_tfm_loss
from hf_tfm.models.modeling_tfm_loss import linear_cross_entropy


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("items", [None, 1000])
@pytest.mark.parametrize("waiting", [1, 512 * 97, 1 << 24])
def test_linear_cross_entropy_equals_logits_and_softmax(bias, softcap, items, waiting, monkeypatch):
    """With the weights' gradient added up every 256 rows, every 512, and at the end."""
    monkeypatch.setattr(modeling_tfm_loss, "_WAITING_GRADIENTS", waiting)
    torch.manual_seed(0)
    layer = torch.nn.Linear(16, 97, bias=bias)
    states = torch.randn(6, 200, 16)
    labels = torch.randint(0, 97, (6, 200)).masked_fill(torch.rand(6, 200) < 0.3, -100)

    def gradients(loss_of):
        own, inputs = copy.deepcopy(layer), states.clone().requires_grad_()
        loss = loss_of(own, inputs)
        (3 * loss).backward()
        return [loss.detach(), inputs.grad, *(p.grad for p in own.parameters())]

    def plain(own, inputs):
        logits = own(inputs)
        logits = logits if softcap is None else torch.tanh(logits / softcap) * softcap
        total = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
        return total / (items or (labels != -100).sum())

    ours = gradients(lambda own, inputs: linear_cross_entropy(inputs, own, labels, items, softcap))
    for mine, reference in zip(ours, gradients(plain), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("items", [None, 0, torch.tensor(0)])
def test_linear_cross_entropy_of_nothing_is_nothing(items):
    layer, states = torch.nn.Linear(8, 16), torch.randn(2, 3, 8, requires_grad=True)
    loss = linear_cross_entropy(states, layer, torch.full((2, 3), -100), items)
    loss.backward()
    assert loss == 0 and not states.grad.any() and not layer.weight.grad.any() and not layer.bias.grad.any()


def test_linear_cross_entropy_leaves_a_frozen_layer_alone():
    layer = torch.nn.Linear(8, 11).requires_grad_(False)
    states = torch.randn(4, 8, requires_grad=True)
    linear_cross_entropy(states, layer, torch.tensor([1, 2, -100, 3])).backward()
    assert layer.weight.grad is None and states.grad[2].abs().sum() == 0 and states.grad[0].abs().sum() > 0


def test_in_training_every_batch_has_a_mask_of_one_kind():
    """Without padding and packed rows too, so that a compiled model is not compiled for these again."""
    mask = blockwise_mask(3, 8, 8)
    assert torch.equal(mask, torch.ones(3, 1, 8, 8).tril().bool()) and mask.is_contiguous()
    assert blockwise_mask(1, MAX_LENGTH + 1, MAX_LENGTH + 1) is None
    with torch.no_grad():
        assert blockwise_mask(3, 8, 8) is None


@pytest.mark.parametrize("name", ["TfmDecoderForCausalLM", "TfmEncoderForMaskedLM", "TfmEncoderForPreTraining"])
@pytest.mark.parametrize("items", [None, 100])
def test_the_loss_alone_is_the_loss_with_logits(name, items):
    model, inputs = build(name).train(), inputs_for(name)
    inputs["num_items_in_batch"] = items
    whole = model(**inputs)
    alone = model(**inputs, skip_logits=True)
    assert "logits" not in alone and "prediction_logits" not in alone
    torch.testing.assert_close(alone.loss, whole.loss)


def attention_gradients(length, is_causal, mask, blockwise, dtype=torch.bfloat16):
    from hf_tfm.cpu.attention import BlockwiseAttention

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
def test_blockwise_attention_is_as_exact_as_torchs(length, masked):
    mask, is_causal = None, masked != "none"
    if masked == "documents":
        documents = torch.arange(length) // 5
        mask = (documents[:, None] == documents[None, :]).tril().expand(3, 1, -1, -1)
    ours = attention_gradients(length, is_causal, mask, blockwise=True)
    torchs = attention_gradients(length, is_causal, mask, blockwise=False)
    exact = attention_gradients(length, is_causal, mask, blockwise=False, dtype=torch.float32)
    for mine, other, reference in zip(ours, torchs, exact, strict=True):
        assert relative_error(mine, reference) < max(2.5 * relative_error(other, reference), 0.01)


def test_a_row_that_sees_nothing_stays_finite():
    mask = torch.ones(3, 1, 20, 20, dtype=torch.bool).tril()
    mask[1, :, :4] = False
    for result in attention_gradients(20, True, mask, blockwise=True):
        assert result.isfinite().all()


@pytest.mark.parametrize("window, block, length", [(32, 32, 128), (1, 32, 64), (40, 64, 256), (3, 32, 32)])
@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
def test_windowed_attention_is_attention_under_its_mask(window, block, length, is_causal, batch):
    torch.manual_seed(0)
    inputs = [torch.randn(3, 2, length, 16) for _ in range(3)]
    output_grad = torch.randn(3, 2, length, 16)
    distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    documents = torch.randint(0, 3, (batch, length)).sort(-1).values
    mask = ((distance <= window) & (distance >= (0 if is_causal else -window)))[None, None]
    mask = mask & (documents[:, None, :, None] == documents[:, None, None, :])

    def results(attend):
        own = [x.clone().requires_grad_() for x in inputs]
        output = attend(*own)
        output.backward(output_grad)
        return [output.detach(), *(x.grad for x in own)]

    ours = results(lambda *qkv: WindowedAttention.apply(*qkv, mask, is_causal, 0.25, window, block))
    for mine, other in zip(
        ours, results(lambda *qkv: F.scaled_dot_product_attention(*qkv, mask, scale=0.25)), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


@pytest.fixture
def windowed_calls(monkeypatch):
    """How often `WindowedAttention` was used."""
    calls, plain = [], WindowedAttention.forward
    monkeypatch.setattr(WindowedAttention, "forward", staticmethod(lambda *args: calls.append(1) or plain(*args)))
    return calls


@pytest.fixture
def long_rows(monkeypatch):
    """For each layer that got its batch as one long row, how many tokens that had."""
    calls, plain = [], EndToEnd.attend_by_row

    def attend(self, layer, query, key, value, **kwargs):
        calls.append(query.shape[2])
        return plain(self, layer, query, key, value, **kwargs)

    monkeypatch.setattr(EndToEnd, "attend_by_row", attend)
    return calls


def both_ways(model, inputs, bf16, end_to_end=False):
    """A step with these kernels and one with torch's."""
    plain, other = copy.deepcopy(model).train(), model.train()
    assert use_blockwise_attention(other) and (not end_to_end or lay_rows_end_to_end(other))
    return step(other, inputs, bf16), step(plain, inputs, bf16)


IDS = torch.randint(5, VOCAB_SIZE, (2, 128), generator=torch.Generator().manual_seed(0))
LABELS = IDS.masked_fill(torch.arange(128) <= 10, -100)  # one case has padding up to there
PACKED = torch.cat([torch.arange(27), torch.arange(101)]).expand(2, -1)
PREFIX = (PACKED < 9).long()
FAR = torch.ones(2, 1, 128, 128, dtype=torch.bool).tril()


@pytest.mark.parametrize(
    "name, extra, windowed",
    [
        ("TfmDecoderForCausalLM", {"position_ids": PACKED}, 1),
        ("TfmDecoderForCausalLM", {"position_ids": PACKED, "is_causal": False}, 1),
        ("TfmDecoderForCausalLM", {"position_ids": PACKED, "prefix_mask": PREFIX}, 1),
        ("TfmDecoderForCausalLM", {"attention_mask": (torch.arange(128) > 9).long().expand(2, -1)}, 1),
        ("TfmDecoderForCausalLM", {"attention_mask": FAR}, 0),
        ("TfmEncoderForMaskedLM", {"position_ids": PACKED}, 1),
        ("TfmEncoderForMaskedLM", {"attention_mask": FAR}, 0),
    ],
)
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("end_to_end", [False, True])
def test_layers_with_a_window_train_alike(name, extra, windowed, bf16, end_to_end, windowed_calls, long_rows):
    """A mask made ready may let a token see further than the window."""
    layers = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5}
    model = build(name, **layers)
    inputs = {"input_ids": IDS, "labels": LABELS, **({"use_cache": False} if "Decoder" in name else {}), **extra}
    (loss, gradient), (expected_loss, expected) = both_ways(model, inputs, bf16, end_to_end)
    assert len(windowed_calls) == windowed and len(long_rows) == 2 * end_to_end
    torch.testing.assert_close(loss, expected_loss, rtol=5e-3 if bf16 else 1e-6, atol=0)
    assert relative_error(gradient, expected) < (0.05 if bf16 else 1e-5)


def test_rows_end_to_end_where_layers_are_alone_with_them(long_rows):
    """Not where something else knows rows: a cache, cross-attention, who asks for states, who computes them again."""
    model = build("TfmDecoderForCausalLM")
    use_blockwise_attention(model)
    expected = model(IDS, output_hidden_states=True, use_cache=False)
    generated = model.generate(IDS[:, :9], max_new_tokens=5, do_sample=False)
    assert lay_rows_end_to_end(model) and not lay_rows_end_to_end(build("TfmDecoderForCausalLM"))
    own = copy.deepcopy(model)
    torch.nn.init.zeros_(model.model.layers[0].mlp.down_proj.weight)
    torch.testing.assert_close(own(IDS, use_cache=False).logits, expected.logits)
    assert long_rows == [IDS.numel()] * own.config.num_hidden_layers

    long_rows.clear()
    torch.testing.assert_close(own(IDS, output_hidden_states=True, use_cache=False), expected)
    assert torch.equal(own.generate(IDS[:, :9], max_new_tokens=5, do_sample=False), generated)
    own.gradient_checkpointing_enable()
    own.train()(IDS, labels=IDS, use_cache=False).loss.backward()
    assert not long_rows

    crossed = build("TfmDecoderForCausalLM", add_cross_attention=True)
    inputs = {"input_ids": IDS, "encoder_hidden_states": torch.randn(2, 7, crossed.config.hidden_size)}
    before = crossed(**inputs).logits
    assert use_blockwise_attention(crossed) and lay_rows_end_to_end(crossed)
    torch.testing.assert_close(crossed(**inputs, use_cache=False).logits, before)

    lay_rows_side_by_side(model)
    model(IDS, use_cache=False)
    assert not long_rows and "run_blocks" not in vars(model.model)


def test_models_train_alike_with_it():
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    llama = LlamaForCausalLM(config)
    causal, masked = inputs_for("TfmDecoderForCausalLM"), inputs_for("TfmEncoderForMaskedLM")
    models = [(build("TfmDecoderForCausalLM"), causal), (build("TfmEncoderForMaskedLM"), masked), (llama, causal)]
    for model, inputs in models:
        (loss, gradient), (expected_loss, expected) = both_ways(model, inputs, bf16=True)
        torch.testing.assert_close(loss, expected_loss, rtol=5e-3, atol=0)
        assert relative_error(gradient, expected) < 0.05


def test_documents_stay_apart_with_it():
    """A change in one document of a packed row changes no gradient that comes from the other."""
    model = build("TfmDecoderForCausalLM").train()
    use_blockwise_attention(model)
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


def test_what_it_does_not_serve_goes_to_torch():
    """Generation with a cache, fp32 and rows beyond its length give exactly what they gave before."""
    model = build("TfmDecoderForCausalLM").eval()
    ids = torch.randint(5, VOCAB_SIZE, (2, 9))
    expected = model.generate(ids, max_new_tokens=5, do_sample=False), model(ids).logits
    use_blockwise_attention(model)
    assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False), expected[0])
    assert torch.equal(model(ids).logits, expected[1])
    long = torch.randint(5, VOCAB_SIZE, (1, MAX_LENGTH + 1))
    with torch.autocast("cpu", torch.bfloat16):
        assert model(long, labels=long, use_cache=False).loss.isfinite()


def test_it_is_not_saved(tmp_path):
    model = build("TfmDecoderForCausalLM")
    use_blockwise_attention(model)
    model.save_pretrained(tmp_path)
    assert "blockwise" not in (tmp_path / "config.json").read_text()


def test_attention_of_another_kind_is_kept():
    model = build("TfmDecoderForCausalLM")
    model.set_attn_implementation("eager")
    assert not use_blockwise_attention(model) and model.config._attn_implementation == "eager"


FAULTS = """
import resource, sys, torch
from hf_tfm.cpu.compile import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    a = torch.ones(2**24)
    b = a + a
    assert b.sum() == 2**25
    del a, b
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are glibc's")
def test_freed_memory_is_used_again(monkeypatch):
    for name in ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)

    def faults(mode: str) -> int:
        run = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True)
        return int(run.stdout)

    assert faults("kept") * 4 < faults("given back")


def test_settings_in_the_environment_stand(monkeypatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not keep_freed_memory()


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 5])
def test_compiled_gradients_are_the_eager_ones(window):
    """Compiled once, for layers with a window and without, and for long and short rows of as many tokens."""
    layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": window} if window else {}
    eager = build("TfmDecoderForCausalLM", num_hidden_layers=2, **layers).train()
    use_blockwise_attention(eager)
    compiled = copy.deepcopy(eager)
    assert compile_blocks(compiled) == len(repeated_blocks(compiled)) == eager.config.num_hidden_layers
    eager.config.use_cache = compiled.config.use_cache = False
    inputs = {"input_ids": IDS, "labels": LABELS, "position_ids": PACKED}
    graphs = []
    for rows in (2, 4):
        inputs = {name: tensor.reshape(rows, -1) for name, tensor in inputs.items()}
        (loss, gradient), (expected_loss, expected) = (step(model, inputs) for model in (compiled, eager))
        torch.testing.assert_close(loss, expected_loss, rtol=5e-3, atol=0)
        assert gradient.isfinite().all() and relative_error(gradient, expected) < 0.05
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        compiled.zero_grad(), eager.zero_grad()
    assert graphs[0] == graphs[1]
    assert compiled.state_dict().keys() == eager.state_dict().keys()


def test_a_model_is_as_it_was_when_it_is_no_longer_compiled():
    model = build("TfmDecoderForCausalLM")
    compile_blocks(model)
    assert all(block._compiled_call_impl is not None for block in repeated_blocks(model))
    uncompile_blocks(model)
    assert all(module._compiled_call_impl is None for module in model.modules())


def test_compiled_layers_can_be_left_alone_for_a_while():
    model = build("TfmDecoderForCausalLM")
    expected = model(IDS).logits
    compile_blocks(model)
    for block in repeated_blocks(model):
        block._compiled_call_impl = sorted  # in place of a compiler, and takes no such arguments
    with pytest.raises(TypeError):
        model(IDS)
    with pytest.raises(KeyError), eager_blocks(model):
        assert torch.equal(model(IDS).logits, expected)
        raise KeyError
    assert all(block._compiled_call_impl is sorted for block in repeated_blocks(model))


def test_only_long_runs_are_compiled():
    assert pays_to_compile(3600) and not pays_to_compile(120) and not pays_to_compile(1000, shapes=4)
