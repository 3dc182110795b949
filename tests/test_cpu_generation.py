"""The decoder's own loop for greedy search and sampling writes what transformers' loop writes, or leaves it to that."""

import pytest
import torch
from tiny import DECODER_SHAPES, PAD, build, random_ids
from torch import nn
from transformers import DynamicCache, TextStreamer
from transformers.generation import GenerationMixin

from hf_tfm import TfmDecoderForCausalLM
from hf_tfm.modeling_tfm_generation import TfmDecodingLayer, TfmGenerationMixin


LM = "TfmDecoderForCausalLM"


@pytest.fixture
def taken(monkeypatch):
    """Whether each `generate` went through the own loop."""
    answers, decide = [], TfmGenerationMixin._only_tokens_wanted

    def spy(*args):
        answers.append(bool(decide(*args)))
        return answers[-1]

    monkeypatch.setattr(TfmGenerationMixin, "_only_tokens_wanted", spy)
    return answers


def both_loops(monkeypatch, model, *args, **kwargs):
    """The results of the own loop and of transformers'."""
    torch.manual_seed(1)
    own = model.generate(*args, **kwargs)
    with monkeypatch.context() as patch:
        patch.setattr(type(model), "_sample", GenerationMixin._sample)
        torch.manual_seed(1)
        return own, model.generate(*args, **kwargs)


@pytest.mark.parametrize("shape", DECODER_SHAPES)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("how", [dict(do_sample=False), dict(do_sample=True, top_k=20, repetition_penalty=1.3)])
def test_same_tokens(shape, padded, how, taken, monkeypatch):
    model = build(LM, shape)
    ids = random_ids(3, 9)
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :4] = 0
        ids[0, :4] = PAD
    own, stock = both_loops(monkeypatch, model, ids, attention_mask=mask, max_new_tokens=25, **how)
    assert taken == [True] and torch.equal(own, stock)


@pytest.mark.parametrize("shape", ["qwen3", "mistral"])
def test_room_grows(shape, taken, monkeypatch):
    """More tokens than the buffers begin with, for layers that keep all of them and for layers with a window."""
    monkeypatch.setattr(TfmDecodingLayer, "first_room", 3)
    own, stock = both_loops(monkeypatch, build(LM, shape), random_ids(2, 5), max_new_tokens=30, do_sample=False)
    assert taken == [True] and torch.equal(own, stock)


def test_rows_end_by_themselves(taken, monkeypatch):
    model = build(LM)
    first = model.generate(random_ids(3, 4), max_new_tokens=8, do_sample=False)
    for end in first[:, 6].tolist():
        own, stock = both_loops(
            monkeypatch, model, random_ids(3, 4), max_new_tokens=20, eos_token_id=end, pad_token_id=PAD, do_sample=False
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

    model.generate(random_ids(2, 6), max_new_tokens=6, do_sample=False, logits_processor=[keep])
    for ids, scores in seen:
        torch.testing.assert_close(scores, model(ids).logits[:, -1].float(), rtol=1e-5, atol=1e-6)
    assert taken == [True]


def test_bf16_is_as_close_as_transformers_loop(taken):
    exact, model = build(LM), build(LM).to(torch.bfloat16)
    seen = []

    def keep(ids, scores):
        seen.append((ids.clone(), scores.clone()))
        return scores

    model.generate(random_ids(4, 6), max_new_tokens=6, do_sample=False, logits_processor=[keep])
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
    written = model.generate(ids, max_new_tokens=5, do_sample=False, streamer=streamer)
    assert taken == [True] and streamer.ended
    assert sum(streamer.got, []) == written[0].tolist()


def test_leaves_alone_what_it_does_not_give(taken):
    model, ids = build(LM), random_ids(2, 4)
    arguments = dict(max_new_tokens=3, do_sample=False)
    detailed = model.generate(ids, return_dict_in_generate=True, output_scores=True, **arguments)
    cache = DynamicCache(config=model.config)
    model.generate(ids, past_key_values=cache, **arguments)
    assert len(detailed.scores) == 3 and cache.get_seq_length() == 6
    model.generate(ids, use_cache=False, **arguments)
    model.generate(ids, cache_implementation="static", **arguments)
    model.generate(inputs_embeds=model.get_input_embeddings()(ids), **arguments)
    assert taken == [False] * len(taken) and len(taken) == 5


def test_hooks_and_adapters_see_every_token(taken):
    from peft import LoraConfig, get_peft_model

    model, ids = build(LM), random_ids(1, 4)
    calls = []
    handle = model.model.layers[0].mlp.register_forward_hook(lambda *args: calls.append(1))
    model.generate(ids, max_new_tokens=3, do_sample=False)
    handle.remove()
    assert len(calls) == 3
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False))
    adapted.generate(input_ids=ids, max_new_tokens=3, do_sample=False)
    assert taken == [False, False]


@pytest.mark.parametrize("shape", ["qwen3", "gpt2"])
@pytest.mark.parametrize("kind", ["PrefixTuningConfig", "PromptTuningConfig"])
def test_virtual_tokens_are_counted(shape, kind, monkeypatch):
    """PEFT puts tokens in front of the prompt by a method of the instance."""
    peft = pytest.importorskip("peft")
    config = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=3)
    torch.manual_seed(0)
    model = peft.get_peft_model(build(LM, shape), config).eval()
    ids, mask = random_ids(2, 8), torch.ones(2, 8, dtype=torch.long)
    settings = dict(max_new_tokens=6, do_sample=False, eos_token_id=None)
    written = model.generate(input_ids=ids, attention_mask=mask, **settings)
    monkeypatch.setattr(type(model.base_model), "_sample", GenerationMixin._sample)
    assert torch.equal(written, model.generate(input_ids=ids, attention_mask=mask, **settings))


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
    written = model.generate(random_ids(2, 4), max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert written[:, 4:].tolist() == [[51, 52, 53, 54]] * 2


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return 2 * self.inner(states)


def test_stand_ins_are_run_as_they_are(monkeypatch):
    quantized = torch.ao.quantization.quantize_dynamic(build(LM, tie_word_embeddings=False), {nn.Linear})
    assert quantized.generate(random_ids(2, 4), max_new_tokens=4, do_sample=False).shape[1] > 4
    model = build(LM)
    model.model.layers[0].self_attn.q_proj = Wrapped(model.model.layers[0].self_attn.q_proj)
    own, stock = both_loops(monkeypatch, model, random_ids(2, 4), max_new_tokens=8, do_sample=False)
    assert torch.equal(own, stock)


def test_a_draft_by_early_exit_changes_nothing(monkeypatch):
    model, ids = build(LM, num_hidden_layers=3, layer_types=None), random_ids(1, 6)
    settings = dict(max_new_tokens=10, do_sample=False, eos_token_id=None)
    assert torch.equal(model.generate(ids, assistant_early_exit=1, **settings), model.generate(ids, **settings))
    model.model.layers = model.model.layers[:2]  # as who cuts a model short does
    own, stock = both_loops(monkeypatch, model, ids, **settings)
    assert torch.equal(own, stock)


def test_what_is_written_is_a_tensor_of_its_own():
    written = build(LM).generate(random_ids(3, 4), max_new_tokens=5, do_sample=False)
    assert written.is_contiguous() and written.untyped_storage().nbytes() == written.nbytes
