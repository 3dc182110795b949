"""What multiple choice is: questions with options in the forms records have them, their rows, loss and baselines."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..core.errors import InputError
from ..core.statistics import Estimate, proportion
from ..data.records import Records, split_list


METRICS = ("accuracy",)
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Choice:
    """A question, perhaps about a context (else ""), its options, and the number of the right one (None: unknown)."""

    question: str
    context: str
    options: tuple[str, ...]
    answer: int | None = None


def read_choices(
    records: Records,
    question_field: str = "question",
    options_fields: Sequence[str] = ("options",),
    answer_field: str | None = "answer",
    context_field: str | None = None,
) -> list[Choice]:
    """
    Questions with their options.

    Args:
        options_fields: one field with a list of options (or, as some sets have it, `{"text": […], "label": […]}`), or
            one field for each option.
        answer_field: the right option as a number from 0, a letter from A, a label of the options, or its text; a text
            is first taken as an option's own, then as its label or letter, then as its number. None if it is not known.

    Raises:
        InputError: a record lacks a field, has fewer than two options, or an answer that is none of them.
    """
    questions = records.texts(question_field, "question_field")
    contexts = _read_contexts(records, context_field) if context_field else [""] * len(records)
    choices = []
    columns = [records.values(name, "options_fields") for name in options_fields]
    answers = records.values(answer_field, "answer_field") if answer_field else [None] * len(records)
    for question, context, values, answer, place in zip(questions, contexts, zip(*columns), answers, records.places):
        options, labels = _read_options(values, options_fields, place)
        number = None if answer is None else _number_of(answer, options, labels, answer_field, place)
        choices.append(Choice(question, context, options, number))
    return choices


def _read_contexts(records: Records, field: str) -> list[str]:
    """A field that may be blank or null in some records."""
    with_context = [number for number, record in enumerate(records) if field not in record or record[field]]
    texts = dict(zip(with_context, records.subset(with_context).texts(field, "context_field")))
    return [texts.get(number, "") for number in range(len(records))]


def _read_options(values: Sequence[Any], fields: Sequence[str], place: str) -> tuple[tuple[str, ...], list[str]]:
    """Texts of the options, and the labels that they have."""
    options, labels = values, None
    if len(fields) == 1:
        options = split_list(values[0]) if str(values[0]).startswith("[") else values[0]
        if isinstance(options, dict):
            options, labels = options.get("text"), options.get("label")
    where = f"field {fields[0]!r}" if len(fields) == 1 else f"fields {', '.join(fields)}"
    if not isinstance(options, list | tuple) or len(options) < 2:
        raise InputError(f"{place}: {where} must hold two options or more; mend or drop this record")
    for option in options:
        if not isinstance(option, str | int | float) or not str(option).strip() or option != option:
            raise InputError(f"{place}: option {option!r} in {where} is no text; mend or drop this record")
    return tuple(str(option) for option in options), [str(label) for label in labels or []]


def _number_of(answer: Any, options: tuple[str, ...], labels: list[str], field: str, place: str) -> int:
    text = str(answer).strip()
    numbered = isinstance(answer, int | float) and not isinstance(answer, bool)
    if not numbered and options.count(text) == 1:
        return options.index(text)
    if text in labels:
        return labels.index(text)
    if len(text) == 1 and text.isascii() and text.isalpha():
        number = ord(text.upper()) - ord("A")
    else:
        number = int(float(text)) if re.fullmatch(r"\d+(\.0)?", text) else -1
    if not 0 <= number < len(options):
        raise InputError(
            f"{place}: answer {answer!r} in field {field!r} is none of the {len(options)} options: give a number from "
            "0, a letter from A, or the option's text"
        )
    return number


def encode_choices(
    tokenizer: PreTrainedTokenizerBase, choices: Sequence[Choice], max_length: int
) -> list[dict[str, Any]]:
    """
    Inputs of a model, a row for each option: the question and the option as a pair, or the context and both. What is
    too long is cut at the end of the longer part, mostly the context.
    """
    owners = [number for number, choice in enumerate(choices) for _ in choice.options]
    first = [choices[number].context or choices[number].question for number in owners]
    asked = [f"{choice.question} " if choice.context else "" for choice in choices]
    second = [asked[n] + option for n, choice in enumerate(choices) for option in choice.options]
    inputs = tokenizer(first, second, truncation="longest_first", max_length=max_length, verbose=False)
    if tokenizer.is_fast:
        # Truncation set by this call must not be saved as the tokenizer's own.
        tokenizer.backend_tokenizer.no_truncation()
    rows: list[dict[str, Any]] = [{name: [] for name in inputs} for _ in choices]
    for number, values in zip(owners, zip(*inputs.values())):
        for name, value in zip(inputs, values):
            rows[number][name].append(value)
    return rows


def option_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What [`encode_choices`] gives as records of one option: options are scored one by one, at any length."""
    return [
        {name: [value[number]] for name, value in row.items()}
        for row in rows
        for number in range(len(row["input_ids"]))
    ]


def logits_of(scores: Sequence[np.ndarray], choices: Sequence[Choice]) -> list[np.ndarray]:
    """Scores of [`option_rows`], put together again: `(options,)` for each choice."""
    each = iter(scores)
    return [np.array([next(each)[0] for _ in choice.options], dtype=np.float64) for choice in choices]


def add_labels(rows: Sequence[dict[str, Any]], choices: Sequence[Choice]) -> None:
    """Put the number of the right option into the rows, and how many options there are: batches have more for some."""
    for row, choice in zip(rows, choices):
        row["labels"] = (choice.answer, len(choice.options))


def choice_loss(smoothing: float = 0.0) -> Callable[..., torch.Tensor]:
    """A `compute_loss_func` for Trainer: the mean over the records of all accumulated batches."""

    def compute(
        outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        logits = outputs["logits"].float()
        answers, options = labels.unbind(-1)
        there = torch.arange(logits.shape[1], device=logits.device) < options[:, None]
        scores = logits.masked_fill(~there, -torch.inf).log_softmax(-1)
        right = scores.gather(1, answers[:, None]).squeeze(1)
        spread = scores.masked_fill(~there, 0.0).sum(-1) / options
        loss = -((1 - smoothing) * right + smoothing * spread).sum()
        # Trainer counts both numbers of a record's labels.
        return loss / (len(labels) if num_items_in_batch is None else num_items_in_batch / 2)

    return compute


def decide(logits: Sequence[np.ndarray], choices: Sequence[Choice]) -> np.ndarray:
    """Numbers of the options that a model takes, from the logits of each record's `(options or more,)`."""
    return np.array([int(row[: len(choice.options)].argmax()) for row, choice in zip(logits, choices)])


def figures(predictions: np.ndarray, choices: Sequence[Choice]) -> dict[str, float]:
    """The share of right answers."""
    return {"accuracy": float(np.mean([guess == choice.answer for guess, choice in zip(predictions, choices)]))}


def estimates(predictions: np.ndarray, choices: Sequence[Choice]) -> dict[str, Estimate]:
    """The share of right answers with Wilson's interval."""
    return {"accuracy": proportion(sum(g == choice.answer for g, choice in zip(predictions, choices)), len(choices))}


def baselines(choices: Sequence[Choice]) -> dict[str, dict[str, Estimate]]:
    """What chance is expected to get, the longest option, and the one with most words of the question and context."""
    expected = float(np.mean([1 / len(choice.options) for choice in choices]))
    longest = np.array([np.argmax([len(option) for option in choice.options]) for choice in choices])
    return {
        "chance": {"accuracy": Estimate(expected, expected, expected, len(choices))},
        "longest option": estimates(longest, choices),
        "most words in common": estimates(np.array([_most_in_common(choice) for choice in choices]), choices),
    }


def _most_in_common(choice: Choice) -> int:
    there = set(_WORD.findall(f"{choice.context} {choice.question}".casefold()))
    words = [set(_WORD.findall(option.casefold())) for option in choice.options]
    shares = [len(option & there) / max(len(option), 1) for option in words]
    return shares.index(max(shares))
