"""Multiple choice: the right one of several options, for a question and perhaps a context."""

import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from transformers import AutoModelForMultipleChoice, PreTrainedModel, PreTrainedTokenizerBase

from ..core.errors import InputError
from ..core.statistics import Estimate, proportion
from ..data.records import Records
from ..train.base_model import separate_pairs
from ..train.report import input_text
from .losses import LossFunction
from .task import Outputs, Split, Task


_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class ChoiceQuestion:
    """A question, its context (or ""), its options, and the number of the right option (None: unknown)."""

    question: str
    context: str
    options: tuple[str, ...]
    answer: int | None = None


@dataclass
class MultipleChoice(Task[ChoiceQuestion]):
    """
    Questions with options, of which one is right; their number may differ from record to record.

    Args:
        question_field: field of a record that has its question.
        context_field: field of the text that the question is about.
        options_fields: one field with a list of options, or a field for each option.
        answer_field: field of the right option.
    """

    model_class = AutoModelForMultipleChoice
    adapter_type = None
    job = "choices"
    fields = {
        "question": "question_field", "context": "context_field", "options": "options_fields", "answer": "answer_field"
    }  # fmt: skip

    question_field: str | None = None
    context_field: str | None = None
    options_fields: Sequence[str] | None = None
    answer_field: str | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("accuracy",)

    def learn_labels(self, train: Records) -> None:
        answers = {example.answer for example in self.read(train).examples}
        if len(answers) < 2:
            raise InputError(
                f"{train.path}: the right option has the same number, {answers.pop()}, in all records: mix the options"
            )

    def read(self, records: Records, labelled: bool = True) -> Split[ChoiceQuestion]:
        examples = [
            ChoiceQuestion(
                record["question"], record.get("context", ""), tuple(record["options"]), record.get("answer")
            )
            for record in records
        ]
        return Split(records, examples)

    def keys(self, split: Split[ChoiceQuestion]) -> list[Hashable]:
        return [(example.context.casefold(), example.question.casefold()) for example in split.examples]

    def prepare(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        separate_pairs(tokenizer)

    def encode(
        self,
        split: Split[ChoiceQuestion],
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
    ) -> None:
        split.rows = encode_choices(tokenizer, split.examples, max_length)

    def add_labels(self, split: Split[ChoiceQuestion]) -> None:
        """Add the number of the right option and how many there are: a batch may have more for other records."""
        for row, example in zip(split.rows, split.examples):
            row["labels"] = (example.answer, len(example.options))

    def loss(self, train: Split[ChoiceQuestion], smoothing: float = 0.0) -> LossFunction:
        return choice_loss(smoothing)

    def soft_shape(self, row: Mapping[str, Any]) -> tuple[int, int | None]:
        return 1, len(row["input_ids"])

    def select(self, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the logits `(batch, options)`."""
        return outputs[0].float()

    def decide(self, outputs: Outputs, split: Split[ChoiceQuestion]) -> np.ndarray:
        """Return numbers of options from logits `(records, options)`, of which a record may have fewer than others."""
        pairs = zip(outputs, split.examples)
        return np.array([int(logits[: len(example.options)].argmax()) for logits, example in pairs])

    def figures(self, predictions: Any, split: Split[ChoiceQuestion]) -> dict[str, float]:
        return {"accuracy": self.estimates(predictions, split)["accuracy"].value}

    def estimates(self, predictions: Any, split: Split[ChoiceQuestion]) -> dict[str, Estimate]:
        """Return the share of right answers with Wilson's interval."""
        num_hits = sum(number == example.answer for number, example in zip(predictions, split.examples))
        return {"accuracy": proportion(num_hits, len(split.examples))}

    def baselines(
        self, train: Split[ChoiceQuestion], split: Split[ChoiceQuestion], seed: int = 0
    ) -> dict[str, dict[str, Estimate]]:
        """Return estimates of chance, the longest option, and the one with most words of the question and context."""
        chance = float(np.mean([1 / len(example.options) for example in split.examples]))
        longest = np.array([np.argmax([len(option) for option in example.options]) for example in split.examples])
        overlap = np.array([_most_words_in_common(example) for example in split.examples])
        return {
            "chance": {"accuracy": Estimate(chance, chance, chance, len(split.examples))},
            "longest option": self.estimates(longest, split),
            "most words in common": self.estimates(overlap, split),
        }

    def output_fields(self, outputs: Outputs, split: Split[ChoiceQuestion], top: int) -> list[dict[str, Any]]:
        fields = []
        for logits, example in zip(outputs, split.examples):
            scores = softmax(logits[: len(example.options)].astype(np.float64))
            best = int(scores.argmax())
            fields.append(
                {
                    "predicted_option": best,
                    "predicted_text": example.options[best],
                    "predicted_scores": scores.tolist(),
                }
            )
        return fields

    def describe_split(self, split: Split[ChoiceQuestion]) -> str:
        counts = sorted(Counter(len(example.options) for example in split.examples).items())
        options = ", ".join(f"{records:,} of {number} options" for number, records in counts)
        return f"{len(split.examples):,} records: {options}"

    def describe_example(self, tokenizer: PreTrainedTokenizerBase, train: Split[ChoiceQuestion]) -> str:
        example = train.examples[0]
        ids = train.rows[0]["input_ids"][example.answer]
        return f"{input_text(tokenizer, ids)} → right, of {len(example.options)} options"


def encode_choices(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[ChoiceQuestion], max_length: int
) -> list[dict[str, Any]]:
    """
    Encode each option of an example as a pair with the question, or with the context in front of question and option.

    A pair that is too long is cut at the end of its longer part, mostly the context.

    Returns: for each example, columns `(options, length)`.
    """
    owners = [number for number, example in enumerate(examples) for _ in example.options]
    first = [examples[number].context or examples[number].question for number in owners]
    questions = [f"{example.question} " if example.context else "" for example in examples]
    second = [questions[number] + option for number, example in enumerate(examples) for option in example.options]
    inputs = tokenizer(first, second, truncation="longest_first", max_length=max_length, verbose=False)
    if tokenizer.is_fast:
        # Truncation set by this call must not be saved as the tokenizer's own.
        tokenizer.backend_tokenizer.no_truncation()
    rows: list[dict[str, Any]] = [{name: [] for name in inputs} for _ in examples]
    for number, values in zip(owners, zip(*inputs.values())):
        for name, value in zip(inputs, values):
            rows[number][name].append(value)
    return rows


def choice_loss(smoothing: float = 0.0) -> LossFunction:
    """Return a `compute_loss_func` for Trainer: the mean over the records of all accumulated batches."""

    def compute(
        outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        logits = outputs["logits"].float()
        answers, options = labels.unbind(-1)
        exists = torch.arange(logits.shape[1], device=logits.device) < options[:, None]
        scores = logits.masked_fill(~exists, -torch.inf).log_softmax(-1)
        correct = scores.gather(1, answers[:, None]).squeeze(1)
        spread = scores.masked_fill(~exists, 0.0).sum(-1) / options
        loss = -((1 - smoothing) * correct + smoothing * spread).sum()
        # Trainer counts both numbers of a record's labels.
        return loss / (len(labels) if num_items_in_batch is None else num_items_in_batch / 2)

    return compute


def _most_words_in_common(example: ChoiceQuestion) -> int:
    text_words = set(_WORD.findall(f"{example.context} {example.question}".casefold()))
    option_words = [set(_WORD.findall(option.casefold())) for option in example.options]
    shares = [len(words & text_words) / max(len(words), 1) for words in option_words]
    return shares.index(max(shares))
