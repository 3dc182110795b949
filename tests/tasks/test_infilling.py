"""A masked LM generates by filling masks: with a stub whose predictions are known, and with a real model."""

from types import SimpleNamespace

import pytest
import torch
from tiny import CLS, EOS, MASK, PAD, SEP, VOCAB_SIZE, build, encoder_config
from torch import nn
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

from hf_tfm.models.modeling_tfm_infilling import fill_masks_together


pytestmark = pytest.mark.quick


class Counting(nn.Module):
    """Predicts at each position its column plus 100, more confidently the more of its neighbours are known."""

    config = SimpleNamespace(mask_token_id=MASK, pad_token_id=PAD)

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, input_ids, attention_mask=None):
        self.seen.append(input_ids.clone())
        known = nn.functional.pad((input_ids != MASK).float(), (1, 1))
        sureness = 1 + known[:, :-2] + known[:, 2:]
        columns = torch.arange(input_ids.shape[1]) + 100
        logits = nn.functional.one_hot(columns, 200).float() * 3 * sureness[..., None]
        return SimpleNamespace(logits=logits)


def test_the_most_confident_mask_is_filled_first_one_per_step():
    model = Counting()
    filled = fill_masks_together(model, torch.tensor([[7, MASK, MASK, MASK, MASK, 8]]), remask=False)
    assert filled.tolist() == [[7, 101, 102, 103, 104, 8]]
    # Two neighbours are known beside the ends, so the text closes in from there.
    assert [(ids[0] == MASK).sum().item() for ids in model.seen] == [4, 3, 2, 1]
    assert model.seen[1][0, 2] == MASK and model.seen[1][0, 3] == MASK


def test_steps_share_the_masks_evenly_whatever_the_other_rows():
    model = Counting()
    rows = torch.tensor([[MASK] * 6, [7, MASK, 8, MASK, 9, 9]])
    fill_masks_together(model, rows, steps=3)
    assert [(ids == MASK).sum(1).tolist() for ids in model.seen] == [[6, 2], [4, 1], [2, 0]]


def test_the_least_confident_filling_is_masked_again():
    class Doubting(Counting):
        """Unsure of column 1 at first, sure of it once column 3 is known."""

        def forward(self, input_ids, attention_mask=None):
            self.seen.append(input_ids.clone())
            logits = torch.zeros(1, 5, 200)
            first = len(self.seen) == 1
            for column, token, sureness in ((1, 50 if first else 51, 4 if first else 9), (2, 60, 5), (3, 70, 3)):
                logits[0, column, token] = sureness if column != 3 or first else 9
            return SimpleNamespace(logits=logits)

    text = torch.tensor([[7, MASK, MASK, MASK, 8]])
    assert fill_masks_together(Doubting(), text, steps=3, remask=True)[0, 1:4].tolist() == [51, 60, 70]
    # Step by step: 60 is kept; then 51 and 70 are surer than it, so 60 is masked anew and guessed again.
    model = Doubting()
    fill_masks_together(model, text, steps=3, remask=True)
    assert model.seen[1][0].tolist() == [7, MASK, 60, MASK, 8]
    assert model.seen[2][0].tolist() == [7, 51, MASK, 70, 8]
    model = Doubting()
    fill_masks_together(model, text, steps=3, remask=False)
    assert model.seen[2][0, 2] == 60


@pytest.fixture(scope="module")
def model():
    return build("TfmEncoderForMaskedLM").eval()


def test_rows_are_filled_equally_alone_and_padded_in_a_batch(model):
    short = torch.tensor([[CLS, 20, MASK, 31, MASK, SEP]])
    long = torch.tensor([[CLS, 40, MASK, MASK, MASK, MASK, 44, MASK, SEP]])
    batch = torch.full((2, 9), PAD)
    batch[0, :6], batch[1] = short, long
    for steps in (None, 2):
        together = model.generate(batch, attention_mask=(batch != PAD).long(), steps=steps)
        assert torch.equal(together[0, :6], model.generate(short, steps=steps)[0])
        assert torch.equal(together[1], model.generate(long, steps=steps)[0])
        assert torch.equal(together[0, 6:], batch[0, 6:])


def test_one_step_is_the_argmax_and_changes_masks_only(model):
    ids = torch.tensor([[CLS, 20, MASK, 31, MASK, SEP]])
    with torch.no_grad():
        logits = model(ids).logits[0, [2, 4]]
    logits[:, [PAD, CLS, SEP, MASK, EOS]] = -torch.inf
    filled = model.generate(ids, steps=1)
    assert filled[0, [2, 4]].tolist() == logits.argmax(-1).tolist()
    assert filled[0, [0, 1, 3, 5]].tolist() == [CLS, 20, 31, SEP]


def test_new_tokens_are_inserted_before_the_final_separator(model):
    batch = torch.tensor([[CLS, 20, 21, SEP], [PAD, CLS, 30, 31]])
    written = model.generate(batch, attention_mask=(batch != PAD).long(), max_new_tokens=3)
    assert written.shape == (2, 7)
    assert written[0, [0, 1, 2, 6]].tolist() == [CLS, 20, 21, SEP]
    assert written[1, :3].tolist() == [CLS, 30, 31] and written[1, 6] == PAD
    assert not torch.isin(written[0, 3:6], torch.tensor([PAD, CLS, SEP, MASK])).any()


def test_sampled_fillings_depend_on_the_generator(model):
    ids = torch.tensor([[CLS, *[MASK] * 12, SEP]])
    drawn = [model.generate(ids, temperature=1.0, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    greedy = model.generate(ids, temperature=1e-4, top_k=1, steps=1, generator=torch.Generator())
    assert torch.equal(greedy, model.generate(ids, steps=1))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"temperature": -1.0}, "must be 0 or above"),
        ({"temperature": float("inf")}, "must be 0 or above"),
        ({"top_k": -1}, "must be 0 or above"),
        ({"max_new_tokens": -1}, "max_new_tokens must be 0 or above"),
        ({"max_new_tokens": 2, "position_ids": torch.arange(3)[None]}, "leave position_ids out"),
        ({"labels": torch.zeros(1, 3).long()}, "does not know labels"),
        ({"num_beams": 4}, "does not know num_beams"),
    ],
)
def test_invalid_settings_are_refused(model, settings, message):
    with pytest.raises(ValueError, match=message):
        model.generate(torch.tensor([[CLS, MASK, SEP]]), **settings)


def test_settings_left_open_and_the_smallest_temperature(model):
    ids = torch.tensor([[CLS, 20, MASK, MASK, SEP]])
    expected = model.generate(ids)
    assert torch.equal(model.generate(ids, temperature=None, top_k=None, steps=None, streamer=None), expected)
    assert model.generate(ids, temperature=1e-40, generator=torch.Generator()).shape == ids.shape


def test_text_without_masks_is_unchanged(model):
    ids = torch.randint(10, VOCAB_SIZE, (2, 5))
    assert torch.equal(model.generate(ids), ids)


@pytest.mark.parametrize("new", [0, 2])
def test_a_model_without_a_mask_token_fills_nothing(new):
    model = type(build("TfmEncoderForMaskedLM"))(encoder_config(mask_token_id=None))
    assert not hasattr(model, "generate")
    with pytest.raises(ValueError, match="mask_token_id"):
        type(model).generate(model, torch.tensor([[CLS, 3, SEP]]), max_new_tokens=new)
    named = build("TfmEncoderForMaskedLM")
    named.generate = print  # as wrappers do
    assert named.generate is print


def test_a_text_longer_than_the_model_is_meant_for_is_filled_with_a_warning():
    model = build("TfmEncoderForMaskedLM")  # rotary positions, which have no end
    room = model.config.max_position_embeddings - 1
    with CaptureLogger(logging.get_logger("hf_tfm.models.modeling_tfm_infilling")) as caught:
        model.generate(torch.tensor([[CLS]]), max_new_tokens=room, steps=1)
        assert not caught.out
        assert model.generate(torch.tensor([[CLS]]), max_new_tokens=room + 1, steps=1).shape == (1, room + 2)
    assert f"{room + 2} tokens long; the model is meant for {room + 1}" in caught.out
