"""Conversations as rows for training: encoded, shortened, packed and collated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..core.errors import InputError
from ..core.inference import evaluation_mode
from .batches import IGNORED
from .chat import ChatEncoder
from .conversations import Message
from .packing_plan import best_fit_decreasing


@dataclass
class Encoded:
    """
    Rows of `input_ids` and `labels`, and counts of conversations that were too long.

    Attributes:
        numbers: Number of each row's conversation.
        turns: Number of each row's messages.
        shortened: Number of conversations that lost their last turns.
        left_out: Number of conversations whose first answer does not fit.
    """

    rows: list[dict[str, list[int]]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    shortened: int = 0
    left_out: int = 0

    @property
    def trained(self) -> int:
        """Number of predicted tokens."""
        return sum(label != IGNORED for row in self.rows for label in row["labels"])

    @property
    def tokens(self) -> int:
        return sum(len(row["input_ids"]) for row in self.rows)


def encode_conversations(
    encoder: ChatEncoder,
    conversations: Sequence[Sequence[Message]],
    places: Sequence[str],
    max_length: int,
    train_on_prompts: bool = False,
    split: str = "the records",
) -> Encoded:
    """
    Returns rows for training. Conversations that are too long lose their last turns, so that each answer is complete.

    Args:
        max_length: Longest row, in tokens.
        train_on_prompts: Predict all tokens instead of the assistant's alone.
        split: Name for messages.

    Raises:
        InputError: A conversation is malformed, or none fits.
    """
    encoded = Encoded()
    for number, (messages, place) in enumerate(zip(conversations, places)):
        tokens, num_turns = encoder(messages, place), len(messages)
        while len(tokens.ids) > max_length and num_turns:
            num_turns -= 1
            if not any(message["role"] == "assistant" for message in messages[:num_turns]):
                break
            if messages[num_turns - 1]["role"] == "assistant":
                tokens = encoder(messages[:num_turns], place)
        if len(tokens.ids) > max_length:
            encoded.left_out += 1
            continue
        encoded.shortened += num_turns < len(messages)
        labels = [token if spoken or train_on_prompts else IGNORED for token, spoken in zip(tokens.ids, tokens.spoken)]
        # The first token has no context; in a packed row its neighbour would predict it.
        labels[0] = IGNORED
        encoded.rows.append({"input_ids": tokens.ids, "labels": labels})
        encoded.numbers.append(number)
        encoded.turns.append(num_turns)
    if not encoded.rows:
        raise InputError(
            f"max_length {max_length}: no conversation of {split} fits, not even to its first answer; raise it"
        )
    return encoded


def pack(rows: Sequence[Mapping[str, list[int]]], length: int, pad_token_id: int) -> list[dict[str, list[int]]]:
    """
    Returns rows of exactly `length` tokens, packed by best fit. `position_ids` start again with each conversation and
    with the padding, by which models keep them apart.
    """
    bins, count = best_fit_decreasing(np.array([len(row["input_ids"]) for row in rows]), length)
    packed: list[dict[str, list[int]]] = [{"input_ids": [], "labels": [], "position_ids": []} for _ in range(count)]
    for row, target in zip(rows, bins.tolist()):
        _append(packed[target], row["input_ids"], row["labels"])
    for row in packed:
        room = length - len(row["input_ids"])
        _append(row, [pad_token_id] * room, [IGNORED] * room)
    return packed


def _append(row: dict[str, list[int]], ids: list[int], labels: list[int]) -> None:
    row["input_ids"] += ids
    row["labels"] += labels
    row["position_ids"] += range(len(ids))


class ConversationCollator:
    """
    Collates rows to batches. Packed rows have no attention mask, because with a mask transformers' models ignore that
    positions start again; other rows are padded on the right.
    """

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[Mapping[str, list[int]]]) -> dict[str, torch.Tensor]:
        if "position_ids" in rows[0]:
            return {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}
        longest = max(len(row["input_ids"]) for row in rows)
        longest = -(-longest // 8) * 8

        def padded(name: str, filling: int) -> torch.Tensor:
            return torch.tensor([[*row[name], *[filling] * (longest - len(row[name]))] for row in rows])

        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        return {
            "input_ids": padded("input_ids", self.pad_token_id),
            "labels": padded("labels", IGNORED),
            "attention_mask": (torch.arange(longest) < lengths[:, None]).long(),
        }


def check_packing(model: PreTrainedModel, packed: Sequence[Mapping[str, list[int]]]) -> None:
    """
    Raise `InputError` if packed conversations see one another in a model, as in many of the less known ones.

    The outputs for a packed conversation must be those for the conversation alone.
    """
    row = next((row for row in packed if row["position_ids"].count(0) > 1), None)
    if row is None:
        return
    starts = [place for place, position in enumerate(row["position_ids"]) if position == 0]
    start, end = starts[1], [*starts, len(row["input_ids"])][2]
    packed_row = {name: torch.tensor([row[name]], device=model.device) for name in ("input_ids", "position_ids")}
    single_row = {name: values[:, start:end] for name, values in packed_row.items()}
    with evaluation_mode(model):
        difference = (
            (model(**packed_row).logits[:, start:end] - (expected := model(**single_row).logits)).abs().max().item()
        )
    if not difference <= 1e-3 * max(1.0, expected.abs().max().item()):
        raise InputError(
            f"{type(model).__name__} lets packed conversations see one another (outputs differ by {difference:.2g}): "
            "add --packing false"
        )


def show(tokenizer: PreTrainedTokenizerBase, row: Mapping[str, list[int]], num_tokens: int = 160) -> str:
    """Returns the start of a row as text, with ⟦predicted tokens⟧ marked."""
    ids, labels = row["input_ids"][:num_tokens], row["labels"][:num_tokens]
    parts, start = [], 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or (labels[end] == IGNORED) != (labels[start] == IGNORED):
            text = tokenizer.decode(ids[start:end])
            parts.append(text if labels[start] == IGNORED else f"⟦{text}⟧")
            start = end
    return "".join(parts).replace("\n", "⏎") + (" …" if len(row["input_ids"]) > num_tokens else "")
