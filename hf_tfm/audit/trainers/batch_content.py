"""The places of tokens, of padding and of documents in the rows of a batch."""

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch

from .rows import edges_of_documents
from .subject import is_numbers


class Padding(NamedTuple):
    """The padding token, and whether it also begins or ends texts."""

    token: int | None
    is_edge: bool


def content_of(ids: torch.Tensor, mask: torch.Tensor | None, features: Sequence[Any], pad: Padding) -> list[list[int]]:
    """
    Returns the places of tokens in each row.

    The lengths of the records tell them, where a row of the batch is a record with padding; else the attention mask;
    else the row without the padding tokens at its ends.

    Args:
        ids: Tokens of shape (rows, length).
        mask: Attention mask of this shape.
        features: The records of the batch.
        pad: The padding token.
    """
    contents = []
    for number, row in enumerate(ids):
        feature = features[number] if len(features) == len(ids) else None
        contents.append(
            places_of_record(row, feature, pad)
            or (mask[number].nonzero().flatten().tolist() if mask is not None else places_within(row, pad))
        )
    return contents


def places_of_record(row: torch.Tensor, feature: Any, pad: Padding) -> list[int] | None:
    """
    Returns the places of a record's tokens in its row.

    None if the row is not the record with padding, or if the record may be padded and nothing tells where.
    """
    tokens = feature.get("input_ids") if isinstance(feature, Mapping) else None
    if not is_numbers(tokens):
        return None
    mask = feature.get("attention_mask")
    length, record = len(row), torch.as_tensor(tokens, device=row.device)
    if is_numbers(mask) and len(mask) == len(tokens):
        places = [place for place, value in enumerate(mask) if value]
    else:
        places = list(range(len(record)))
        if len(record) == length and (inner := places_within(record, pad)) != places:
            if pad.is_edge:
                return None
            places = inner
    for start in (0, length - len(record)):
        if start >= 0 and torch.equal(row[start : start + len(record)], record):
            return [start + place for place in places]
    return None


def places_within(row: torch.Tensor, pad: Padding) -> list[int]:
    """Returns the places of a row without padding at its ends; one token at each end may begin or end the text."""
    inner = (row != pad.token).nonzero().flatten().tolist() if pad.token is not None else range(len(row))
    if not inner:
        return []
    return list(range(max(0, inner[0] - pad.is_edge), min(len(row), inner[-1] + 1 + pad.is_edge)))


def documents_of(
    places: Sequence[int], positions: torch.Tensor | None, lengths: Sequence[int] | None
) -> list[list[int]]:
    """
    Returns the places of each document of a row.

    Args:
        places: Places of tokens in the row.
        positions: `position_ids` of the row: a document begins where they do not go on.
        lengths: Numbers of tokens of the documents, if the record says them; they come first.
    """
    places = list(places)
    if lengths is not None and sum(lengths) == len(places):
        edges = [0, *accumulate(lengths)]
    elif positions is not None:
        edges = edges_of_documents(positions[places].tolist())
    else:
        edges = [0, len(places)]
    return [places[start:end] for start, end in pairwise(edges) if end > start]


def lengths_of_documents(features: Sequence[Any], rows: int) -> list[list[int] | None]:
    """
    Returns for each row of a batch the lengths of its documents, as the records say them, or None.

    They say them by `seq_lengths`, or by their number: a collator that makes one row of several records packs them.
    """
    if len(features) == rows:
        return [feature.get("seq_lengths") if isinstance(feature, Mapping) else None for feature in features]
    tokens = [feature.get("input_ids") if isinstance(feature, Mapping) else None for feature in features]
    if rows != 1 or not all(is_numbers(ids) for ids in tokens):
        return [None] * rows
    return [[length for feature in features for length in feature.get("seq_lengths") or [len(feature["input_ids"])]]]
