"""Pairs of answers of which one is preferred: read, encoded, and how far a model agrees."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..core.errors import InputError
from ..core.limits import refuse_diverged
from ..core.statistics import Estimate, proportion
from ..data.chat import IGNORED, ChatEncoder, ConversationCollator, Message, read_messages, read_prompt, text_of
from ..data.records import Records


class Pair(NamedTuple):
    """What was said before, and the answers: the better one first."""

    prompt: list[Message]
    chosen: str
    rejected: str


def read_pairs(records: Records) -> list[Pair]:
    """
    Pairs from records with `prompt`, `chosen` and `rejected`; or with conversations in both, alike but for their end.

    Raises:
        InputError: a field is missing or blank, or a turn is malformed; the message names the record.
    """
    pairs = []
    for record, place in zip(records, records.places):
        for name in ("chosen", "rejected"):
            if name not in record:
                there = ", ".join(map(str, record)) or "nothing"
                raise InputError(f"{place}: no field {name!r}, there are {there}; give prompt, chosen and rejected")
        chosen, rejected = (_read_answer(record[name], f"{place}: field {name!r}") for name in ("chosen", "rejected"))
        if chosen[:-1] != rejected[:-1]:
            raise InputError(f"{place}: chosen and rejected answer different conversations; mend or drop this record")
        asked, before = read_prompt(record, place) if "prompt" in record else [], chosen[:-1]
        prompt = before if before[: len(asked)] == asked else [*asked, *before]
        if not prompt:
            raise InputError(f"{place}: nothing is asked; give a prompt, or the whole conversation in both answers")
        pairs.append(Pair(prompt, chosen[-1]["content"], rejected[-1]["content"]))
    return pairs


def _read_answer(value: Any, where: str) -> list[Message]:
    """The messages that end with an answer: a text is the answer alone."""
    if not isinstance(value, (list, tuple)):
        return [{"role": "assistant", "content": text_of(value, where)}]
    messages = read_messages(value, where)
    if messages[-1]["role"] != "assistant":
        raise InputError(f"{where}: ends with the {messages[-1]['role']}, not with an answer; mend or drop this record")
    return messages


@dataclass
class EncodedPairs:
    """
    Token ids of prompts and answers, and what was left out.

    Attributes:
        numbers: which pair each row comes from.
        alike: pairs left out because both answers are the same.
        left_out: pairs of which an answer is too long.
    """

    rows: list[dict[str, list[int]]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    alike: int = 0
    left_out: int = 0

    def answered(self, which: str) -> list[dict[str, list[int]]]:
        """Rows of `input_ids` and `labels` with the `chosen` or the `rejected` answers, for their likelihood."""
        return [
            {
                "input_ids": row["prompt_ids"] + row[f"{which}_ids"],
                "labels": [IGNORED] * len(row["prompt_ids"]) + row[f"{which}_ids"],
            }
            for row in self.rows
        ]


def encode_pairs(encoder: ChatEncoder, pairs: Sequence[Pair], places: Sequence[str], max_length: int) -> EncodedPairs:
    """
    Rows with `prompt_ids`, `chosen_ids` and `rejected_ids`; an answer has the token that ends it.

    Raises:
        InputError: a conversation is malformed, or no pair is left.
    """
    found = EncodedPairs()
    for number, (pair, place) in enumerate(zip(pairs, places)):
        (prompt, chosen), (_, rejected) = (
            encoder([*pair.prompt, {"role": "assistant", "content": text}], place).split()
            for text in (pair.chosen, pair.rejected)
        )
        if chosen == rejected:
            found.alike += 1
        elif len(prompt) + max(len(chosen), len(rejected)) > max_length:
            found.left_out += 1
        else:
            found.rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
            found.numbers.append(number)
    if not found.rows:
        raise InputError(
            f"max_length {max_length}: of {len(pairs)} pairs {found.left_out} are longer and {found.alike} have the "
            "same answer twice, so none is left"
        )
    return found


@torch.no_grad()
def rewards(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, list[int]]],
    batch_size: int = 8,
) -> np.ndarray:
    """
    What a reward model gives each row of `input_ids`, `(rows,)`.

    Raises:
        InputError: the outputs are not finite.
    """
    collate, given = ConversationCollator(tokenizer.pad_token_id), np.zeros(len(rows))
    order = sorted(range(len(rows)), key=lambda number: -len(rows[number]["input_ids"]))
    model.eval()
    for first in range(0, len(order), batch_size):
        numbers = order[first : first + batch_size]
        batch = collate([rows[number] for number in numbers])
        del batch["labels"]
        outputs = model(**{name: tensor.to(model.device) for name, tensor in batch.items()})
        given[numbers] = outputs.logits[:, 0].float().cpu().numpy()
    refuse_diverged(given)
    return given


def agreement(chosen: np.ndarray, rejected: np.ndarray) -> Estimate:
    """The share of pairs whose chosen answer scores higher; equal scores count as a half."""
    wins = int((chosen > rejected).sum() + (chosen == rejected).sum() // 2)
    return proportion(wins, len(chosen))
