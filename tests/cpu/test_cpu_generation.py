"""`hf_tfm.cpu.generate` gives the tokens of `model.generate`, with a loop of its own if it can."""

import copy

import pytest
import torch
from tiny import DECODER_SHAPES, PAD, build, random_ids
from torch import nn
from transformers import DynamicCache, GenerationConfig, TextStreamer

from hf_tfm import TfmDecoderForCausalLM, cpu
from hf_tfm.cpu import decoding_block, generation
from hf_tfm.models.modeling_tfm_compat import CACHE_NAME


LM = "TfmDecoderForCausalLM"


@pytest.fixture
def fast_calls(monkeypatch):
    """For each call of `cpu.generate`, whether it used the CPU loop."""
    answers, decide = [], generation._is_supported

    def spy(*args):
        answers.append(bool(decide(*args)))
        return answers[-1]

    monkeypatch.setattr(generation, "_is_supported", spy)
    return answers


def generate_both(model, *args, **kwargs):
    """Return the results of the CPU loop and of transformers' loop."""
    torch.manual_seed(1)
    fast = cpu.generate(model, *args, **kwargs)
    torch.manual_seed(1)
    return fast, model.generate(*args, **kwargs)


@pytest.mark.parametrize("shape", DECODER_SHAPES)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("settings", [dict(do_sample=False), dict(do_sample=True, top_k=20, repetition_penalty=1.3)])
def test_tokens_equal_transformers(shape, padded, settings, fast_calls):
    model = build(LM, shape)
    ids = random_ids(3, 9)
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :4] = 0
        ids[0, :4] = PAD
    fast, stock = generate_both(model, ids, attention_mask=mask, max_new_tokens=25, **settings)
    assert fast_calls == [True] and torch.equal(fast, stock)


@pytest.mark.parametrize("shape", ["qwen3", "mistral"])
def test_buffers_grow(shape, fast_calls, monkeypatch):
    """With more tokens than the initial capacity, in layers with and without a window."""
    monkeypatch.setattr(decoding_block.DecodingBlock, "initial_capacity", 3)
    fast, stock = generate_both(build(LM, shape), random_ids(2, 5), max_new_tokens=30, do_sample=False)
    assert fast_calls == [True] and torch.equal(fast, stock)


def test_rows_end_independently(fast_calls):
    model = build(LM)
    first = model.generate(random_ids(3, 4), max_new_tokens=8, do_sample=False)
    for end in first[:, 6].tolist():
        fast, stock = generate_both(
            model, random_ids(3, 4), max_new_tokens=10, eos_token_id=end, pad_token_id=PAD, do_sample=False
        )
        assert torch.equal(fast, stock)
    assert all(fast_calls)


def test_logits_equal_those_of_forward(fast_calls):
    """In fp64, so that rounding does not hide a mistake."""
    model = build(LM).double()
    seen = []

    def keep(ids, scores):
        seen.append((ids.clone(), scores.clone()))
        return scores

    cpu.generate(model, random_ids(2, 6), max_new_tokens=6, do_sample=False, logits_processor=[keep])
    for ids, scores in seen:
        torch.testing.assert_close(scores, model(ids).logits[:, -1].float(), rtol=1e-5, atol=1e-6)
    assert fast_calls == [True]


def test_bf16_is_as_precise_as_transformers(fast_calls):
    exact, model = build(LM), build(LM).to(torch.bfloat16)
    seen = []

    def keep(ids, scores):
        seen.append((ids.clone(), scores.clone()))
        return scores

    cpu.generate(model, random_ids(4, 6), max_new_tokens=6, do_sample=False, logits_processor=[keep])
    for ids, scores in seen:
        reference, stock = exact(ids).logits[:, -1], model(ids).logits[:, -1].float()
        assert (scores - reference).norm() <= 2 * (stock - reference).norm() + 1e-3
    assert fast_calls == [True]


def test_streams_each_token(fast_calls):
    class Streamer(TextStreamer):
        def __init__(self):
            self.got, self.ended = [], False

        def put(self, value):
            self.got.append(value.flatten().tolist())

        def end(self):
            self.ended = True

    model, streamer, ids = build(LM), Streamer(), random_ids(1, 4)
    written = cpu.generate(model, ids, max_new_tokens=5, do_sample=False, streamer=streamer)
    assert fast_calls == [True] and streamer.ended
    assert sum(streamer.got, []) == written[0].tolist()


def test_unsupported_options_use_transformers_loop(fast_calls):
    model, ids = build(LM), random_ids(2, 4)
    arguments = dict(max_new_tokens=3, do_sample=False)
    detailed = cpu.generate(model, ids, return_dict_in_generate=True, output_scores=True, **arguments)
    cache = DynamicCache(config=model.config)
    cpu.generate(model, ids, **{CACHE_NAME: cache}, **arguments)
    assert len(detailed.scores) == 3 and cache.get_seq_length() == 6
    for options in (
        dict(use_cache=False),
        dict(cache_implementation="static", disable_compile=True),
        dict(num_beams=2),
        dict(prompt_lookup_num_tokens=2),
        dict(prefill_chunk_size=2),
    ):
        rows = ids[:1] if "prompt_lookup_num_tokens" in options else ids
        assert torch.equal(
            cpu.generate(model, rows, **options, **arguments), model.generate(rows, **options, **arguments)
        )
    assert fast_calls == [False] * 7


def test_generation_config_of_the_model_applies(fast_calls):
    """Beams and sampling may come from the model's `generation_config`, below the options of a call."""
    model, ids = build(LM), random_ids(2, 4)
    model.generation_config.update(num_beams=3, max_new_tokens=6)
    partial = GenerationConfig(max_new_tokens=4)
    assert torch.equal(
        cpu.generate(model, ids, generation_config=partial), model.generate(ids, generation_config=partial)
    )
    assert fast_calls == [False]
    model.generation_config.num_beams = 1
    fast, stock = generate_both(model, ids, generation_config=GenerationConfig(do_sample=True, max_new_tokens=5))
    assert torch.equal(fast, stock) and fast_calls == [False, True]


def test_hooks_and_adapters_see_every_token(fast_calls):
    from peft import LoraConfig, get_peft_model

    model, ids = build(LM), random_ids(1, 4)
    calls = []
    handle = model.model.layers[0].mlp.register_forward_hook(lambda *args: calls.append(1))
    cpu.generate(model, ids, max_new_tokens=3, do_sample=False)
    handle.remove()
    assert len(calls) == 3
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False))
    for subject in (adapted, adapted.get_base_model()):
        fast, stock = generate_both(subject, ids, max_new_tokens=3, do_sample=False)
        assert torch.equal(fast, stock)
    assert fast_calls == [False] * 3


@pytest.mark.parametrize("order", [(2, 1, 0), (0, 1), (0, 2), (0, 1, 2, 1)])
def test_moved_removed_or_repeated_layers(order):
    """Both loops agree, with and without a cache; a repeated layer needs its own `layer_idx`, as in Qwen3."""
    model, ids = build(LM, num_hidden_layers=3, layer_types=None), random_ids(2, 6)
    layers = [model.model.layers[number] for number in order]
    if len(order) > 3:
        layers[3] = copy.deepcopy(layers[3])
        layers[3].self_attn.layer_idx = 3
        model.config.num_hidden_layers, model.config.layer_types = 4, ["full_attention"] * 4
    model.model.layers = nn.ModuleList(layers)
    settings = dict(max_new_tokens=8, do_sample=False, eos_token_id=None)
    fast, stock = generate_both(model, ids, **settings)
    assert torch.equal(fast, stock) and torch.equal(stock, model.generate(ids, use_cache=False, **settings))


@pytest.mark.skipif(not decoding_block._can_pack(torch.float32), reason="torch without oneDNN")
def test_packed_products_equal_torchs():
    """The private operators of torch that the loop uses keep their meaning."""
    for dtype in filter(decoding_block._can_pack, (torch.float32, torch.bfloat16)):
        layers = [nn.Linear(48, 40, bias=bias, dtype=dtype) for bias in (True, False)]
        states = torch.randn(3, 48, dtype=dtype)
        packed = decoding_block.FusedLinear(*layers, rows=3)
        assert packed.product is decoding_block._packed_product
        expected = torch.cat([layer(states) for layer in layers], dim=-1)
        torch.testing.assert_close(packed(states), expected)


class Counting(TfmDecoderForCausalLM):
    """Generates the number of its call, whatever the prompt."""

    calls = 0

    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        self.calls += 1
        outputs.logits[..., 50 + self.calls] = 1e4
        return outputs


def test_a_subclass_runs_its_own_forward():
    model = Counting(build(LM).config).eval()
    written = cpu.generate(model, random_ids(2, 4), max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert written[:, 4:].tolist() == [[51, 52, 53, 54]] * 2


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return 2 * self.inner(states)


def test_replaced_modules_run_as_they_are():
    quantized = torch.ao.quantization.quantize_dynamic(build(LM, tie_word_embeddings=False), {nn.Linear})
    assert cpu.generate(quantized, random_ids(2, 4), max_new_tokens=4, do_sample=False).shape[1] > 4
    model = build(LM)
    model.model.layers[0].self_attn.q_proj = Wrapped(model.model.layers[0].self_attn.q_proj)
    fast, stock = generate_both(model, random_ids(2, 4), max_new_tokens=8, do_sample=False)
    assert torch.equal(fast, stock)


def test_assisted_generation_by_early_exit():
    model, ids = build(LM, num_hidden_layers=3, layer_types=None), random_ids(1, 6)
    settings = dict(max_new_tokens=10, do_sample=False, eos_token_id=None)
    assert torch.equal(model.generate(ids, assistant_early_exit=1, **settings), model.generate(ids, **settings))
    model.model.layers = model.model.layers[:2]  # as who cuts a model short does
    fast, stock = generate_both(model, ids, **settings)
    assert torch.equal(fast, stock)


def test_the_output_has_storage_of_its_own():
    written = cpu.generate(build(LM), random_ids(3, 4), max_new_tokens=5, do_sample=False)
    assert written.is_contiguous() and written.untyped_storage().nbytes() == written.nbytes
