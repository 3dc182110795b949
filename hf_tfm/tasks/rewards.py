"""Verifiable rewards: an answer is checked by a number, a regular expression, or a Python function of the user's."""

import importlib.util
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..core.errors import InputError
from ..core.statistics import bootstrap, proportion
from ..data.chat import ChatEncoder, RefusedConversation
from ..data.chat_rows import encode_each
from ..data.conversations import Message
from ..data.records import Records
from ..train.report import print_line
from .chat_run import report_refused
from .fine_tune import Measurement
from .generation import Reply, generate_replies
from .written_numbers import final_number, read_number


# Takes the text of an answer and the number of its record, and returns the reward.
Verifier = Callable[[str, int], float]


# Kinds of rewards that check an answer against the record's own.
KINDS = ("number", "pattern")


def read_verifier(kind: str, records: Records, expected: Mapping[int, Any] | None = None) -> Verifier:
    """
    Return a function that rewards answers to the records.

    Args:
        kind: `number`: the number that the answer gives ([`final_number`]: a marked one, else the last) must be that of
            the record's answer ([`read_number`]). `pattern`: the record's answer is a regular expression that must
            match somewhere in the answer. `file.py:function`: a function of the user's, called as
            `function(answer, record)` with the record as it is in the file, returns the reward.
        expected: what [`read_expected`] returns for the records that are used.

    Raises:
        InputError: a record's answer has no number or pattern, or there is no such function. The verifier raises it
            when the function fails or returns no number.
    """
    if kind in KINDS and expected is None:
        expected = {row: read_expected(kind, records, row) for row in range(len(records))}
    if kind == "number" and expected is not None:
        numbers = expected
        return lambda answer, row: float(numbers[row].is_same(final_number(answer)))
    if kind == "pattern" and expected is not None:
        patterns = expected
        return lambda answer, row: float(patterns[row].search(answer) is not None)
    function = load_function(kind)

    def verify(answer: str, row: int) -> float:
        try:
            reward = function(answer, dict(records.rows[row]))
        except Exception as error:
            raise InputError(f"{kind}: fails on an answer to {records.places[row]}: {error!r}") from error
        if isinstance(reward, bool) or (isinstance(reward, (int, float)) and math.isfinite(reward)):
            return float(reward)
        raise InputError(f"{kind}: gives {reward!r} for an answer to {records.places[row]}, not a number")

    return verify


def read_expected(kind: str, records: Records, row: int) -> Any:
    """
    Return what an answer to a record is checked against: a number or a pattern; nothing for a function of the user's.

    Raises:
        RefusedConversation: the record's answer is neither.
    """
    if kind not in KINDS:
        return None
    value, place, name = records[row]["answer"], records.places[row], records.name_of("answer")
    if kind == "number":
        if (number := read_number(value)) is None:
            raise RefusedConversation(
                f"{place}: field {name!r} is {value!r:.60}, not one number; write one, or mark it: #### 42"
            )
        return number
    if not isinstance(value, str) or not value:
        raise RefusedConversation(f"{place}: field {name!r} is {value!r:.60}, not a regular expression")
    try:
        return re.compile(value)
    except re.error as error:
        raise RefusedConversation(f"{place}: field {name!r} is no regular expression: {error}") from None


def load_function(location: str) -> Callable[[str, Mapping[str, Any]], Any]:
    """Return the function at `file.py:function`. Raises `InputError` if there is none."""
    file, colon, name = location.rpartition(":")
    if not colon or not file.endswith(".py"):
        raise InputError(f"reward {location!r} must be number, pattern, or file.py:function")
    if not Path(file).is_file():
        raise InputError(f"reward {location!r}: there is no file {file}")
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None and spec.loader is not None  # as for every name that ends with .py
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"reward {location!r}: {file} cannot be imported: {error!r}") from error
    function = getattr(module, name, None)
    if not callable(function):
        names = ", ".join(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise InputError(f"reward {location!r}: no function {name} in {file}, there are {names or 'none'}")
    return function


@dataclass
class VerifiablePrompts:
    """
    Prompts whose answers can be checked, as messages and as token ids.

    Attributes:
        rows: the number of each prompt's record.
        kind: kind of the reward, as in [`read_verifier`].
    """

    prompts: list[list[Message]]
    ids: list[list[int]]
    rows: list[int]
    verify: Verifier
    kind: str

    def measure(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, batch_size: int = 64
    ) -> tuple[np.ndarray, list[Reply]]:
        """Return the rewards of a model's greedy replies, `(prompts,)`, and the replies."""
        replies = generate_replies(model, tokenizer, self.ids, max_new_tokens, batch_size)
        return np.array([self.verify(reply.text, row) for reply, row in zip(replies, self.rows)]), replies

    def estimate(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> Measurement:
        """Measure the accuracy (`number`, `pattern`) or mean reward (a function of the user's) of greedy replies."""
        rewards, replies = self.measure(model, tokenizer, max_new_tokens)
        if self.kind in ("number", "pattern"):
            return Measurement({"accuracy": proportion(int(rewards.sum()), len(rewards))}, replies)
        return Measurement(bootstrap(lambda values: {"reward": float(values.mean())}, rewards), replies)


def prompt_keys(records: Records) -> list[str]:
    """Return a key of each record that records with the same prompt share."""
    return [str(record["prompt"]) for record in records]


def read_verifiable_splits(
    splits: Mapping[str, Records], encoder: ChatEncoder, kind: str, max_tokens: int, skip_bad: bool = False
) -> dict[str, VerifiablePrompts]:
    """Return the prompts of each split, and print how many there are and how many were left out."""
    verifiable = {}
    for name, records in splits.items():
        refused: list[str] = []
        split = read_verifiable_prompts(records, encoder, kind, max_tokens, name, skip_bad, refused)
        print_line(name, f"{len(split.rows):,} questions")
        if num_dropped := len(records) - len(split.rows) - len(refused):
            print_line("note", f"{num_dropped:,} {name} prompts are left out: longer than {max_tokens} tokens")
        report_refused(name, refused)
        verifiable[name] = split
    return verifiable


def read_verifiable_prompts(
    records: Records,
    encoder: ChatEncoder,
    kind: str,
    max_tokens: int,
    split: str = "the records",
    skip_bad: bool = False,
    refused: list[str] | None = None,
) -> VerifiablePrompts:
    """
    Return the prompts of the records, without those of more than `max_tokens` tokens.

    Args:
        kind: as in [`read_verifier`].
        split: name for messages.
        skip_bad: leave out records that cannot be used, and append the reasons to `refused`.

    Raises:
        InputError: records cannot be used, or all are too long.
    """

    def encode(row: int, place: str) -> tuple[Any, list[int]]:
        expected = read_expected(kind, records, row)
        return expected, encoder.prompt(records[row]["prompt"], place, records[row].get("tools"))

    refused = [] if refused is None else refused
    found = dict(encode_each(range(len(records)), records.places, encode, skip_bad, refused))
    verify = read_verifier(kind, records, {row: expected for row, (expected, _) in found.items()})
    rows = [row for row, (_, ids) in found.items() if len(ids) <= max_tokens]
    if not rows:
        raise InputError(
            f"{records.path}: no prompt of {split} is short enough to leave room for an answer: raise max_length"
        )
    return VerifiablePrompts(
        [records[row]["prompt"] for row in rows], [found[row][1] for row in rows], rows, verify, kind
    )
