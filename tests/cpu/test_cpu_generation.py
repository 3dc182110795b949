"""`hf_tfm.cpu.generate` gives the tokens of `model.generate`, by its own loop where it can."""

import copy

import pytest
import torch
from tiny import DECODER_SHAPES, PAD, build, random_ids
from torch import nn
from transformers import DynamicCache, GenerationConfig, TextStreamer

from hf_tfm import TfmDecoderForCausalLM, cpu
from hf_tfm.cpu import generation
from hf_tfm.models.modeling_tfm_compat import CACHE_NAME


LM = "TfmDecoderForCausalLM"


@pytest.fixture
def taken(monkeypatch):
    """Whether each call of `cpu.generate` went through its own loop."""
    answers, decide = [], generation._is_supported

    def spy(*args):
        answers.append(bool(decide(*args)))
        return answers[-1]

    monkeypatch.setattr(generation, "_is_supported", spy)
    return answers


def both_loops(model, *args, **kwargs):
    """The results of the CPU loop and of transformers' loop."""
    torch.manual_seed(1)
    own = cpu.generate(model, *args, **kwargs)
    torch.manual_seed(1)
    return own, model.generate(*args, **kwargs)


@pytest.mark.parametrize("shape", DECODER_SHAPES)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("how", [dict(do_sample=False), dict(do_sample=True, top_k=20, repetition_penalty=1.3)])
def test_same_tokens(shape, padded, how, taken):
    model = build(LM, shape)
    ids = random_ids(3, 9)
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :4] = 0
        ids[0, :4] = PAD
    own, stock = both_loops(model, ids, attention_mask=mask, max_new_tokens=25, **how)
    assert taken == [True] and torch.equal(own, stock)


@pytest.mark.parametrize("shape", ["qwen3", "mistral"])
def test_room_grows(shape, taken, monkeypatch):
    """More tokens than the buffers begin with, for layers that keep all of them and for layers with a window."""
    monkeypatch.setattr(generation.DecodingBlock, "initial_capacity", 3)
    own, stock = both_loops(build(LM, shape), random_ids(2, 5), max_new_tokens=30, do_sample=False)
    assert taken == [True] and torch.equal(own, stock)


def test_rows_end_by_themselves(taken):
    model = build(LM)
    first = model.generate(random_ids(3, 4), max_new_tokens=8, do_sample=False)
    for end in first[:, 6].tolist():
        own, stock = both_loops(
            model, random_ids(3, 4), max_new_tokens=20, eos_token_id=end, pad_token_id=PAD, do_sample=False
        )
        assert torch.equal(own, stock)
    assert all(taken)


def test_logits_are_the_ones_of_a_forward_pass(taken):
    """In fp64, so that another order of additions does not hide a mistake."""
    model = build(LM).double()
    seen = []

    def keep(ids, scores):
        seen.append((ids.clone(), scores.clone()))
        return scores

    cpu.generate(model, random_ids(2, 6), max_new_tokens=6, do_sample=False, logits_processor=[keep])
    for ids, scores in seen:
        torch.testing.assert_close(scores, model(ids).logits[:, -1].float(), rtol=1e-5, atol=1e-6)
    assert taken == [True]


def test_bf16_is_as_close_as_transformers_loop(taken):
    exact, model = build(LM), build(LM).to(torch.bfloat16)
    seen = []

    def keep(ids, scores):
        seen.append((ids.clone(), scores.clone()))
        return scores

    cpu.generate(model, random_ids(4, 6), max_new_tokens=6, do_sample=False, logits_processor=[keep])
    for ids, scores in seen:
        reference, stock = exact(ids).logits[:, -1], model(ids).logits[:, -1].float()
        assert (scores - reference).norm() <= 2 * (stock - reference).norm() + 1e-3
    assert taken == [True]


def test_streams_each_token(taken):
    class Streamer(TextStreamer):
        def __init__(self):
            self.got, self.ended = [], False

        def put(self, value):
            self.got.append(value.flatten().tolist())

        def end(self):
            self.ended = True

    model, streamer, ids = build(LM), Streamer(), random_ids(1, 4)
    written = cpu.generate(model, ids, max_new_tokens=5, do_sample=False, streamer=streamer)
    assert taken == [True] and streamer.ended
    assert sum(streamer.got, []) == written[0].tolist()


def test_leaves_to_transformers_what_it_does_not_give(taken):
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
    assert taken == [False] * 7


def test_settings_of_the_model_count(taken):
    """Beams and sampling may stand in the model's own generation settings, under those of a call."""
    model, ids = build(LM), random_ids(2, 4)
    model.generation_config.update(num_beams=3, max_new_tokens=6)
    partial = GenerationConfig(max_new_tokens=4)
    assert torch.equal(
        cpu.generate(model, ids, generation_config=partial), model.generate(ids, generation_config=partial)
    )
    assert taken == [False]
    model.generation_config.num_beams = 1
    own, stock = both_loops(model, ids, generation_config=GenerationConfig(do_sample=True, max_new_tokens=5))
    assert torch.equal(own, stock) and taken == [False, True]


def test_hooks_and_adapters_see_every_token(taken):
    from peft import LoraConfig, get_peft_model

    model, ids = build(LM), random_ids(1, 4)
    calls = []
    handle = model.model.layers[0].mlp.register_forward_hook(lambda *args: calls.append(1))
    cpu.generate(model, ids, max_new_tokens=3, do_sample=False)
    handle.remove()
    assert len(calls) == 3
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False))
    for subject in (adapted, adapted.get_base_model()):
        own, stock = both_loops(subject, ids, max_new_tokens=3, do_sample=False)
        assert torch.equal(own, stock)
    assert taken == [False] * 3


@pytest.mark.parametrize("order", [(2, 1, 0), (0, 1), (0, 2), (0, 1, 2, 1)])
def test_layers_that_were_moved_removed_or_repeated(order):
    """With and without the cache, by both loops, the same text: as with Qwen3, a repeated layer needs its own place."""
    model, ids = build(LM, num_hidden_layers=3, layer_types=None), random_ids(2, 6)
    layers = [model.model.layers[number] for number in order]
    if len(order) > 3:
        layers[3] = copy.deepcopy(layers[3])
        layers[3].self_attn.layer_idx = 3
        model.config.num_hidden_layers, model.config.layer_types = 4, ["full_attention"] * 4
    model.model.layers = nn.ModuleList(layers)
    settings = dict(max_new_tokens=8, do_sample=False, eos_token_id=None)
    own, stock = both_loops(model, ids, **settings)
    assert torch.equal(own, stock) and torch.equal(stock, model.generate(ids, use_cache=False, **settings))


@pytest.mark.skipif(not generation._can_pack(torch.float32), reason="torch without oneDNN")
def test_packed_products_equal_torchs():
    """The private operators of torch that the loop uses still mean what they meant."""
    for dtype in filter(generation._can_pack, (torch.float32, torch.bfloat16)):
        layers = [nn.Linear(48, 40, bias=bias, dtype=dtype) for bias in (True, False)]
        states = torch.randn(3, 48, dtype=dtype)
        packed = generation.FusedLinear(*layers, rows=3)
        assert packed.product is generation._packed_product
        expected = torch.cat([layer(states) for layer in layers], dim=-1)
        torch.testing.assert_close(packed(states), expected)


class Counting(TfmDecoderForCausalLM):
    """Says the numbers of its calls, whatever it was asked."""

    calls = 0

    def forward(self, *args, **kwargs):
        outputs = super().forward(*args, **kwargs)
        self.calls += 1
        outputs.logits[..., 50 + self.calls] = 1e4
        return outputs


def test_a_subclass_has_the_last_word():
    model = Counting(build(LM).config).eval()
    written = cpu.generate(model, random_ids(2, 4), max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert written[:, 4:].tolist() == [[51, 52, 53, 54]] * 2


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return 2 * self.inner(states)


def test_stand_ins_are_run_as_they_are():
    quantized = torch.ao.quantization.quantize_dynamic(build(LM, tie_word_embeddings=False), {nn.Linear})
    assert cpu.generate(quantized, random_ids(2, 4), max_new_tokens=4, do_sample=False).shape[1] > 4
    model = build(LM)
    model.model.layers[0].self_attn.q_proj = Wrapped(model.model.layers[0].self_attn.q_proj)
    own, stock = both_loops(model, random_ids(2, 4), max_new_tokens=8, do_sample=False)
    assert torch.equal(own, stock)


def test_a_draft_by_early_exit_changes_nothing():
    model, ids = build(LM, num_hidden_layers=3, layer_types=None), random_ids(1, 6)
    settings = dict(max_new_tokens=10, do_sample=False, eos_token_id=None)
    assert torch.equal(model.generate(ids, assistant_early_exit=1, **settings), model.generate(ids, **settings))
    model.model.layers = model.model.layers[:2]  # as who cuts a model short does
    own, stock = both_loops(model, ids, **settings)
    assert torch.equal(own, stock)


def test_what_is_written_is_a_tensor_of_its_own():
    written = cpu.generate(build(LM), random_ids(3, 4), max_new_tokens=5, do_sample=False)
    assert written.is_contiguous() and written.untyped_storage().nbytes() == written.nbytes
