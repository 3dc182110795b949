"""Rewards that can be checked: the right number, a pattern, or what a person's own function says of an answer."""

import importlib.util
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..core.errors import InputError
from ..core.statistics import Estimate, bootstrap, proportion
from ..data.chat import ChatEncoder, Message, read_prompt
from ..data.records import Records
from .generation import Answer, answer


# What an answer earns by its text, and the number of the record that it answers.
Verifier = Callable[[str, int], float]

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def number_in(text: str) -> Decimal | None:
    """
    The number that a text arrives at: the last one, behind `####` if that is there (as in GSM8K); None without any.

    Commas between digits and a minus are part of it: "so -1,200.50 in all" gives -1200.50.
    """
    found = _NUMBER.findall(text.rpartition("####")[2])
    return Decimal(found[-1].replace(",", "")) if found else None


def read_verifier(kind: str, records: Records, field: str) -> Verifier:
    """
    How answers to records are checked.

    Args:
        kind: `number`: the number that the answer arrives at must be the one in the record's field. `pattern`: the
            field is a regular expression that must be found in the answer. Or `file.py:function`, called as
            `function(answer, record)`, which gives a number: the higher, the better.
        field: where a record has the number or the pattern.

    Raises:
        InputError: a record has no such field or no number or pattern in it, or there is no such function. The verifier
            itself raises it when a function fails or gives no number.
    """
    if kind == "number":
        numbers = [number_in(str(value)) for value in records.values(field, "answer_field")]
        for number, record, place in zip(numbers, records, records.places):
            if number is None:
                raise InputError(f"{place}: no number in field {field!r}, which is {record[field]!r:.60}")
        return lambda answer, row: float(number_in(answer) == numbers[row])
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


def load_function(where: str) -> Callable[[str, Mapping[str, Any]], float]:
    """A person's function by `file.py:function`. Raises `InputError` if there is none."""
    file, colon, name = where.rpartition(":")
    if not colon or not file.endswith(".py"):
        raise InputError(f"reward {where!r} must be number, pattern, or file.py:function")
    if not Path(file).is_file():
        raise InputError(f"reward {where!r}: there is no file {file}")
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"reward {where!r}: {file} cannot be imported: {error!r}") from error
    function = getattr(module, name, None)
    if not callable(function):
        there = ", ".join(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise InputError(f"reward {where!r}: no function {name} in {file}, there are {there or 'none'}")
    return function


@dataclass
class Questions:
    """
    Prompts as messages and as token ids, and what an answer to each earns.

    Attributes:
        rows: the record that each comes from.
    """

    prompts: list[list[Message]]
    ids: list[list[int]]
    rows: list[int]
    verify: Verifier

    def ask(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, batch_size: int = 64
    ) -> tuple[np.ndarray, list[Answer]]:
        """What a model's likeliest answers earn, `(questions,)`, and the answers."""
        said = answer(model, tokenizer, self.ids, max_new_tokens, batch_size)
        return np.array([self.verify(one.text, row) for one, row in zip(said, self.rows)]), said


def read_questions(records: Records, encoder: ChatEncoder, verify: Verifier, longest: int) -> Questions:
    """
    The questions of the records; those longer than `longest` tokens are left out.

    Raises:
        InputError: a record asks nothing, or all are too long.
    """
    prompts = [read_prompt(record, place) for record, place in zip(records, records.places)]
    ids = [encoder.prompt(prompt, place) for prompt, place in zip(prompts, records.places)]
    rows = [row for row, prompt in enumerate(ids) if len(prompt) <= longest]
    if not rows:
        raise InputError(f"{records.path}: no prompt is short enough to leave room for an answer: raise max_length")
    return Questions([prompts[row] for row in rows], [ids[row] for row in rows], rows, verify)


def estimate(earned: np.ndarray, kind: str) -> dict[str, Estimate]:
    """The share of right answers, or the mean of what a person's function gives."""
    if kind in ("number", "pattern"):
        return {"accuracy": proportion(int(earned.sum()), len(earned))}
    return bootstrap(lambda several: {"reward": float(several.mean())}, earned)
