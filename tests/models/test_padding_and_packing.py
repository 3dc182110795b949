"""Padding, packing, batches and caches do not change what a model computes."""

import pytest
import torch
from shapes import CLOSE, LENGTHS, SHAPES, SHAPES_AND_BACKENDS, logits_of, padded
from tiny import (
    MODELS,
    build,
    inputs_for,
    random_ids,
)
from torch.testing import assert_close

from hf_tfm.models.modeling_tfm_masks import packed_documents


pytestmark = pytest.mark.quick


@pytest.mark.parametrize("family, shape, attention", SHAPES_AND_BACKENDS)
@torch.no_grad()
def test_packed_documents_stay_separate(family, shape, attention):
    model = build(f"Tfm{family}Model", shape)
    documents = [random_ids(length, seed=length) for length in LENGTHS]
    alone = [model(input_ids=document[None]).last_hidden_state[0] for document in documents]
    model.set_attn_implementation(attention)

    ids, positions = torch.cat(documents), torch.cat([torch.arange(length) for length in LENGTHS])
    variants = {"no mask": {}, "mask of ones": dict(attention_mask=torch.ones(1, len(ids), dtype=torch.long))}
    if family == "Decoder":
        variants = {
            f"{name}, use_cache={use_cache}": {**kwargs, "use_cache": use_cache}
            for name, kwargs in variants.items()
            for use_cache in (False, True)
        }
    for name, kwargs in variants.items():
        packed = model(input_ids=ids[None], position_ids=positions[None], **kwargs).last_hidden_state[0]
        for number, (expected, got) in enumerate(zip(alone, packed.split(LENGTHS))):
            assert_close(got, expected, **CLOSE, msg=lambda text, n=number, v=name: f"document {n}, {v}: {text}")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family, shape, attention", SHAPES_AND_BACKENDS)
@torch.no_grad()
def test_packed_rows_with_padding(family, shape, attention, side):
    """Three documents in the first row, two in the second, which is padded, and one in the third."""
    model = build(f"Tfm{family}Model", shape)
    rows = [LENGTHS, LENGTHS[:2], LENGTHS[:1]]
    documents = {length: random_ids(length, seed=length) for length in LENGTHS}
    alone = {length: model(input_ids=ids[None]).last_hidden_state[0] for length, ids in documents.items()}
    model.set_attn_implementation(attention)

    width = sum(LENGTHS)
    ids = padded([torch.cat([documents[length] for length in row]) for row in rows], side, width, 0)
    positions = padded([torch.cat([torch.arange(length) for length in row]) for row in rows], side, width, 0)
    mask = padded([torch.ones(sum(row), dtype=torch.long) for row in rows], side, width, 0)
    outputs = model(input_ids=ids, position_ids=positions, attention_mask=mask).last_hidden_state
    for row, row_mask, states in zip(rows, mask.bool(), outputs):
        for length, got in zip(row, states[row_mask].split(row)):
            assert_close(got, alone[length], **CLOSE)
    assert outputs.isfinite().all()


@pytest.mark.parametrize("family, shape", SHAPES)
def test_a_document_may_have_gaps(family, shape):
    """A masked or missing token does not end a document: positions keep rising."""
    # A window counts the tokens that are there, masked or not: here it holds all of them.
    window = {} if (model := build(f"Tfm{family}Model", shape)).config.sliding_window is None else {"sliding_window": 9}
    model, ids = build(f"Tfm{family}Model", shape, **window), random_ids(2, 9)
    positions, mask = torch.arange(9).expand(2, -1), torch.ones(2, 9, dtype=torch.bool)
    mask[0, 3] = mask[1, 5:7] = False
    seen = mask[:, None, None, :].expand(-1, 1, 9, 9)  # as a dense mask, in which nobody looks for documents
    if family == "Decoder":
        seen = seen & torch.ones(9, 9, dtype=torch.bool).tril()
    with torch.no_grad():
        expected = model(ids, attention_mask=seen, position_ids=positions).last_hidden_state
        holes = model(ids, attention_mask=mask.long(), position_ids=positions).last_hidden_state
        assert_close(holes[mask], expected[mask], **CLOSE)
        for row, kept in enumerate(mask):
            short = model(ids[row : row + 1, kept], position_ids=positions[:1, kept]).last_hidden_state
            assert_close(short[0], expected[row, kept], **CLOSE)


def test_a_document_begins_where_positions_do_not_rise():
    positions = torch.tensor([[0, 1, 5, 0, 1, 2, 2], [4, 5, 6, 7, 8, 9, 11], [0, 0, 1, 0, 1, 2, 3]])
    assert packed_documents(positions, None).tolist() == [[0, 0, 0, 1, 1, 1, 2], [0] * 7, [0, 1, 1, 2, 2, 2, 2]]
    assert packed_documents(positions[1:2], None) is None
    mask = torch.tensor([[1, 1, 0, 1, 0, 1, 1]])
    assert packed_documents(torch.tensor([[0, 1, 0, 2, 0, 0, 1]]), mask).tolist() == [[0, 0, 0, 0, 0, 1, 1]]
    left = torch.tensor([[0, 0, 1, 1, 1, 1, 1]])
    assert packed_documents(torch.tensor([[0, 0, 0, 1, 2, 0, 1]]), left).tolist() == [[0, 0, 0, 0, 0, 1, 1]]


@pytest.mark.parametrize("name", ["TfmDecoderForCausalLM", "TfmEncoderForMaskedLM"])
def test_packed_gradients_equal_separate_ones(name):
    model = build(name)
    documents = [random_ids(length, seed=length) for length in LENGTHS]
    count = sum(LENGTHS) - (len(LENGTHS) if "Decoder" in name else 0)
    for document in documents:
        model(input_ids=document[None], labels=document[None], num_items_in_batch=count).loss.backward()
    expected = {key: parameter.grad.clone() for key, parameter in model.named_parameters()}
    model.zero_grad()

    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    labels = torch.cat(documents)
    if "Decoder" in name:
        # The first token of a document follows from nothing in the row.
        labels = labels.masked_fill(positions == 0, -100)
    model(
        input_ids=torch.cat(documents)[None],
        position_ids=positions[None],
        labels=labels[None],
        num_items_in_batch=count,
    ).loss.backward()
    for key, parameter in model.named_parameters():
        assert_close(parameter.grad, expected[key], **CLOSE, msg=lambda text, key=key: f"{key}: {text}")


@torch.no_grad()
def test_cache_continues_a_padded_batch():
    model = build("TfmDecoderForCausalLM", "gpt2")
    rows = [random_ids(length, seed=length) for length in (9, 6)]
    mask = padded([torch.ones(len(row), dtype=torch.long) for row in rows], "left", 9, 0)
    ids = padded(rows, "left", 9, 0)
    first = model(input_ids=ids[:, :7], attention_mask=mask[:, :7], use_cache=True)
    rest = model(input_ids=ids[:, 7:], attention_mask=mask, past_key_values=first.past_key_values)
    for row, logits in zip(rows, rest.logits):
        assert_close(logits, model(input_ids=row[None]).logits[0, -2:], **CLOSE)


@pytest.mark.parametrize(
    "name, shape", [(name, shape) for family, shape in SHAPES for name in MODELS if family in name]
)
@torch.no_grad()
def test_padding_changes_nothing(name, shape):
    """Left, right and no padding give the same outputs, for each head and shape."""
    model = build(name, shape)
    lengths = (10, 7, 1)
    singles, rows = [], []
    for length in lengths:
        inputs = inputs_for(name, batch=1, length=length, seed=length)
        rows.append(inputs["input_ids"][0])
        singles.append(model(input_ids=inputs["input_ids"]))

    for side in ("left", "right"):
        pad = [max(lengths) - length for length in lengths]
        sides = [(n, 0) if side == "left" else (0, n) for n in pad]
        ids = torch.stack([torch.nn.functional.pad(row, extra, value=0) for row, extra in zip(rows, sides)])
        mask = torch.stack([torch.nn.functional.pad(torch.ones_like(row), s) for row, s in zip(rows, sides)])
        batch = model(input_ids=ids, attention_mask=mask)
        for number, single in enumerate(singles):
            for key, expected in single.items():
                if not isinstance(expected, torch.Tensor):
                    continue
                got = batch[key][number]
                if expected.ndim > 1 and expected.shape[1] == lengths[number] and not name.endswith("MultipleChoice"):
                    got = got[mask[number].bool()]
                message = f"{key} of row {number}, {side}"
                assert_close(got, expected[0], **CLOSE, msg=lambda text, m=message: f"{m}: {text}")


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_one_row_equals_a_batch_of_eight(name):
    model = build(name)
    inputs = inputs_for(name, batch=8)
    together = logits_of(model(**inputs))
    for row in range(8):
        alone = logits_of(model(**{key: value[row : row + 1] for key, value in inputs.items()}))
        assert_close(together[row : row + 1], alone, **CLOSE)
