"""Preferences: pairs of answers of which one is better, read, encoded, and scored by a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..core.errors import InputError
from ..core.inference import evaluation_mode
from ..core.limits import refuse_diverged
from ..core.quiet import quiet
from ..core.statistics import Estimate, proportion
from ..data.batches import IGNORED
from ..data.chat import ChatEncoder
from ..data.chat_rows import ConversationCollator, encode_each
from ..data.forms.preferences import SIDES
from ..data.records import Records
from ..train.report import print_line
from .chat_run import report_refused
from .fine_tune import Measurement
from .likelihood import estimate_loss, negative_log_likelihoods


def pair_keys(records: Records) -> list[str]:
    """Return a key of each record that records with the same prompt share."""
    return [str(record["prompt"]).casefold() for record in records]


@dataclass
class EncodedPairs:
    """
    Token ids of prompts and answers, and how many pairs were dropped.

    Attributes:
        rows: `prompt_ids`, `chosen_ids` and `rejected_ids` of each pair; answers include the token that ends them.
        numbers: the number of each row's pair.
        num_identical: pairs dropped because both answers are the same.
        num_too_long: pairs dropped because of the length of an answer.
        refused: why pairs were refused by the chat template and skipped.
    """

    rows: list[dict[str, list[int]]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    num_identical: int = 0
    num_too_long: int = 0
    refused: list[str] = field(default_factory=list)

    def labelled_rows(self, side: str) -> list[dict[str, list[int]]]:
        """Return `input_ids` and `labels` of the prompts with their `chosen` or `rejected` answers as labels."""
        return [
            {
                "input_ids": row["prompt_ids"] + row[f"{side}_ids"],
                "labels": [IGNORED] * len(row["prompt_ids"]) + row[f"{side}_ids"],
            }
            for row in self.rows
        ]


def encode_pairs(
    encoder: ChatEncoder, records: Records, max_length: int, skip_bad: bool = False, split: str = "the records"
) -> EncodedPairs:
    """
    Encode pairs by the tokenizer's chat template, and drop those that teach nothing or are too long.

    Args:
        records: `prompt`, `chosen` and `rejected` as messages, as forms of preferences give them.
        skip_bad: leave out pairs that the chat template refuses.
        split: name for messages.

    Raises:
        InputError: a conversation is refused, or no pair remains.
    """
    encoded = EncodedPairs()

    def encode(record: Mapping[str, Any], place: str) -> list[tuple[list[int], list[int]]]:
        prompt, tools = record["prompt"], record.get("tools")
        return [encoder([*prompt, *record[side]], place, tools).split() for side in SIDES]

    for number, sides in encode_each(records, records.places, encode, skip_bad, encoded.refused):
        (prompt, chosen), (_, rejected) = sides
        if chosen == rejected:
            encoded.num_identical += 1
        elif len(prompt) + max(len(chosen), len(rejected)) > max_length:
            encoded.num_too_long += 1
        else:
            encoded.rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
            encoded.numbers.append(number)
    if not encoded.rows:
        raise InputError(
            f"max_length {max_length}: of {len(records)} pairs of {split} {encoded.num_too_long} are longer and "
            f"{encoded.num_identical} have the same answer twice, so none is left"
        )
    return encoded


def encode_splits(
    encoder: ChatEncoder, splits: Mapping[str, Records], max_length: int, skip_bad: bool
) -> dict[str, EncodedPairs]:
    """Return the encoded pairs of each split, and print how many there are and how many were dropped."""
    encoded = {name: encode_pairs(encoder, records, max_length, skip_bad, name) for name, records in splits.items()}
    for name, split in encoded.items():
        print_line(name, f"{len(split.rows):,} pairs")
        for count, reason in (
            (split.num_identical, "have the same answer twice"),
            (split.num_too_long, "are too long"),
        ):
            if count:
                print_line("note", f"{count:,} {name} pairs {reason}, they are left out (max_length {max_length})")
        report_refused(name, split.refused)
    return encoded


class PairScores(NamedTuple):
    """
    A model's scores of both answers, each `(pairs,)`: log-likelihoods (nats) or rewards.

    Attributes:
        chosen_tokens: number of tokens of the chosen answers.
    """

    chosen: np.ndarray
    rejected: np.ndarray
    chosen_tokens: np.ndarray

    def agreement(self) -> Estimate:
        """Return the share of pairs whose chosen answer scores higher; a tie counts half."""
        wins = int((self.chosen > self.rejected).sum() + (self.chosen == self.rejected).sum() // 2)
        return proportion(wins, len(self.chosen))


def score_pairs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, encoded: EncodedPairs, reward: bool
) -> PairScores:
    """Return the log-likelihoods of the answers under a causal LM, or a reward model's rewards with `reward`."""
    tokens = np.array([len(row["chosen_ids"]) for row in encoded.rows])
    with quiet():
        if reward:
            chosen, rejected = (predict_rewards(model, tokenizer, encoded.labelled_rows(side)) for side in SIDES)
        else:
            nats = (negative_log_likelihoods(model, tokenizer, encoded.labelled_rows(side))[0] for side in SIDES)
            chosen, rejected = (-values for values in nats)
    return PairScores(chosen, rejected, tokens)


def estimate_preferences(scores: PairScores, reference: PairScores | None, reward: bool) -> dict[str, Estimate]:
    """
    Return the share of pairs that a model agrees with, and the loss of a causal LM on the chosen answers.

    Args:
        reference: scores of the causal LM before the training; the change from them decides `accuracy`, as in DPO.
    """
    if reward:
        return {"accuracy": scores.agreement()}
    figures = {
        "likelier": scores.agreement(),
        "chosen_loss": estimate_loss(-scores.chosen, scores.chosen_tokens),
    }
    if reference is None:
        return figures
    gains = PairScores(scores.chosen - reference.chosen, scores.rejected - reference.rejected, scores.chosen_tokens)
    return {"accuracy": gains.agreement(), **figures}


def measure_pairs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: EncodedPairs,
    before: Measurement | None,
    reward: bool,
) -> Measurement:
    """Measure a model on pairs, as [`estimate_preferences`] describes, relative to the measurement before."""
    scores = score_pairs(model, tokenizer, encoded, reward)
    return Measurement(estimate_preferences(scores, before.scores if before else None, reward), scores=scores)


def predict_rewards(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, list[int]]],
) -> np.ndarray:
    """
    Return a reward model's reward of each row of `input_ids`, `(rows,)`.

    Raises:
        InputError: the outputs are not finite.
    """
    collate, rewards = ConversationCollator(tokenizer.pad_token_id), np.zeros(len(rows))
    order = sorted(range(len(rows)), key=lambda number: -len(rows[number]["input_ids"]))
    with evaluation_mode(model):
        for first in range(0, len(order), 8):
            numbers = order[first : first + 8]
            batch = collate([rows[number] for number in numbers])
            del batch["labels"]
            outputs = model(**{name: tensor.to(model.device) for name, tensor in batch.items()})
            rewards[numbers] = outputs.logits[:, 0].float().cpu().numpy()
    refuse_diverged(rewards)
    return rewards
