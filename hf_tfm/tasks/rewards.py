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
from ..data.chat import ChatEncoder
from ..data.conversations import Message, read_prompt
from ..data.records import Records
from ..train.report import print_line
from .fine_tune import Measurement
from .generation import Reply, generate_replies
from .written_numbers import final_number, read_number


# Takes the text of an answer and the number of its record, and returns the reward.
Verifier = Callable[[str, int], float]


def read_verifier(kind: str, records: Records, field: str) -> Verifier:
    """
    Return a function that rewards answers to the records.

    Args:
        kind: `number`: the number that the answer gives ([`final_number`]: a marked one, else the last) must be that of
            the record's field ([`read_number`]). `pattern`: the field is a
            regular expression that must match somewhere in the answer. `file.py:function`: a function of the user's,
            called as `function(answer, record)`, returns the reward.
        field: the record's field with the number or the pattern.

    Raises:
        InputError: a record lacks the field, or it has no number or pattern, or there is no such function. The verifier
            raises it when the function fails or returns no number.
    """
    if kind == "number":
        numbers = []
        for value, place in zip(records.values(field, "answer_field"), records.places):
            if (number := read_number(value)) is None:
                raise InputError(
                    f"{place}: field {field!r} is {value!r:.60}, not one number; write one, or mark it: #### 42"
                )
            numbers.append(number)
        return lambda answer, row: float(numbers[row].is_same(final_number(answer)))
    if kind == "pattern":
        patterns = []
        for pattern, place in zip(records.texts(field, "answer_field"), records.places):
            try:
                patterns.append(re.compile(pattern))
            except re.error as error:
                raise InputError(f"{place}: field {field!r} is no regular expression: {error}") from None
        return lambda answer, row: float(patterns[row].search(answer) is not None)
    function = load_function(kind)

    def verify(answer: str, row: int) -> float:
        try:
            reward = function(answer, dict(records[row]))
        except Exception as error:
            raise InputError(f"{kind}: fails on an answer to {records.places[row]}: {error!r}") from error
        if isinstance(reward, bool) or (isinstance(reward, (int, float)) and math.isfinite(reward)):
            return float(reward)
        raise InputError(f"{kind}: gives {reward!r} for an answer to {records.places[row]}, not a number")

    return verify


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
    return [str(read_prompt(record, place)) for record, place in zip(records, records.places)]


def read_verifiable_splits(
    splits: Mapping[str, Records], encoder: ChatEncoder, kind: str, field: str, max_tokens: int
) -> dict[str, VerifiablePrompts]:
    """Return the prompts of each split, and print how many there are and how many are too long."""
    verifiable = {}
    for name, records in splits.items():
        split = read_verifiable_prompts(records, encoder, kind, field, max_tokens, name)
        print_line(name, f"{len(split.rows):,} questions")
        if num_dropped := len(records) - len(split.rows):
            print_line("note", f"{num_dropped:,} {name} prompts are left out: longer than {max_tokens} tokens")
        verifiable[name] = split
    return verifiable


def read_verifiable_prompts(
    records: Records, encoder: ChatEncoder, kind: str, field: str, max_tokens: int, split: str = "the records"
) -> VerifiablePrompts:
    """
    Return the prompts of the records, without those of more than `max_tokens` tokens.

    Args:
        kind, field: as in [`read_verifier`].
        split: name for messages.

    Raises:
        InputError: a record has no prompt, or all are too long.
    """
    verify = read_verifier(kind, records, field)
    prompts = [read_prompt(record, place) for record, place in zip(records, records.places)]
    ids = [encoder.prompt(prompt, place) for prompt, place in zip(prompts, records.places)]
    rows = [row for row, prompt in enumerate(ids) if len(prompt) <= max_tokens]
    if not rows:
        raise InputError(
            f"{records.path}: no prompt of {split} is short enough to leave room for an answer: raise max_length"
        )
    return VerifiablePrompts([prompts[row] for row in rows], [ids[row] for row in rows], rows, verify, kind)
