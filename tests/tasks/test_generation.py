"""Generating text: sampling options, streams, prompts, and replies that are the same alone and in a batch."""

import threading

import pytest
import torch
from tiny import build
from transformers import GPT2Config, GPT2LMHeadModel

from hf_tfm.core.errors import InputError
from hf_tfm.data.tokenizer import train_tokenizer
from hf_tfm.tasks.generation import encode_prompt, generate_replies, sampling_options, stream_text


PROMPT = "the cat sat on"


@pytest.fixture(scope="module")
def model():
    return build("TfmDecoderForCausalLM", eos_token_id=None)


@pytest.mark.parametrize(
    "settings, options",
    [
        ({}, {}),
        ({"temperature": 0.0, "top_p": 0.9}, {"do_sample": False}),
        ({"temperature": 0.5}, {"do_sample": True, "temperature": 0.5}),
        ({"top_k": 5}, {"do_sample": True, "top_k": 5}),
        ({"repetition_penalty": 1.2}, {"repetition_penalty": 1.2}),
        ({"beams": 3}, {"do_sample": False, "num_beams": 3}),
        ({"beams": 3, "min_p": 0.1}, {"do_sample": True, "min_p": 0.1, "num_beams": 3}),
    ],
)
def test_settings_become_options_of_generate(settings, options):
    assert sampling_options(**settings) == options


@pytest.mark.parametrize("beams", [1, 3])
def test_streamed_pieces_are_the_text_of_generate(model, tokenizer, beams):
    ids, _ = encode_prompt(model, tokenizer, PROMPT)
    options = dict(do_sample=False, num_beams=beams, max_new_tokens=9)
    whole = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)[0]
    for skip, start in ((True, ids.shape[1]), (False, 0)):
        pieces = list(stream_text(model, tokenizer, ids, skip_prompt=skip, **options))
        assert "".join(pieces) == tokenizer.decode(whole[start:], skip_special_tokens=True)
    assert len(pieces) > 1 or beams > 1, "it comes piece by piece"


def test_closing_the_stream_stops_the_model(tokenizer):
    model = build("TfmDecoderForCausalLM", eos_token_id=None, max_position_embeddings=100_000)
    ids, _ = encode_prompt(model, tokenizer, PROMPT)
    threads = threading.active_count()
    pieces = stream_text(model, tokenizer, ids, max_new_tokens=90_000, do_sample=True)
    next(pieces)
    pieces.close()
    assert threading.active_count() == threads


def test_an_error_of_the_model_reaches_the_reader(model, tokenizer):
    ids, _ = encode_prompt(model, tokenizer, PROMPT)
    with pytest.raises(ValueError, match="strictly positive"):
        list(stream_text(model, tokenizer, ids, max_new_tokens=2, do_sample=True, temperature=-1.0))


def test_prompts_without_room_are_refused(model, tokenizer):
    with pytest.raises(InputError, match="leaves no room: it has .* tokens and the model reads 64"):
        encode_prompt(model, tokenizer, "zq" * 100)


def test_replies_are_the_same_alone_and_in_a_batch():
    tokenizer = train_tokenizer(kind="bytes")
    model = build("TfmDecoderForCausalLM", pad_token_id=0, eos_token_id=3)
    prompts = [list(range(30, 30 + length)) for length in (3, 9, 5, 12)]
    model.generation_config.update(do_sample=True, temperature=2.0, repetition_penalty=9.0)
    together = generate_replies(model, tokenizer, prompts, 8)
    assert model.generation_config.repetition_penalty == 9.0
    with torch.no_grad():
        first = model(input_ids=torch.tensor([prompts[1]])).logits[0, -1].argmax()
    assert together[1].text.startswith(tokenizer.decode([first]))
    assert together == [generate_replies(model, tokenizer, [prompt], 8)[0] for prompt in prompts]


def test_replies_end_at_the_last_position_of_the_model():
    tokenizer = train_tokenizer(kind="bytes")
    config = GPT2Config(vocab_size=320, n_positions=16, n_embd=8, n_layer=1, n_head=1)
    model = GPT2LMHeadModel(config).eval()
    prompts = [list(range(30, 30 + length)) for length in (3, 14, 16, 17, 9)]
    together = generate_replies(model, tokenizer, prompts, 8)
    assert together == [generate_replies(model, tokenizer, [prompt], 8)[0] for prompt in prompts]
    assert [len(reply.text) > 0 for reply in together] == [True, True, False, False, True]
