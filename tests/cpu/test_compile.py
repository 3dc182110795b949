"""Compiled blocks train alike, share their code, and are restored."""

import copy

import pytest
import torch
import torch._inductor.exc
from steps import relative_error, step
from tiny import VOCAB_SIZE, build

from hf_tfm.cpu.attention import BLOCKWISE, BLOCKWISE_UNPADDED, enable_blockwise_attention
from hf_tfm.cpu.compile import compile_blocks, has_compiler, is_worth_compiling, repeated_blocks, uncompile_blocks


IDS = torch.randint(5, VOCAB_SIZE, (2, 128), generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
@pytest.mark.parametrize("window", [None, 5])
def test_compiled_gradients_equal_eager_ones(window):
    """One compilation serves layers with and without a window, and long and short rows of the same number of tokens."""
    layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": window} if window else {}
    eager = build("TfmDecoderForCausalLM", num_hidden_layers=2, **layers).train()
    enable_blockwise_attention(eager)
    compiled = copy.deepcopy(eager)
    assert compile_blocks(compiled) == len(repeated_blocks(compiled)) == eager.config.num_hidden_layers
    eager.config.use_cache = compiled.config.use_cache = False
    inputs = {
        "input_ids": IDS,
        "labels": IDS.masked_fill(torch.arange(128) <= 10, -100),
        "position_ids": torch.cat([torch.arange(27), torch.arange(101)]).expand(2, -1),
    }
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


def test_uncompiling_restores_the_model():
    model = build("TfmDecoderForCausalLM")
    enable_blockwise_attention(model)
    compile_blocks(model)
    assert all(block._compiled_call_impl is not None for block in repeated_blocks(model))
    assert model.config._attn_implementation == BLOCKWISE_UNPADDED
    uncompile_blocks(model)
    assert all(module._compiled_call_impl is None for module in model.modules())
    assert model.config._attn_implementation == BLOCKWISE


def test_compiled_blocks_run_eagerly_on_demand():
    """As `Pretrainer.evaluate` asks for: too little is evaluated to repay compiling."""

    def no_compiler(*args):
        raise RuntimeError("compiled")

    model = build("TfmDecoderForCausalLM")
    expected = model(IDS).logits
    for block in repeated_blocks(model):
        block.compile(backend=no_compiler)
    with torch.compiler.set_stance("force_eager"):
        assert torch.equal(model(IDS).logits, expected)
    with pytest.raises(Exception, match="compiled"):
        model(IDS)


def test_only_long_runs_are_compiled():
    assert is_worth_compiling(3600) and not is_worth_compiling(120) and not is_worth_compiling(1000, shapes=4)


def test_a_missing_compiler_is_detected(monkeypatch):
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", lambda: "c++")
    assert has_compiler()

    def fail():
        raise torch._inductor.exc.InvalidCxxCompiler()

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", fail)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not has_compiler()
