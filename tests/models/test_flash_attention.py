"""
Flash attention computes the right outputs from the arguments it receives.

Its kernels need a GPU. Here its two functions are written in PyTorch after its documentation, and transformers calls
them.
"""

import pytest
import torch
from shapes import LENGTHS, SHAPES, padded
from tiny import DECODER_SHAPES, PAD, build, random_ids
from torch.testing import assert_close


CLOSE = dict(atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family, shape", SHAPES)
@torch.no_grad()
def test_padding_and_windows(family, shape, flash):
    model = build(f"Tfm{family}Model", shape)
    ids, mask = random_ids(3, 12), torch.ones(3, 12, dtype=torch.long)
    mask[1, 8:] = mask[2, :5] = 0
    expected, expected_full = model(ids, attention_mask=mask)[0], model(ids)[0]
    flash(model)
    real = mask.bool()
    assert_close(model(ids, attention_mask=mask)[0][real], expected[real], **CLOSE)
    assert_close(model(ids)[0], expected_full, **CLOSE)


@pytest.mark.parametrize("rows, side", [([LENGTHS], None), ([LENGTHS, LENGTHS[::-1]], None),
                                        ([LENGTHS, LENGTHS[:2], LENGTHS[:1]], "left"),
                                        ([LENGTHS, LENGTHS[:2], LENGTHS[:1]], "right")])  # fmt: skip
@pytest.mark.parametrize("family, shape", SHAPES)
@torch.no_grad()
def test_packed_documents_stay_separate(family, shape, rows, side, flash):
    """One row, several rows, several rows with padding; with a cache and without, with a mask and without."""
    model = build(f"Tfm{family}Model", shape)
    documents = {length: random_ids(length, seed=length) for length in LENGTHS}
    alone = {length: model(ids[None])[0][0] for length, ids in documents.items()}
    flash(model)

    width = sum(LENGTHS)
    ids = padded([torch.cat([documents[length] for length in row]) for row in rows], side, width, PAD)
    positions = padded([torch.cat([torch.arange(length) for length in row]) for row in rows], side, width, 0)
    mask = padded([torch.ones(sum(row), dtype=torch.long) for row in rows], side, width, 0)
    for attention_mask in [mask] if side else [mask, None]:
        for extra in [dict(use_cache=True), dict(use_cache=False)] if family == "Decoder" else [{}]:
            outputs = model(ids, position_ids=positions, attention_mask=attention_mask, **extra)[0]
            for row, row_mask, states in zip(rows, mask.bool(), outputs):
                for length, got in zip(row, states[row_mask].split(row)):
                    assert_close(got, alone[length], **CLOSE)


@pytest.mark.parametrize("shape", DECODER_SHAPES)
def test_generation(shape, flash):
    model = build("TfmDecoderForCausalLM", shape, tie_word_embeddings=False)
    model.generation_config.eos_token_id = None
    ids = padded([random_ids(10), random_ids(4, seed=1)], "left", 10, PAD)
    settings = dict(attention_mask=(ids != PAD).long(), max_new_tokens=8, do_sample=False)
    expected = model.generate(ids, **settings)
    assert torch.equal(flash(model).generate(ids, **settings), expected)
