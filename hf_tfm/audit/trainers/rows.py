"""Rows of tokens as the model gets them, and the documents in them: packed rows divided, with their turns."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch

from ...data.batches import IGNORED
from ..templates.turns import Turn, TurnFinder


MOST_TURN_TOKENS = 60_000  # tokens in which turns are looked for


@dataclass
class Row:
    """
    A row of a batch.

    Attributes:
        input_ids: Its tokens, without padding.
        labels: Labels of these tokens, -100 where nothing is trained; None if the batch has none.
        padding_labels: Labels at the places of padding.
        positions: Their `position_ids`, if the batch has them.
        where: The row in words.
    """

    input_ids: list[int]
    labels: list[int] | None
    padding_labels: list[int]
    positions: list[int] | None
    where: str

    @property
    def trained(self) -> list[bool]:
        """Whether each token is trained, in its place as an input."""
        return [label != IGNORED for label in self.labels or ()]

    def documents(self) -> list[range]:
        """Returns the places of packed documents: positions start again with each of them."""
        edges = [0, len(self.input_ids)] if not self.positions else edges_of_documents(self.positions)
        return [range(start, end) for start, end in pairwise(edges)]


@dataclass(frozen=True)
class Document:
    """
    A document of a row: a text, or a conversation.

    Attributes:
        input_ids: Its tokens, without padding.
        labels: Label of each token at its own place; None if the row has none.
        turns: Its turns, by places in `input_ids`; empty if it is no conversation.
        row: The row it stands in.
        where: The row, and the first place if the row has several documents.
    """

    input_ids: list[int]
    labels: list[int] | None
    turns: list[Turn]
    row: Row
    where: str

    @cached_property
    def trained(self) -> list[bool]:
        """Whether each token is predicted and has a label; the first one has no context."""
        return [place > 0 and label != IGNORED for place, label in enumerate(self.labels or ())]


def edges_of_documents(positions: Sequence[int]) -> list[int]:
    """Returns the places where packed documents begin, by `position_ids` that do not count on, and the last end."""
    starts = [place for place in range(1, len(positions)) if positions[place] != positions[place - 1] + 1]
    return [0, *starts, len(positions)]


def same_shape(value: Any, ids: torch.Tensor) -> torch.Tensor | None:
    """Returns a tensor of a batch if it has a value for each token, else None."""
    return value if isinstance(value, torch.Tensor) and value.shape == ids.shape else None


def read_rows(batch: Mapping[str, Any], where: str) -> list[Row]:
    """Returns the rows of a batch that holds `input_ids` of shape (rows, length)."""
    ids = batch.get("input_ids")
    if not isinstance(ids, torch.Tensor) or ids.dim() != 2:
        return []
    mask, labels, positions, completions = (
        same_shape(batch.get(name), ids) for name in ("attention_mask", "labels", "position_ids", "completion_mask")
    )
    if completions is not None:
        labels = ids.masked_fill(completions == 0, IGNORED)
    rows = []
    for number in range(len(ids)):
        content = torch.ones_like(ids[number], dtype=torch.bool) if mask is None else mask[number] != 0

        def values(tensor: torch.Tensor | None, places: torch.Tensor, number: int = number) -> list[int] | None:
            return None if tensor is None else tensor[number][places].tolist()

        rows.append(
            Row(
                input_ids=values(ids, content) or [],
                labels=values(labels, content),
                padding_labels=values(labels, ~content) or [],
                positions=values(positions, content),
                where=f"{where}, row {number + 1}",
            )
        )
    return rows


def read_columns(batch: Mapping[str, Any], where: str) -> dict[str, list[Row]]:
    """Returns the rows of each column of tokens, as `anchor` for `anchor_input_ids` of sentence-transformers."""
    ending = "_input_ids"
    columns = {}
    for name in batch:
        if name.endswith(ending) and name != "decoder_input_ids":
            column = name.removesuffix(ending)
            part = {key: batch.get(f"{column}_{key}") for key in ("input_ids", "attention_mask")}
            columns[column] = read_rows(part, f"{where}, {column}")
    return columns


def read_documents(rows: Iterable[Row], finder: TurnFinder | None) -> list[Document]:
    """Returns the documents of the sampled rows; padding at the end of a packed row is not a document."""
    documents, count = [], 0
    for row in rows:
        places = row.documents()
        if len(places) > 1 + len(row.input_ids) / 4:  # such positions do not divide texts
            places = [range(len(row.input_ids))]
        for document in places:
            ids = row.input_ids[document.start : document.stop]
            labels = None if row.labels is None else row.labels[document.start : document.stop]
            if len(places) > 1 and is_padding(ids, labels):
                continue
            count += len(ids)
            turns = finder.find(ids) if finder is not None and count <= MOST_TURN_TOKENS else []
            where = row.where + (f", from token {document.start}" if len(places) > 1 else "")
            documents.append(Document(ids, labels, turns, row, where))
    return documents


def is_padding(ids: list[int], labels: list[int] | None) -> bool:
    """Whether a part of a packed row is padding: one repeated token that is never trained."""
    return len(set(ids)) <= 1 and (len(ids) == 1 or all(label == IGNORED for label in (labels or ())[1:]))
