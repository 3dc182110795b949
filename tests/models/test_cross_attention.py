"""Encoder and decoder as one sequence-to-sequence model, `EncoderDecoderModel` of transformers."""

import pytest
import torch
from tiny import BOS, EOS, PAD, build, random_ids
from torch.testing import assert_close
from transformers import (
    AutoModelForSeq2SeqLM,
    DynamicCache,
    EncoderDecoderModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    default_data_collator,
)

from hf_tfm import TfmEncoderDecoderModel


SHAPES = ["qwen3", "gpt2", "vaswani2017", "mixed"]
CLOSE = dict(atol=2e-5, rtol=1e-4)


def prepare(model: EncoderDecoderModel) -> EncoderDecoderModel:
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = BOS
    model.config.pad_token_id = model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = EOS
    return model.eval()


@pytest.fixture
def translator(request) -> EncoderDecoderModel:
    shape = getattr(request, "param", "qwen3")
    decoder = build("TfmDecoderForCausalLM", shape, is_decoder=True, add_cross_attention=True)
    return prepare(EncoderDecoderModel(encoder=build("TfmEncoderModel"), decoder=decoder))


def sentences() -> dict[str, torch.Tensor]:
    """Three sentences, the second and third of them shorter."""
    ids, mask = random_ids(3, 9), torch.ones(3, 9, dtype=torch.long)
    mask[1, 6:] = mask[2, 2:] = 0
    return dict(input_ids=ids, attention_mask=mask)


@pytest.mark.parametrize("translator", SHAPES, indirect=True)
def test_every_weight_of_both_halves_learns(translator):
    translator.train()
    translator(**sentences(), labels=random_ids(3, 5, seed=1)).loss.backward()
    assert [name for name, value in translator.named_parameters() if value.grad is None or not value.grad.any()] == []
    assert sum("cross_attn." in name for name, _ in translator.named_parameters()) > 0


@pytest.mark.parametrize("translator", SHAPES, indirect=True)
@torch.no_grad()
def test_the_source_matters_and_its_padding_does_not(translator):
    inputs, target = sentences(), random_ids(3, 5, seed=1)
    together = translator(**inputs, decoder_input_ids=target).logits
    for row, length in enumerate((9, 6, 2)):
        alone = translator(
            input_ids=inputs["input_ids"][row : row + 1, :length], decoder_input_ids=target[row : row + 1]
        )
        assert_close(together[row : row + 1], alone.logits, **CLOSE)
    other = translator(input_ids=random_ids(3, 9, seed=7), decoder_input_ids=target).logits
    assert not torch.allclose(other, together, atol=1e-2)


@pytest.mark.parametrize("translator", SHAPES, indirect=True)
@torch.no_grad()
def test_attention_backends_agree(translator):
    inputs = dict(**sentences(), decoder_input_ids=random_ids(3, 5, seed=1))
    expected = translator(**inputs).logits
    translator.set_attn_implementation("eager")
    outputs = translator(**inputs, output_attentions=True)
    assert_close(outputs.logits, expected, **CLOSE)
    assert [weights.shape for weights in outputs.cross_attentions] == [(3, 4, 5, 9)] * 2
    assert outputs.cross_attentions[0][2, :, :, 2:].max() == 0
    assert [weights.shape for weights in outputs.decoder_attentions] == [(3, 4, 5, 5)] * 2


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("translator", SHAPES, indirect=True)
def test_generation_with_and_without_cache(translator, beams):
    inputs = sentences()
    settings = dict(max_new_tokens=7, do_sample=False, num_beams=beams)
    cached = translator.generate(**inputs, **settings, use_cache=True)
    assert torch.equal(translator.generate(**inputs, **settings, use_cache=False), cached)
    for row, length in enumerate((9, 6, 2)):
        alone = translator.generate(inputs["input_ids"][row : row + 1, :length], **settings)[0]
        assert torch.equal(cached[row, : len(alone)], alone)
        assert (cached[row, len(alone) :] == PAD).all()


@torch.no_grad()
def test_two_pretrained_folders_become_one_model(tmp_path):
    encoder, decoder = build("TfmEncoderModel"), build("TfmDecoderForCausalLM")
    encoder.save_pretrained(tmp_path / "encoder")
    decoder.save_pretrained(tmp_path / "decoder")
    both = EncoderDecoderModel.from_encoder_decoder_pretrained(tmp_path / "encoder", tmp_path / "decoder")
    prepare(both)
    for half, original in ((both.encoder, encoder), (both.decoder, decoder)):
        state = half.state_dict()
        assert all(torch.equal(state[name], value) for name, value in original.state_dict().items())
    # The cross-attention is new: drawn by the rule, not left as memory was.
    cross = both.decoder.model.layers[0].cross_attn
    assert cross.q_proj.weight.std().item() == pytest.approx(decoder.config.initializer_range, rel=0.1)
    assert torch.equal(cross.q_norm.weight, torch.ones(8))

    both.save_pretrained(tmp_path / "both")
    inputs = dict(**sentences(), decoder_input_ids=random_ids(3, 5, seed=1))
    for opened in (EncoderDecoderModel, AutoModelForSeq2SeqLM):
        loaded = opened.from_pretrained(tmp_path / "both")
        assert torch.equal(loaded(**inputs).logits, both(**inputs).logits)
        assert loaded.decoder.lm_head.weight is loaded.decoder.model.embed_tokens.weight
    assert torch.equal(loaded.generate(**sentences(), max_new_tokens=4), both.generate(**sentences(), max_new_tokens=4))


def test_it_learns_to_copy_with_the_stock_trainer(translator, tmp_path):
    rows = random_ids(4, 6)
    ends = torch.full((4, 1), EOS)
    dataset = [dict(input_ids=row, labels=torch.cat([row, end])) for row, end in zip(rows, ends)]
    arguments = Seq2SeqTrainingArguments(
        output_dir=tmp_path / "run",
        per_device_train_batch_size=4,
        max_steps=30,
        learning_rate=2e-2,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Seq2SeqTrainer(translator, arguments, train_dataset=dataset, data_collator=default_data_collator)
    trainer.train()
    copied = translator.eval().generate(rows, max_new_tokens=8)
    assert torch.equal(copied[:, 1:], torch.cat([rows, ends], 1))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_the_same_gradients(translator, reentrant):
    inputs = {**sentences(), "labels": random_ids(3, 5, seed=3)}
    translator(**inputs).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in translator.named_parameters()}
    translator.zero_grad()
    translator.train().gradient_checkpointing_enable({"use_reentrant": reentrant})
    translator(**inputs).loss.backward()
    for name, parameter in translator.named_parameters():
        assert_close(parameter.grad, expected[name], **CLOSE)


def test_a_plain_cache_is_accepted(translator):
    states = translator.encoder(**sentences()).last_hidden_state
    ids = random_ids(3, 4)
    with torch.no_grad():
        expected = translator.decoder(ids, encoder_hidden_states=states).logits
        logits = translator.decoder(
            ids, encoder_hidden_states=states, past_key_values=DynamicCache(), use_cache=False
        ).logits
    assert_close(logits, expected, **CLOSE)


@torch.no_grad()
def test_both_names_of_the_cache_and_no_unknown_argument():
    decoder = build("TfmDecoderForCausalLM", add_cross_attention=True)
    model = TfmEncoderDecoderModel(encoder=build("TfmEncoderModel"), decoder=decoder).eval()
    source, target = random_ids(2, 6), random_ids(2, 5, seed=1)
    whole = model(input_ids=source, decoder_input_ids=target).logits[:, 3:]
    for name in ("cache", "past_key_values"):
        first = model(input_ids=source, decoder_input_ids=target[:, :3], use_cache=True)
        assert first.cache is first.past_key_values
        rest = model(input_ids=source, decoder_input_ids=target[:, 3:], **{name: first.cache})
        torch.testing.assert_close(rest.logits, whole, atol=1e-5, rtol=1e-4)
    states = model.encoder(source)
    for inputs in ({"input_ids": source}, {"encoder_outputs": states}):
        with pytest.raises(TypeError, match="unexpected keyword argument 'kv_cache'"):
            model(**inputs, decoder_input_ids=target, kv_cache=first.cache)
        with pytest.raises(TypeError, match="unexpected keyword argument 'kv_cache'"):
            model(**inputs, decoder_input_ids=target, decoder_kv_cache=first.cache)
