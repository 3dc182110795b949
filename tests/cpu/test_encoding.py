"""Encoding without padding gives the same outputs as with padding, for all heads, shapes and sides."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny
import torch

from hf_tfm.cpu.encoding import UNPADDED, enable_unpadded_encoding


pytestmark = pytest.mark.quick


def batch(side: str) -> dict[str, torch.Tensor]:
    """Rows of 9, 4, 1 and 7 tokens."""
    torch.manual_seed(1)
    mask = torch.zeros(4, 9, dtype=torch.long)
    for row, length in enumerate((9, 4, 1, 7)):
        mask[row, slice(0, length) if side == "right" else slice(9 - length, 9)] = 1
    return {"input_ids": torch.randint(7, tiny.VOCAB_SIZE, mask.shape) * mask, "attention_mask": mask}


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("shape", tiny.ENCODER_SHAPES)
def test_states_equal_the_padded_batch(shape, side):
    inputs = batch(side)
    model = tiny.build("TfmEncoderModel", shape)
    with torch.no_grad():
        expected = model(**inputs)
        assert enable_unpadded_encoding(model) and enable_unpadded_encoding(model)
        unpadded = model(**inputs)
        by_position = model(inputs["input_ids"], inputs["attention_mask"])
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(unpadded.last_hidden_state[real], expected.last_hidden_state[real], rtol=1e-4, atol=1e-5)
    assert not unpadded.last_hidden_state[~real].any()
    assert torch.equal(by_position.last_hidden_state, unpadded.last_hidden_state)
    if expected.pooler_output is not None:
        torch.testing.assert_close(unpadded.pooler_output, expected.pooler_output, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", tiny.ENCODER_HEADS)
def test_heads_agree(head):
    inputs = batch("right")
    model = tiny.build(f"TfmEncoder{head}", "modernbert")
    real = inputs["attention_mask"].bool()
    if head == "ForMultipleChoice":
        inputs = {name: value.view(2, 2, -1) for name, value in inputs.items()}
    with torch.no_grad():
        expected = model(**inputs)
        assert enable_unpadded_encoding(model)
        unpadded = model(**inputs)
    for name, values in expected.items():
        actual = unpadded[name]
        if values.shape[:2] == real.shape:
            values, actual = values[real], actual[real]
        torch.testing.assert_close(actual, values, rtol=1e-4, atol=1e-5)


def test_long_rows_are_computed_in_groups(monkeypatch):
    model, inputs = tiny.build("TfmEncoderModel", "modernbert"), batch("right")
    assert enable_unpadded_encoding(model)
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state
        monkeypatch.setattr("hf_tfm.cpu.encoding.SCORES", 1)
        assert torch.allclose(model(**inputs).last_hidden_state, expected, atol=1e-6)


def test_unsupported_calls_are_unchanged():
    inputs = batch("right")
    plain, model = (tiny.build("TfmEncoderForMaskedLM", "modernbert") for _ in range(2))
    assert enable_unpadded_encoding(model)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    for each in (plain, model):
        each(**inputs, labels=labels).loss.backward()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(dict(model.named_parameters())[name].grad, parameter.grad)
    packed = {"input_ids": inputs["input_ids"], "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]] * 4)}
    with torch.no_grad():
        torch.testing.assert_close(model(**packed).logits, plain(**packed).logits)
        states = [each(**inputs, output_hidden_states=True).hidden_states for each in (model, plain)]
        for one, other in zip(*states, strict=True):
            torch.testing.assert_close(one, other)
        for each in (model, plain):
            each.set_attn_implementation("eager")
        torch.testing.assert_close(model(**inputs).logits, plain(**inputs).logits)


def test_the_setting_is_not_saved(tmp_path):
    model = tiny.build("TfmEncoderModel")
    enable_unpadded_encoding(model)
    model.save_pretrained(tmp_path)
    assert UNPADDED not in (tmp_path / "config.json").read_text()
    assert not enable_unpadded_encoding(tiny.build("TfmDecoderModel"))


def test_a_copy_uses_its_own_weights():
    model, inputs = tiny.build("TfmEncoderModel"), batch("right")
    enable_unpadded_encoding(model)
    copied = copy.deepcopy(model)
    plain = tiny.build("TfmEncoderModel")
    with torch.no_grad():
        for one in (copied, plain):
            one.layers[0].mlp.down_proj.weight.mul_(0.5)
        unpadded, expected = (one(**inputs).last_hidden_state for one in (copied, plain))
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(unpadded[real], expected[real], rtol=1e-4, atol=1e-5)


def test_threads_do_not_share_rows():
    model = tiny.build("TfmEncoderModel")
    enable_unpadded_encoding(model)
    inputs = batch("right")
    alone = [{name: value[row : row + 1] for name, value in inputs.items()} for row in range(4)]

    @torch.no_grad()
    def states(one: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(**one).last_hidden_state

    expected = [states(one) for one in alone]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            for unpadded, right in zip(pool.map(states, alone), expected, strict=True):
                torch.testing.assert_close(unpadded, right)


def test_rows_without_tokens():
    model = tiny.build("TfmEncoderModel")
    enable_unpadded_encoding(model)
    with torch.no_grad():
        unpadded = model(torch.zeros(2, 5, dtype=torch.long), torch.zeros(2, 5, dtype=torch.long))
    assert unpadded.last_hidden_state.isfinite().all()
