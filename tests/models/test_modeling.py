"""Outputs do not depend on batch, padding, packing, attention backend or cache; saving and loading."""

import math

import pytest
import torch
from shapes import CLOSE, HEADS, SHAPES, SHAPES_AND_BACKENDS, logits_of
from tiny import (
    MODELS,
    VOCAB_SIZE,
    build,
    decoder_config,
    encoder_config,
    inputs_for,
    random_ids,
)
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, DynamicCache

import hf_tfm
from hf_tfm.models.modeling_tfm_compat import CACHE_NAME
from hf_tfm.models.modeling_tfm_encoder import mean_of_tokens


pytestmark = pytest.mark.quick


# Packing


# Padding and batches


@pytest.mark.parametrize("family, shape, attention", SHAPES_AND_BACKENDS)
@torch.no_grad()
def test_attention_backends_agree(family, shape, attention):
    model = build(f"Tfm{family}Model", shape)
    inputs = dict(input_ids=random_ids(2, 12), attention_mask=torch.ones(2, 12, dtype=torch.long))
    inputs["attention_mask"][1, 8:] = 0
    real = inputs["attention_mask"].bool()
    model.set_attn_implementation("eager")
    expected = model(**inputs).last_hidden_state[real]
    model.set_attn_implementation(attention)
    assert_close(model(**inputs).last_hidden_state[real], expected, **CLOSE)


@pytest.mark.parametrize("name", ["TfmDecoderForSequenceClassification", "TfmEncoderForSequenceClassification"])
@torch.no_grad()
def test_the_last_token_is_found_by_mask_and_not_by_id(name):
    model = build(name)
    # The padding token's own id, inside and at the end of a text.
    ids = torch.tensor([[9, 0, 11, 0]])
    expected = model(input_ids=ids).logits
    extra = torch.full((1, 3), 17)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0]])
    assert_close(model(input_ids=torch.cat([ids, extra], 1), attention_mask=mask).logits, expected, **CLOSE)
    assert_close(model(input_ids=torch.cat([extra, ids], 1), attention_mask=mask.flip(1)).logits, expected, **CLOSE)
    assert not torch.allclose(model(input_ids=ids[:, :3]).logits, expected, atol=1e-3)


@pytest.mark.parametrize("window", [2, 3])
@torch.no_grad()
def test_the_window_is_as_wide_as_documented(window):
    """A changed token influences exactly the tokens whose window contains it."""
    ids = random_ids(1, 12)
    changed = ids.clone()
    changed[0, 6] = 8 if ids[0, 6] != 8 else 9
    for family, reach in (("Decoder", range(6, 6 + window)), ("Encoder", range(6 - window, 7 + window))):
        switches = dict(num_hidden_layers=1, sliding_window=window, layer_types=["sliding_attention"])
        for attention in ("eager", "sdpa"):
            model = build(f"Tfm{family}Model", **switches)
            model.set_attn_implementation(attention)
            difference = (model(input_ids=ids)[0] - model(input_ids=changed)[0]).abs().amax(-1)[0]
            assert (difference > 1e-6).nonzero().flatten().tolist() == list(reach), (family, attention)


# Outputs and arguments


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_hidden_states_and_attentions(name):
    model = build(name)
    model.set_attn_implementation("eager")
    inputs = inputs_for(name)
    plain = model(**inputs)
    assert plain.hidden_states is None and plain.attentions is None
    outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
    assert_close(logits_of(outputs), logits_of(plain))
    assert len(outputs.hidden_states) == model.config.num_hidden_layers + 1
    assert len(outputs.attentions) == model.config.num_hidden_layers
    batch, length = inputs["input_ids"].flatten(0, -2).shape
    for states in outputs.hidden_states:
        assert states.shape == (batch, length, model.config.hidden_size)
    for probabilities in outputs.attentions:
        assert probabilities.shape == (batch, model.config.num_attention_heads, length, length)
        assert_close(probabilities.sum(-1), torch.ones(probabilities.shape[:-1]))
        looks_ahead = "Encoder" in name or name == "TfmDecoderForMaskedLM"
        assert (probabilities.triu(1).abs().max() == 0) != looks_ahead
    as_tuple = model(**inputs, return_dict=False)
    assert isinstance(as_tuple, tuple) and any(torch.equal(value, logits_of(plain)) for value in as_tuple[:2])


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_inputs_embeds_replace_input_ids(name):
    model = build(name, "vaswani2017")
    inputs = inputs_for(name)
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    others = {key: value for key, value in inputs.items() if key != "input_ids"}
    assert_close(logits_of(model(inputs_embeds=embeds, **others)), logits_of(model(**inputs)))
    if not name.endswith("MultipleChoice"):
        for wrong in ({}, dict(input_ids=inputs["input_ids"], inputs_embeds=embeds)):
            with pytest.raises(ValueError, match="input_ids or inputs_embeds"):
                model(**wrong)


@torch.no_grad()
def test_logits_to_keep():
    model = build("TfmDecoderForCausalLM", "mixed")
    ids = random_ids(2, 8)
    every = model(input_ids=ids).logits
    assert_close(model(input_ids=ids, logits_to_keep=3).logits, every[:, -3:])
    assert_close(model(input_ids=ids, logits_to_keep=torch.tensor([1, 4])).logits, every[:, [1, 4]])
    for_each_row = model(input_ids=ids, logits_to_keep=torch.tensor([[1, 4], [0, 7]])).logits
    assert_close(for_each_row, torch.stack([every[0, [1, 4]], every[1, [0, 7]]]))
    assert_close(model(input_ids=ids, logits_to_keep=ids > 100).logits, every[ids > 100])
    assert every.abs().max() < model.config.final_logit_softcapping


@torch.no_grad()
def test_attention_gate_scales_each_head():
    gated, plain = (
        build("TfmDecoderForCausalLM", attention_gate=gate).model.layers[0].self_attn for gate in (True, False)
    )
    plain.load_state_dict({name: weight for name, weight in gated.state_dict().items() if "gate" not in name})
    written = {}
    for name, layer in (("gated", gated), ("plain", plain)):
        layer.o_proj.register_forward_pre_hook(lambda _, inputs, name=name: written.update({name: inputs[0]}))
        layer(states := torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0)))
    factors = 2 / (1 + torch.exp(-states @ gated.head_gate.weight.T))
    assert factors.min() < 0.5 and factors.max() > 1.5
    heads = (2, 5, gated.config.num_attention_heads, -1)
    assert_close(written["gated"].view(heads), written["plain"].view(heads) * factors[..., None], **CLOSE)


@torch.no_grad()
def test_value_residual_adds_embedding_values_in_each_layer():
    mixed, plain = (build("TfmDecoderForCausalLM", value_residual=mix) for mix in (True, False))
    plain.load_state_dict({name: weight for name, weight in mixed.state_dict().items() if "value" not in name})
    ids = random_ids(2, 8)
    embeddings = plain.model.embed_tokens(ids)
    normal = embeddings / (embeddings.square().mean(-1, keepdim=True) + mixed.config.norm_eps).sqrt()
    values = normal @ mixed.model.embed_values.weight.T
    for number, (mixed_layer, plain_layer) in enumerate(zip(mixed.model.layers, plain.model.layers), start=1):
        mixed_layer.self_attn.value_mix.fill_(0.4 * number)
        plain_layer.self_attn.v_proj.register_forward_hook(lambda _, i, output, mix=0.4 * number: output + mix * values)
    assert_close(mixed(input_ids=ids).logits, plain(input_ids=ids).logits, **CLOSE)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["TfmDecoderForCausalLM", "TfmEncoderForMaskedLM", "TfmEncoderForPreTraining"])
@torch.no_grad()
def test_resizing_the_vocabulary_keeps_the_old_tokens(name, tied, tmp_path):
    model = build(name, tie_word_embeddings=tied)
    inputs = inputs_for(name)
    del inputs["labels"]
    old_logits = logits_of(model(**inputs))
    model.resize_token_embeddings(VOCAB_SIZE + 7)
    new_logits = logits_of(model(**inputs))
    assert new_logits.shape[-1] == model.config.vocab_size == VOCAB_SIZE + 7
    assert_close(new_logits[..., :VOCAB_SIZE], old_logits)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    model.save_pretrained(tmp_path)
    assert_close(logits_of(type(model).from_pretrained(tmp_path)(**inputs)), new_logits)


def test_more_tokens_than_learned_positions_is_a_clear_error():
    for name in ("TfmDecoderForCausalLM", "TfmEncoderForMaskedLM"):
        model = build(name, "gpt2" if "Decoder" in name else "bert")
        ids, mask = random_ids(1, 65), torch.ones(1, 65, dtype=torch.long)
        for kwargs in ({}, dict(attention_mask=mask)):
            with pytest.raises(ValueError, match="65 tokens.*max_position_embeddings=64"):
                model(ids, **kwargs)
        # What counts is tokens, not columns.
        mask[0, 0] = 0
        model(ids, attention_mask=mask)
        build(name)(ids)  # rotary positions have no end
    model = build("TfmDecoderForCausalLM", "gpt2")
    model.generation_config.eos_token_id = None
    with pytest.raises(ValueError, match="65 tokens"):
        model.generate(random_ids(1, 60), max_new_tokens=8)


# Saving and loading


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_save_and_load_are_inverse(name, tied, tmp_path):
    model = build(name, tie_word_embeddings=tied)
    inputs = inputs_for(name)
    model.save_pretrained(tmp_path)
    loaded, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    state = model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
    # Up to the last bit: weights read from a file lie elsewhere in memory, where some products add in another order.
    assert_close(logits_of(loaded(**inputs)), logits_of(model(**inputs)), atol=1e-6, rtol=1e-6)
    output = model.get_output_embeddings()
    if output is not None:
        loaded_output = loaded.get_output_embeddings()
        assert (loaded_output.weight is loaded.get_input_embeddings().weight) == tied
        assert torch.equal(loaded_output.weight, output.weight)


@pytest.mark.parametrize(
    "family, switches",
    [
        ("Decoder", dict()),
        ("Decoder", dict(rope_parameters={"rope_type": "linear", "factor": 2.0})),
        ("Decoder", dict(rope_parameters={"rope_type": "dynamic", "factor": 2.0})),
        ("Decoder", dict(rope_parameters={"rope_type": "yarn", "factor": 4.0})),
        (
            "Decoder",
            dict(
                rope_parameters={
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 16,
                }
            ),
        ),
        (
            "Decoder",
            dict(
                rope_parameters={
                    "rope_type": "longrope",
                    "factor": 2.0,
                    "short_factor": [1.0, 1.5, 2.0, 2.5],
                    "long_factor": [1.0, 2.0, 3.0, 4.0],
                    "original_max_position_embeddings": 32,
                }
            ),
        ),
        ("Decoder", dict(rope_parameters={"rope_type": "proportional", "partial_rotary_factor": 0.5})),
        ("Decoder", dict(rope_parameters={"partial_rotary_factor": 0.5})),
        ("Decoder", dict(shape="mixed")),
        ("Encoder", dict(shape="modernbert")),
        ("Decoder", dict(shape="vaswani2017")),
        ("Encoder", dict(shape="bert")),
    ],
    ids=str,
)
@torch.no_grad()
def test_loading_fills_every_buffer(family, switches, tmp_path):
    """Models load on the meta device: a buffer that nothing fills has arbitrary contents."""
    model = build(f"Tfm{family}Model", **switches)
    model.save_pretrained(tmp_path)
    expected = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for low_precision in (False, True):
        dtype = torch.bfloat16 if low_precision else torch.float32
        loaded = type(model).from_pretrained(tmp_path, dtype=dtype)
        buffers = dict(loaded.named_buffers())
        assert buffers.keys() == expected.keys()
        assert bool(buffers) == (model.config.position_embedding_type == "rope")
        for name, buffer in buffers.items():
            assert buffer.dtype == torch.float32 and torch.equal(buffer, expected[name]), name
        ids = random_ids(1, 20)
        if not low_precision:
            assert torch.equal(loaded(ids).last_hidden_state, model(ids).last_hidden_state)
        assert loaded(ids).last_hidden_state.isfinite().all()


def test_new_heads_are_initialised(tmp_path):
    """Weights that a checkpoint lacks are initialised, not left with arbitrary contents."""
    build("TfmEncoderModel").save_pretrained(tmp_path)
    for head in ("ForSequenceClassification", "ForMaskedLM", "ForPreTraining"):
        model = getattr(hf_tfm, f"TfmEncoder{head}").from_pretrained(tmp_path)
        assert model.head.dense.weight.std().item() == pytest.approx(model.config.initializer_range, rel=0.15)
        assert torch.equal(model.head.norm.weight, torch.ones(32))


@pytest.mark.parametrize("family, shape", SHAPES)
def test_initial_weights(family, shape):
    """Matrices by `initializer_range`, smaller into the residual stream; gains 1, biases 0 (GPT-2)."""
    make = decoder_config if family == "Decoder" else encoder_config
    config = make(shape, hidden_size=64, intermediate_size=96, num_hidden_layers=2, initializer_range=0.02)
    torch.manual_seed(0)
    model = (AutoModelForCausalLM if family == "Decoder" else AutoModelForMaskedLM).from_config(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            start = 0.5 if name.endswith("value_mix") else 0 if name.endswith("bias") else 1
            assert (parameter == start).all(), name
        else:
            into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            std = 0.02 / math.sqrt(4) if into_residual else 0.02
            assert parameter.std().item() == pytest.approx(std, rel=0.1), name
            assert abs(parameter.mean().item()) < 5 * std / math.sqrt(parameter.numel()), name
    assert (model.model.embed_tokens.weight[config.pad_token_id] == 0).all()


@torch.no_grad()
def test_base_and_heads_open_one_another(tmp_path):
    """A pretrained folder opens with another, new head and as a base model, and back."""
    masked = build("TfmEncoderForMaskedLM")
    masked.save_pretrained(tmp_path / "masked")
    classifier = hf_tfm.TfmEncoderForSequenceClassification.from_pretrained(tmp_path / "masked", num_labels=5)
    assert classifier.classifier.out_features == 5
    # The dense prediction head is trained with the language model and goes with it.
    assert torch.equal(classifier.head.dense.weight, masked.head.dense.weight)
    classifier.save_pretrained(tmp_path / "classifier")
    back = AutoModelForMaskedLM.from_pretrained(tmp_path / "classifier")
    base = AutoModel.from_pretrained(tmp_path / "classifier")
    ids = random_ids(2, 6)
    assert torch.equal(base(ids).last_hidden_state, masked.model(ids).last_hidden_state)
    assert torch.equal(back.decoder.weight, masked.decoder.weight), "tied to the embeddings, so not lost"
    base.save_pretrained(tmp_path / "base")
    again = hf_tfm.TfmEncoderForMaskedLM.from_pretrained(tmp_path / "base")
    assert torch.equal(again.model(ids).last_hidden_state, masked.model(ids).last_hidden_state)


def test_the_mean_of_many_large_states_is_finite():
    states, mask = torch.full((2, 4000, 3), 20.0, dtype=torch.float16), torch.ones(2, 4000)
    mask[1, 100:] = 0
    assert mean_of_tokens(states, mask).eq(20).all()


def test_arguments_without_effect_are_refused():
    model, ids = build("TfmDecoderModel"), random_ids(2, 8)
    with pytest.raises(ValueError, match="no cross-attention"):
        model(ids, encoder_hidden_states=torch.zeros(2, 3, model.config.hidden_size))
    with torch.no_grad():
        assert torch.equal(model(ids, is_causal=None).last_hidden_state, model(ids).last_hidden_state)
    with pytest.raises(ValueError, match="does not know temprature"):
        build("TfmEncoderForMaskedLM").generate(ids, max_new_tokens=3, temprature=0.5)
    with pytest.raises(ValueError, match="does not know do_sample, num_beams"):
        build("TfmEncoderForMaskedLM").generate(ids, max_new_tokens=3, do_sample=True, num_beams=2)
    build("TfmEncoderForMaskedLM").generate(ids, max_new_tokens=3, do_sample=False, use_cache=True, eos_token_id=3)


# Arguments that no parameter names


@pytest.mark.parametrize("name", HEADS)
def test_an_unknown_argument_is_an_error(name):
    """`**kwargs` swallows no argument: neither a cache under another name nor a misspelt mask."""
    model, inputs = build(name), inputs_for(name)
    with torch.no_grad():
        expected = model(**inputs).loss
        assert torch.equal(model(**inputs, head_mask=None, use_kernels=False).loss, expected)
        for unknown in ({"kv_cache": DynamicCache()}, {"atention_mask": inputs["attention_mask"]}, {"bias": 1.0}):
            with pytest.raises(TypeError, match=f"unexpected keyword argument '{next(iter(unknown))}'"):
                model(**inputs, **unknown)


@torch.no_grad()
def test_both_cache_names_are_equivalent():
    model, ids = build("TfmDecoderForCausalLM"), random_ids(2, 8)
    whole = model(ids).logits[:, 5:]
    for name in ("cache", "past_key_values"):
        first = model(ids[:, :5], use_cache=True)
        assert first.cache is first.past_key_values is first["cache"] is first[name] is first.get(name)
        assert name in first
        rest = model(ids[:, 5:], **{name: first.cache})
        assert_close(rest.logits, whole, **CLOSE)
        inputs = model.prepare_inputs_for_generation(ids, next_sequence_length=1, **{name: first.cache})
        assert inputs[CACHE_NAME] is first.cache and inputs["input_ids"].shape == (2, 1)
    with pytest.raises(ValueError, match="two names of one argument"):
        model(ids, cache=DynamicCache(), past_key_values=DynamicCache())


@pytest.mark.parametrize("name", ["TfmDecoderModel", "TfmEncoderModel"])
def test_document_lengths_without_positions_are_refused(name):
    model, ids, starts = build(name), random_ids(1, 8), torch.tensor([0, 5, 8], dtype=torch.int32)
    lengths = dict(cu_seq_lens_q=starts, cu_seq_lens_k=starts, max_length_q=5, max_length_k=5)
    with pytest.raises(ValueError, match="pass position_ids"):
        model(ids, **lengths)
    positions = torch.cat([torch.arange(5), torch.arange(3)])[None]
    assert torch.equal(model(ids, position_ids=positions, **lengths)[0], model(ids, position_ids=positions)[0])


def test_frequencies_stay_in_fp32():
    """Rotary frequencies rounded to bf16 would misplace distant tokens."""
    for model in (build("TfmDecoderModel"), build("TfmDecoderModel", "mixed")):
        exact = {name: buffer.clone() for name, buffer in model.rotary_emb.named_buffers()}
        for moved in (model.to(torch.bfloat16), model.half(), model.float()):
            assert all(torch.equal(buffer, exact[name]) for name, buffer in moved.rotary_emb.named_buffers())
    assert model.to("meta").rotary_emb.full_attention_inv_freq.device.type == "meta"
