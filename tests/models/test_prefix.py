"""Prefix tokens see one another: the mask is the definition's for all batches, backends and caches."""

import copy

import pytest
import torch
from shapes import CLOSE
from steps import relative_error, step
from tiny import DECODER_SHAPES, PAD, build, random_ids
from torch.testing import assert_close
from transformers import DynamicCache, StaticCache

from hf_tfm.cpu import generation
from hf_tfm.cpu.attention import enable_blockwise_attention


LM = "TfmDecoderForCausalLM"
SHAPES_AND_BACKENDS = [
    *[(shape, attention) for shape in DECODER_SHAPES for attention in ("eager", "sdpa")],
    # FlexAttention compiles its kernels, up to a minute for a shape; these have every kind of mask.
    *[pytest.param(shape, "flex_attention", marks=pytest.mark.slow) for shape in ("qwen3", "mixed")],
]
# Rows of documents by (length, length of the prefix); the places that are left over are padding.
ROWS = [[(12, 7), (5, 0), (3, 3)], [(9, 9), (11, 4)], [(16, 1)]]
WIDTH = 20


def packed_batch(side: str) -> dict[str, torch.Tensor]:
    """The rows with padding on one side: ids, positions, attention and prefix masks, and each token's document."""
    batch = {
        name: torch.zeros(len(ROWS), WIDTH, dtype=torch.long)
        for name in ("position_ids", "attention_mask", "prefix_mask", "documents")
    }
    batch["input_ids"] = random_ids(len(ROWS), WIDTH)
    for row, documents in enumerate(ROWS):
        start = WIDTH - sum(length for length, _ in documents) if side == "left" else 0
        for number, (length, prefix) in enumerate(documents, 1):
            batch["position_ids"][row, start : start + length] = torch.arange(length)
            batch["attention_mask"][row, start : start + length] = 1
            batch["prefix_mask"][row, start : start + prefix] = 1
            batch["documents"][row, start : start + length] = number
            start += length
    batch["input_ids"][batch["attention_mask"] == 0] = PAD
    return batch


def dense_masks(batch: dict[str, torch.Tensor], window: int | None) -> dict[str, torch.Tensor]:
    """The definition, token by token, as prepared additive masks."""
    rows, width = batch["input_ids"].shape
    masks = {}
    for name, reach in (("full_attention", None), ("sliding_attention", window)):
        mask = torch.full((rows, 1, width, width), torch.finfo(torch.float32).min)
        for row in range(rows):
            document, prefix = batch["documents"][row], batch["prefix_mask"][row]
            for query in range(width):
                for key in range(width):
                    together = document[query] == document[key] and document[key] > 0
                    in_order = key <= query or (prefix[query] and prefix[key])
                    near = reach is None or abs(query - key) < reach
                    if (together and in_order and near) or query == key:
                        mask[row, 0, query, key] = 0
        masks[name] = mask
    return masks


@pytest.mark.parametrize("shape, attention", SHAPES_AND_BACKENDS)
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_equals_the_dense_mask(shape, side, attention):
    model, batch = build(LM, shape), packed_batch(side)
    masks, real = dense_masks(batch, model.config.sliding_window), batch.pop("documents") > 0
    model.set_attn_implementation("eager")
    expected = model(**{**batch, "attention_mask": masks, "prefix_mask": None}).logits
    model.set_attn_implementation(attention)
    # After batches of many sizes torch 2.13 writes C++ of flex attention in which `ks1` is replaced inside `ks11`.
    torch._dynamo.reset()
    for use_cache in (False, True):
        assert_close(model(**batch, use_cache=use_cache).logits[real], expected[real], **CLOSE)
    without = model(**{**batch, "prefix_mask": None}).logits
    assert (without - expected)[real].abs().max() > 0.1, "the prefix changes nothing"


@torch.no_grad()
def test_an_empty_prefix_changes_nothing():
    model, batch = build(LM), packed_batch("right")
    del batch["documents"]
    real, nothing = batch["attention_mask"] > 0, torch.zeros_like(batch.pop("prefix_mask"), dtype=torch.bool)
    assert_close(model(**batch, prefix_mask=nothing).logits[real], model(**batch).logits[real], **CLOSE)
    # Everything in the prefix: every token sees the whole document, as without causality.
    whole = model.model(**batch, prefix_mask=~nothing).last_hidden_state
    assert_close(whole[real], model.model(**batch, is_causal=False).last_hidden_state[real], **CLOSE)


@pytest.mark.parametrize("shape", DECODER_SHAPES)
@torch.no_grad()
def test_nothing_leaks(shape):
    """A changed token changes no output before a target, and none of another document."""
    model = build(LM, shape)
    ids, prefix = random_ids(1, 16), torch.zeros(1, 16, dtype=torch.bool)
    prefix[0, :5] = prefix[0, 10:13] = True
    inputs = {"position_ids": torch.cat([torch.arange(10), torch.arange(6)])[None], "prefix_mask": prefix}
    before = model(ids, **inputs).logits[0]

    def changed_by(column: int) -> list[int]:
        other = ids.clone()
        other[0, column] = ids[0, column] + 1 if ids[0, column] < 300 else ids[0, column] - 1
        difference = (model(other, **inputs).logits[0] - before).abs().amax(-1)
        return (difference > 1e-6).nonzero().flatten().tolist()

    def within_reach(first: int, last: int, column: int) -> set[int]:
        """Of the tokens from `first` to `last` those that a stack of the model's windows connects to a column."""
        if "full_attention" in model.config.layer_types:
            return set(range(first, last + 1))
        reach = (model.config.sliding_window - 1) * model.config.num_hidden_layers
        return {place for place in range(first, last + 1) if abs(place - column) <= reach}

    for target in (5, 7, 9):  # behind the first document's prefix
        assert set(changed_by(target)) <= set(range(target, 10)) and target in changed_by(target)
    assert set(changed_by(4)) == within_reach(0, 9, 4), "the prefix is seen from its start on, and by its targets"
    assert set(changed_by(12)) == within_reach(10, 15, 12)


@pytest.mark.parametrize("shape", DECODER_SHAPES)
@torch.no_grad()
def test_a_cache_changes_nothing(shape):
    """The prefix in one call, the rest token by token or in chunks, after padding of different widths."""
    model, ids = build(LM, shape), random_ids(3, 18)
    attention_mask, prefix = torch.ones_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    attention_mask[0, :4] = attention_mask[1, :2] = 0
    prefix[:, :10] = True
    expected = model(ids, attention_mask=attention_mask, prefix_mask=prefix).logits
    for cache in (DynamicCache(config=model.config), StaticCache(model.config, max_cache_len=24)):
        got = [
            model(ids[:, :11], attention_mask=attention_mask[:, :11], prefix_mask=prefix[:, :11], past_key_values=cache)
        ]
        for start, end in ((11, 12), (12, 15), (15, 18)):
            got.append(
                model(ids[:, start:end], attention_mask=attention_mask[:, :end], past_key_values=cache, use_cache=True)
            )
        logits = torch.cat([outputs.logits for outputs in got], dim=1)
        assert_close(logits[attention_mask > 0], expected[attention_mask > 0], **CLOSE)


@pytest.mark.parametrize("end", [11, 14])
@torch.no_grad()
def test_a_prefix_behind_cached_tokens(end):
    """New tokens may be a prefix too: they see cached tokens and one another, no empty cache entries."""
    model, ids = build(LM, "mixed"), random_ids(2, 14)
    prefix = torch.zeros_like(ids, dtype=torch.bool)
    prefix[:, 6:end] = True
    expected = model(ids, prefix_mask=prefix).logits[:, 6:]
    for cache in (DynamicCache(config=model.config), StaticCache(model.config, max_cache_len=24)):
        model(ids[:, :6], past_key_values=cache)
        got = model(ids[:, 6:], past_key_values=cache, prefix_mask=prefix[:, 6:]).logits
        assert_close(got, expected, **CLOSE)


def greedy(model, ids, attention_mask, prefix, new: int) -> torch.Tensor:
    """Return greedy tokens, each by a forward pass over the whole text."""
    for _ in range(new):
        logits = model(ids, attention_mask=attention_mask, prefix_mask=prefix).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
        attention_mask = torch.nn.functional.pad(attention_mask, (0, 1), value=1)
        prefix = torch.nn.functional.pad(prefix, (0, 1))
    return ids


@pytest.mark.parametrize("shape", DECODER_SHAPES)
@torch.no_grad()
def test_generate_by_every_loop(shape, monkeypatch):
    # Tied weights find the last token itself likeliest, small ones hardly look at others: little would show a mistake.
    # With a window few tokens change by the prefix: with these weights some do in every shape.
    model, ids = build(LM, shape, seed=4, tie_word_embeddings=False, initializer_range=0.5), random_ids(3, 10)
    mask, prefix = torch.ones_like(ids), torch.ones_like(ids, dtype=torch.bool)
    mask[0, :4], ids[0, :4], prefix[:, -1] = 0, PAD, False
    inputs = dict(attention_mask=mask, prefix_mask=prefix, max_new_tokens=8, do_sample=False, eos_token_id=None)
    expected = greedy(model, ids, mask, prefix, 8)
    assert not torch.equal(greedy(model, ids, mask, torch.zeros_like(prefix), 8), expected), "it says nothing"

    fast_calls, decide = [], generation._is_supported
    monkeypatch.setattr(generation, "_is_supported", lambda *args: fast_calls.append(decide(*args)) or fast_calls[-1])
    assert torch.equal(generation.generate(model, ids, **inputs), expected)
    assert fast_calls == [True]
    for settings in (
        {},
        dict(use_cache=False),
        dict(cache_implementation="static", disable_compile=True),
        dict(num_beams=2),
        dict(prompt_lookup_num_tokens=2),
    ):
        alone = {key: value[1:2] if torch.is_tensor(value) else value for key, value in inputs.items()}
        single = model.generate(ids[1:2], **alone, **settings)
        if "num_beams" not in settings:
            assert torch.equal(single, expected[1:2]), settings
        if "prompt_lookup_num_tokens" not in settings:  # takes single rows
            assert torch.equal(model.generate(ids, **inputs, **settings)[1:2], single), settings


@torch.no_grad()
def test_generate_from_embeddings():
    model, ids = build(LM), random_ids(2, 8)
    prefix = torch.ones_like(ids, dtype=torch.bool)
    settings = dict(prefix_mask=prefix, max_new_tokens=5, do_sample=False, eos_token_id=None)
    expected = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[:, 8:]
    embeddings = model.get_input_embeddings()(ids)
    assert torch.equal(model.generate(inputs_embeds=embeddings, **settings), expected)


@pytest.mark.parametrize("shape", ["qwen3", "mixed"])
def test_blockwise_attention_supports_prefixes(shape):
    """Over several blocks: causal rows skip those above the diagonal."""
    window = {"sliding_window": 150} if shape == "mixed" else {}
    model = build(LM, shape, max_position_embeddings=512, initializer_range=0.3, **window).train()
    prefix = torch.zeros(2, 300, dtype=torch.bool)
    prefix[0, :200] = prefix[1, :40] = prefix[1, 100:250] = True
    ids = random_ids(2, 300)
    positions = torch.stack([torch.arange(300), torch.cat([torch.arange(100), torch.arange(200)])])
    inputs = dict(input_ids=ids, position_ids=positions, prefix_mask=prefix, labels=ids.masked_fill(prefix, -100))
    plain, blockwise = copy.deepcopy(model), copy.deepcopy(model)
    assert enable_blockwise_attention(blockwise)
    reference = {}
    for name in ("prefix", "no prefix"):
        model.zero_grad()
        model(**inputs if name == "prefix" else {**inputs, "prefix_mask": None}).loss.backward()
        reference[name] = torch.cat([p.grad.flatten() for p in model.parameters()])
    blockwise_error, sdpa_error = (relative_error(step(m, inputs)[1], reference["prefix"]) for m in (blockwise, plain))
    assert blockwise_error < 1.5 * sdpa_error + 0.01
    assert relative_error(reference["no prefix"], reference["prefix"]) > 5 * blockwise_error


def test_contradictory_arguments_are_refused(flash):
    model, ids = build(LM), random_ids(2, 6)
    prefix = torch.ones_like(ids, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"shape of the new tokens, \(2, 6\), not \(2, 5\)"):
        model(ids, prefix_mask=prefix[:, :5])
    with pytest.raises(ValueError, match="prepared attention mask"):
        model(ids, prefix_mask=prefix, attention_mask=torch.zeros(2, 1, 6, 6))
    for mask in (None, torch.ones_like(ids)):
        with pytest.raises(ValueError, match="'flash_attention_2' takes no prefix_mask"):
            flash(build(LM))(ids, prefix_mask=prefix, attention_mask=mask)


def test_a_prefix_needs_a_single_forward_pass():
    model, ids = build(LM), random_ids(1, 12)
    prefix = torch.zeros_like(ids, dtype=torch.bool)
    prefix[:, 1:4] = True
    whole = model.generate(ids, prefix_mask=prefix, max_new_tokens=4, do_sample=False)
    assert torch.equal(
        model.generate(ids, prefix_mask=prefix, max_new_tokens=4, do_sample=False, prefill_chunk_size=6), whole
    )
    with pytest.raises(ValueError, match="leave prefill_chunk_size out"):
        model.generate(ids, prefix_mask=prefix, max_new_tokens=4, do_sample=False, prefill_chunk_size=3)


@pytest.mark.parametrize("head", ["SequenceClassification", "TokenClassification", "QuestionAnswering"])
@torch.no_grad()
def test_other_heads_support_prefixes(head):
    model, ids = build(f"TfmDecoderFor{head}"), random_ids(2, 6)
    prefix = torch.ones_like(ids, dtype=torch.bool)
    assert not torch.allclose(model(ids, prefix_mask=prefix)[0], model(ids)[0])
