"""Conversations as rows for training: encoded, shortened, packed and collated."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..core.errors import InputError
from ..core.inference import evaluation_mode
from .batches import IGNORED
from .chat import ChatEncoder, RefusedConversation, Tokens
from .conversations import Message
from .packing_plan import best_fit_decreasing
from .records import Records


TRAINED = ("assistant", "last", "all")


@dataclass
class Encoded:
    """
    Rows of `input_ids` and `labels`, and counts of conversations that were too long.

    Attributes:
        numbers: Number of each row's conversation.
        turns: Number of each row's messages.
        shortened: Number of conversations that lost their last turns.
        left_out: Number of conversations of which not even the first answer fits.
        untrained: Number of conversations of which nothing that fits is to be trained.
        refused: Why conversations were refused and skipped.
    """

    rows: list[dict[str, list[int]]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    shortened: int = 0
    left_out: int = 0
    untrained: int = 0
    refused: list[str] = field(default_factory=list)

    @property
    def trained(self) -> int:
        """Number of predicted tokens."""
        return sum(label != IGNORED for row in self.rows for label in row["labels"])

    @property
    def tokens(self) -> int:
        return sum(len(row["input_ids"]) for row in self.rows)


def encode_conversations(
    encoder: ChatEncoder,
    records: Records,
    max_length: int,
    train_on: str = "assistant",
    skip_bad: bool = False,
    split: str = "the records",
) -> Encoded:
    """
    Returns rows for training. Conversations that are too long lose their last turns, so that each answer is complete.

    Args:
        records: `messages`, and perhaps `tools`, as forms of chat give them. Messages with weight 0 are not trained.
        max_length: Longest row, in tokens.
        train_on: Predict the "assistant"'s tokens, those of its "last" message, or "all" tokens.
        skip_bad: Leave out conversations that the chat template refuses.
        split: Name for messages.

    Raises:
        InputError: Conversations are refused, or none fits.
    """
    encoded = Encoded()

    def encode(record: Mapping[str, Any], place: str) -> tuple[list[int], list[bool], int]:
        messages, tools = record["messages"], record.get("tools")
        tokens, num_turns = encoder(messages, place, tools), len(messages)
        while len(tokens.ids) > max_length and num_turns:
            num_turns -= 1
            if train_on == "last" or not any(message["role"] == "assistant" for message in messages[:num_turns]):
                break
            if messages[num_turns - 1]["role"] == "assistant":
                tokens = encoder(messages[:num_turns], place, tools)
        trained = find_trained(tokens, messages[:num_turns], train_on, place)
        return tokens.ids, trained, num_turns

    for number, (ids, trained, num_turns) in encode_each(records, records.places, encode, skip_bad, encoded.refused):
        if len(ids) > max_length:
            encoded.left_out += 1
            continue
        if not any(trained[1:]):
            encoded.untrained += 1
            continue
        encoded.shortened += num_turns < len(records[number]["messages"])
        labels = [token if is_trained else IGNORED for token, is_trained in zip(ids, trained)]
        # The first token has no context; in a packed row its neighbour would predict it.
        labels[0] = IGNORED
        encoded.rows.append({"input_ids": ids, "labels": labels})
        encoded.numbers.append(number)
        encoded.turns.append(num_turns)
    if encoded.untrained and not encoded.rows:
        raise InputError(f"{records.path}: no conversation has an answer to train on: their weights are 0")
    if not encoded.rows:
        raise InputError(
            f"max_length {max_length}: no conversation of {split} fits, not even to its first answer; raise it"
        )
    return encoded


Item = TypeVar("Item")
Result = TypeVar("Result")


def encode_each(
    items: Sequence[Item],
    places: Sequence[str],
    encode: Callable[[Item, str], Result],
    skip_bad: bool,
    refused: list[str],
) -> Iterator[tuple[int, Result]]:
    """
    Yields number and encoding of each item.

    Args:
        encode: Raises `RefusedConversation` for an item that cannot be used.
        skip_bad: Leave such items out, and append the reasons to `refused`.

    Raises:
        InputError: Some are refused, after all others were yielded; or all of them.
    """
    for number, (item, place) in enumerate(zip(items, places)):
        try:
            result = encode(item, place)
        except RefusedConversation as error:
            refused.append(str(error))
        else:
            yield number, result
    if refused and (not skip_bad or len(refused) == len(items)):
        if len(refused) == 1:
            raise InputError(refused[0])
        listed = "".join(f"\n  {reason}" for reason in refused[:3]) + ("\n  …" if len(refused) > 3 else "")
        advice = "" if skip_bad or len(refused) == len(items) else "; mend them, or leave them out with --skip_bad"
        raise InputError(f"{len(refused):,} of {len(items):,} records cannot be used{advice}:{listed}")


def find_trained(tokens: Tokens, messages: Sequence[Message], train_on: str, place: str) -> list[bool]:
    """
    Returns for each token whether it is trained.

    Raises:
        RefusedConversation: Some answers have weight 0, and the template does not tell where each answer is.
    """
    answers = [message for message in messages if message["role"] == "assistant"]
    kept = [message.get("weight") != 0 for message in answers]
    if train_on == "last":
        kept = [*[False] * (len(kept) - 1), *kept[-1:]]
    trained = [True] * len(tokens.ids) if train_on == "all" else list(tokens.spoken)
    if all(kept):
        return trained
    runs = tokens.runs()
    if len(runs) != len(answers):
        raise RefusedConversation(
            f"{place}: not all answers are to be trained, and the chat template marks {len(runs)} answers of "
            f"{len(answers)}; put {{% generation %}} around each answer in a --chat_template"
        )
    for run, is_kept in zip(runs, kept):
        if not is_kept:
            trained[run.start : run.stop] = [False] * len(run)
    return trained


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
