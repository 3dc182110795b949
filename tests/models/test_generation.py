"""Every decoding method gives the tokens of the plainest one: a full forward pass for each token."""

import pytest
import torch
from tiny import DECODER_SHAPES, EOS, PAD, build, random_ids
from torch.testing import assert_close
from transformers import ContinuousBatchingConfig, DynamicCache, GenerationConfig, TextIteratorStreamer, pipeline


NEW = 14
# Longer than every window, so that sliding caches drop tokens.
PROMPT = random_ids(1, 10)


def language_model(shape: str, seed: int = 0, **switches) -> torch.nn.Module:
    # Untied: with random weights a tied model mostly repeats its last token, and every method would agree.
    model = build("TfmDecoderForCausalLM", shape, seed=seed, tie_word_embeddings=False, **switches)
    # Generation stops where the test says so, not where chance puts the end token.
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model


@torch.no_grad()
def decode_plainly(model: torch.nn.Module, prompt: torch.Tensor, new: int = NEW) -> torch.Tensor:
    """Return greedy tokens `(1, prompt + new)`, with a forward pass over the whole text for each."""
    ids = prompt
    for _ in range(new):
        ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return ids


@pytest.fixture(params=DECODER_SHAPES)
def model(request) -> torch.nn.Module:
    return language_model(request.param)


def test_greedy(model):
    expected = decode_plainly(model, PROMPT)
    assert len(set(expected[0, 10:].tolist())) > 4, "a model that repeats one token shows nothing"
    for settings in (dict(), dict(use_cache=False), dict(prefill_chunk_size=4)):
        assert torch.equal(model.generate(PROMPT, max_new_tokens=NEW, do_sample=False, **settings), expected), settings


def test_a_static_cache_gives_the_same_tokens(model):
    settings = dict(max_new_tokens=NEW, do_sample=False, cache_implementation="static", disable_compile=True)
    assert torch.equal(model.generate(PROMPT, **settings), decode_plainly(model, PROMPT))


def test_left_padded_batches_equal_single_rows(model):
    """For all kinds of positions, with rows of very different lengths."""
    prompts = [random_ids(length, seed=length) for length in (10, 6, 1)]
    rows = torch.stack([torch.nn.functional.pad(row, (10 - len(row), 0), value=PAD) for row in prompts])
    mask = torch.stack([torch.nn.functional.pad(torch.ones_like(row), (10 - len(row), 0)) for row in prompts])
    for settings in (
        dict(),
        dict(use_cache=False),
        dict(cache_implementation="static", disable_compile=True),
        dict(num_beams=3),
    ):
        together = model.generate(rows, attention_mask=mask, max_new_tokens=NEW, do_sample=False, **settings)
        for prompt, got in zip(prompts, together):
            alone = model.generate(prompt[None], max_new_tokens=NEW, do_sample=False, **settings)[0]
            assert torch.equal(got[10:], alone[len(prompt) :]), settings


def test_beams_with_and_without_cache(model):
    settings = dict(max_new_tokens=NEW, do_sample=False, num_beams=4, num_return_sequences=2, length_penalty=0.5)
    assert torch.equal(model.generate(PROMPT, **settings), model.generate(PROMPT, **settings, use_cache=False))


@pytest.mark.parametrize(
    "settings",
    [
        dict(temperature=0.7),
        dict(top_k=5),
        dict(top_p=0.8),
        dict(min_p=0.1),
        dict(temperature=1.5, top_k=20, top_p=0.9),
    ],
    ids=str,
)
def test_sampling_draws_from_the_allowed_tokens(settings):
    model = language_model("qwen3")
    drawn = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        drawn.append(
            model.generate(
                PROMPT.repeat(4, 1),
                max_new_tokens=NEW,
                do_sample=True,
                use_cache=use_cache,
                return_dict_in_generate=True,
                output_scores=True,
                **settings,
            )
        )
    assert torch.equal(drawn[0].sequences, drawn[1].sequences)
    assert len({tuple(row.tolist()) for row in drawn[0].sequences}) > 1, "four draws that are all the same"
    for step, scores in enumerate(drawn[0].scores):
        chosen = drawn[0].sequences[:, 10 + step]
        assert scores.gather(1, chosen[:, None]).isfinite().all()
        if "top_k" in settings:
            assert (scores.isfinite().sum(-1) <= settings["top_k"]).all()


def test_assisted_by_a_smaller_model(model):
    """Speculative decoding (Leviathan et al. 2022): a smaller decoder drafts, the tokens are the model's."""
    draft = language_model("qwen3", seed=1, num_hidden_layers=1)
    got = model.generate(PROMPT, max_new_tokens=NEW, do_sample=False, assistant_model=draft)
    assert torch.equal(got, decode_plainly(model, PROMPT))


def test_prompt_lookup(model):
    """Drafts are copied from the prompt, which contains the continuation so that some are accepted."""
    text = decode_plainly(model, PROMPT, new=4)
    prompt = torch.cat([text, text], dim=1)
    got = model.generate(prompt, max_new_tokens=NEW, do_sample=False, prompt_lookup_num_tokens=3)
    assert torch.equal(got, decode_plainly(model, prompt))


def test_a_conversation_continues_with_its_cache(model):
    """The cache of one turn is passed to the next."""
    cache = DynamicCache(config=model.config)
    first = model.generate(PROMPT, max_new_tokens=5, do_sample=False, past_key_values=cache)
    second = torch.cat([first, random_ids(1, 3, seed=5)], dim=1)
    got = model.generate(second, max_new_tokens=5, do_sample=False, past_key_values=cache)
    assert torch.equal(got, decode_plainly(model, second, new=5))


@pytest.mark.parametrize("shape", ["mistral", "mixed"])
def test_sliding_layers_keep_no_more_than_their_window(shape):
    model = language_model(shape)
    cache = DynamicCache(config=model.config)
    model.generate(PROMPT, max_new_tokens=NEW, do_sample=False, past_key_values=cache)
    for layer_type, layer in zip(model.config.layer_types, cache.layers):
        length = layer.keys.shape[-2]
        assert length == (10 + NEW - 1 if layer_type == "full_attention" else model.config.sliding_window - 1)


@pytest.mark.parametrize("shape", DECODER_SHAPES)
def test_continuous_batching_equals_generate(shape):
    """Requests of different lengths over one paged cache."""
    model = language_model(shape)
    prompts = [random_ids(length, seed=length).tolist() for length in (10, 3, 6)]
    settings = GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=-1, pad_token_id=PAD)
    paging = ContinuousBatchingConfig(num_blocks=32, page_size=16, max_batch_tokens=64)
    outputs = model.generate_batch(
        prompts, generation_config=settings, continuous_batching_config=paging, progress_bar=False
    )
    assert len(outputs) == 3
    by_prompt = {tuple(output.prompt_ids): output.generated_tokens for output in outputs.values()}
    for prompt in prompts:
        assert (
            by_prompt[tuple(prompt)] == decode_plainly(model, torch.tensor([prompt]), new=8)[0, len(prompt) :].tolist()
        )


def test_generation_stops_at_the_end_token_and_pads():
    model = language_model("qwen3")
    prompts = torch.stack([PROMPT[0], random_ids(10, seed=9)])
    free = model.generate(prompts, max_new_tokens=NEW, do_sample=False)
    end = free[0, 13].item()
    first = (free[0, 10:] == end).nonzero()[0].item() + 10
    assert end not in free[1, 10 : first + 1]
    stopped = model.generate(prompts, max_new_tokens=NEW, do_sample=False, eos_token_id=[EOS, end])
    assert torch.equal(stopped[0, : first + 1], free[0, : first + 1])
    assert (stopped[0, first + 1 :] == PAD).all()


def test_generation_stops_at_a_string(tokenizer):
    """`generate` passes the tokenizer, which `stop_strings` needs, to the model as well."""
    model = language_model("qwen3")
    free = decode_plainly(model, PROMPT)
    pieces = tokenizer.batch_decode(free[0, 10:, None])
    stop = next(piece for piece in pieces if piece.isalpha())
    got = model.generate(PROMPT, max_new_tokens=NEW, do_sample=False, tokenizer=tokenizer, stop_strings=[stop])
    assert torch.equal(got, free[:, : 10 + pieces.index(stop) + 1])


def test_logits_of_generation_equal_those_of_forward(model):
    outputs = model.generate(
        PROMPT, max_new_tokens=NEW, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    with torch.no_grad():
        expected = model(outputs.sequences[:, :-1]).logits[0, 9:]
    assert_close(torch.cat(outputs.logits), expected, atol=5e-5, rtol=1e-4)


def test_bf16_gives_the_same_tokens_with_and_without_details():
    model = language_model("qwen3").to(torch.bfloat16)
    for seed in range(8):
        prompt = random_ids(1, 12, seed=seed)
        tokens = model.generate(prompt, max_new_tokens=NEW, do_sample=False)
        detailed = model.generate(prompt, max_new_tokens=NEW, do_sample=False, return_dict_in_generate=True)
        assert torch.equal(tokens, detailed.sequences)


def test_streaming(tokenizer):
    model = language_model("qwen3")
    inputs = tokenizer("the cat sat", return_tensors="pt", add_special_tokens=False)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    ids = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, streamer=streamer)
    assert "".join(streamer) == tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :])


def test_text_generation_pipeline(tokenizer):
    model = language_model("qwen3")
    texts = ["the cat", "rain fell on the roof"]
    generate = pipeline("text-generation", model=model, tokenizer=tokenizer)
    settings = dict(max_new_tokens=6, do_sample=False, add_special_tokens=False)
    batched = [rows[0]["generated_text"] for rows in generate(texts, batch_size=2, **settings)]
    assert batched == [generate(text, **settings)[0]["generated_text"] for text in texts]
    assert all(got.startswith(text) and len(got) > len(text) for text, got in zip(texts, batched))


@pytest.mark.slow
def test_compiled_decoding_gives_the_same_tokens():
    for shape in ("qwen3", "mixed"):
        torch._dynamo.reset()
        model = language_model(shape)
        expected = decode_plainly(model, PROMPT)
        model.forward = torch.compile(model.forward, fullgraph=True)
        got = model.generate(PROMPT, max_new_tokens=NEW, do_sample=False, cache_implementation="static")
        assert torch.equal(got, expected), shape


@pytest.mark.parametrize("shape", ["qwen3", "gpt2"])
@pytest.mark.parametrize("kind", ["PrefixTuningConfig", "PromptTuningConfig"])
def test_virtual_tokens_are_counted(shape, kind):
    """With PEFT's virtual tokens, as embeddings or in the cache, generation equals forward passes."""
    peft = pytest.importorskip("peft")
    config = getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=3)
    torch.manual_seed(0)
    model = peft.get_peft_model(build("TfmDecoderForCausalLM", shape), config).eval()
    ids, mask = random_ids(2, 8), torch.ones(2, 8, dtype=torch.long)
    written = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=None)
    with torch.no_grad():
        for _ in range(6):
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(written, ids)
