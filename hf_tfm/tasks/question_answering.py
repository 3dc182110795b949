"""Extractive question answering: the span of a context that answers a question, or that there is none."""

import random
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForQuestionAnswering, PreTrainedModel, PreTrainedTokenizerBase

from ..artifacts.record import RunRecord
from ..artifacts.tokenizer_files import trim_offsets
from ..core.errors import InputError
from ..core.statistics import Estimate, bootstrap
from ..data.records import Records
from ..data.text import split_sentences
from ..train.base_model import separate_pairs
from .losses import LossFunction
from .spans import SpanAnswer, encode_questions, find_answers, span_columns, span_loss
from .squad import Question, exact_match, normalize, read_questions, token_f1
from .task import Outputs, Split, Task


_WORD = re.compile(r"\w+(?:[-'’.,]\w+)*")


@dataclass
class QuestionAnswering(Task[Question]):
    """
    Questions about a context that has the answer, or has none.

    Args:
        question_field: field of a record that has its question.
        context_field: field of the text that has the answer.
        answers_field: field of the answers, in SQuAD's shape.
        stride: tokens that two windows of a long context share; 64 by default, or a quarter of the maximal length.
        threshold: "no answer" is given where it is better than the best span by more than this; None: never.
    """

    model_class = AutoModelForQuestionAnswering
    adapter_type = "QUESTION_ANS"
    job = "questions"
    fields = {"question": "question_field", "context": "context_field", "answers": "answers_field"}
    per_token = True
    calibrates = True

    question_field: str | None = None
    context_field: str | None = None
    answers_field: str | None = None
    stride: int | None = None
    threshold: float | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("f1", "exact_match")

    def learn_labels(self, train: Records) -> None:
        if not any(question.answers for question in self.read(train).examples):
            raise InputError(f"{train.path}: no question has an answer, so there is nothing to learn")

    def read(self, records: Records, labelled: bool = True) -> Split[Question]:
        if not labelled:
            return Split(records, [Question(record["question"], record["context"]) for record in records])
        return Split(records, read_questions(records))

    def keys(self, split: Split[Question]) -> list[Hashable]:
        return [(example.context, example.question.casefold()) for example in split.examples]

    def carving_keys(self, split: Split[Question]) -> list[Hashable]:
        return [example.context for example in split.examples]

    def prepare(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        separate_pairs(tokenizer)
        trim_offsets(tokenizer)
        self.stride = self._resolve_stride(max_length)

    def _resolve_stride(self, max_length: int) -> int:
        return min(64, max_length // 4) if self.stride is None else self.stride

    def encode(
        self,
        split: Split[Question],
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
    ) -> None:
        stride = self._resolve_stride(max_length)
        split.rows, split.windows = encode_questions(tokenizer, model, split.examples, max_length, stride)

    def add_labels(self, split: Split[Question]) -> None:
        for row, label in zip(split.rows, span_columns(split.rows, split.windows, split.examples)):
            row["labels"] = label

    def loss(self, train: Split[Question], smoothing: float = 0.0) -> LossFunction:
        return span_loss(smoothing)

    def soft_outputs(self, outputs: Any) -> torch.Tensor:
        """Return start and end logits, whose classes are the positions `(batch, 2, length)`."""
        return torch.stack([outputs["start_logits"], outputs["end_logits"]], 1).float()

    def soft_shape(self, row: Mapping[str, Any]) -> tuple[int, int | None]:
        return 2, len(row["input_ids"])

    def select(self, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return start and end logits `(batch, length, 2)`."""
        return torch.stack([outputs[0], outputs[1]], -1).float()

    def find_answers(self, outputs: Outputs, split: Split[Question], best: int = 20) -> list[SpanAnswer]:
        """Return the best spans of each question."""
        return find_answers(outputs, split.windows, [question.context for question in split.examples], best)

    def calibrate(self, outputs: Outputs, validation: Split[Question]) -> None:
        """Choose the threshold for "no answer"."""
        self.threshold = choose_threshold(self.find_answers(outputs, validation), validation.examples)

    def decide(self, outputs: Outputs, split: Split[Question]) -> list[str]:
        return [answer.text(self.threshold) for answer in self.find_answers(outputs, split)]

    def figures(self, predictions: Any, split: Split[Question]) -> dict[str, float]:
        return self._percent(score_answers(predictions, split.examples))

    def _percent(self, scores: np.ndarray) -> dict[str, float]:
        return dict(zip(self.metrics, (100 * scores.mean(0)).tolist()))

    def estimates(self, predictions: Any, split: Split[Question]) -> dict[str, Estimate]:
        """Return the metrics in percent with intervals, and the F1 of questions with and without an answer."""
        scores = score_answers(predictions, split.examples)
        estimates = bootstrap(self._percent, scores)
        answerable = np.array([bool(question.answers) for question in split.examples])
        if not answerable.all():
            for name, rows in (("answerable", answerable), ("unanswerable", ~answerable)):
                if rows.any():
                    estimates[f"f1 of {name}"] = bootstrap(self._percent, scores[rows])["f1"]
        return estimates

    def baselines(
        self, train: Split[Question], split: Split[Question], seed: int = 0
    ) -> dict[str, dict[str, Estimate]]:
        """Return estimates of [`answer_by_rules`]."""
        answers = answer_by_rules(split.examples, train.examples, seed)
        return {name: self.estimates(texts, split) for name, texts in answers.items()}

    def output_fields(self, outputs: Outputs, split: Split[Question], top: int) -> list[dict[str, Any]]:
        fields = []
        for answer in self.find_answers(outputs, split, max(top, 20)):
            scores = answer.probabilities()
            alternatives = [
                {"text": span.text, "start": span.start, "end": span.end, "score": score}
                for span, score in zip(answer.spans[:top], scores)
            ]
            text = answer.text(self.threshold)
            score = scores[0] if text else 1.0 - sum(scores)
            fields.append({"predicted_answer": text, "predicted_score": score, "predicted_answers": alternatives})
        return fields

    def describe_split(self, split: Split[Question]) -> str:
        questions = len(split.examples)
        unanswered = sum(not question.answers for question in split.examples)
        without = f", {unanswered:,} of them without an answer" if unanswered else ""
        return f"{questions:,} questions in {len(split.rows):,} windows{without}"

    def describe_example(self, tokenizer: PreTrainedTokenizerBase, train: Split[Question]) -> str:
        example = next(question for question in train.examples if question.answers)
        return f"{example.question} → {example.answers[0]}"

    def record_fields(self) -> dict[str, Any]:
        return {"stride": self.stride}

    def add_details(
        self, record: RunRecord, name: str, outputs: Outputs, split: Split[Question], folder: Path
    ) -> Iterable[str]:
        """Add the threshold, and return the best spans of the first question."""
        record["no_answer_threshold"] = self.threshold
        first = self.find_answers(outputs, split)[0]
        spans = [f"{span.text} ({share:.0%})" for span, share in zip(first.spans[:3], first.probabilities())]
        return [f"{split.examples[0].question} → {', '.join(spans)}"]


def score_answers(answers: Sequence[str], questions: Sequence[Question]) -> np.ndarray:
    """Return token F1 and exact match `(questions, 2)` from 0 to 1, each against the most similar right answer."""
    scores = np.zeros((len(questions), 2))
    for row, answer, question in zip(scores, answers, questions):
        if question.answers:
            row[:] = [
                max(score(answer, reference) for reference in question.answers) for score in (token_f1, exact_match)
            ]
        else:
            row[:] = float(not answer)
    return scores


def choose_threshold(answers: Sequence[SpanAnswer], questions: Sequence[Question]) -> float | None:
    """Return the threshold for "no answer" with the highest F1; None if all questions have an answer."""
    if all(question.answers for question in questions):
        return None
    answered = score_answers([answer.text() for answer in answers], questions)[:, 0]
    unanswered = score_answers([""] * len(answers), questions)[:, 0]
    nulls = np.array([answer.null for answer in answers])
    order = np.argsort(nulls, kind="stable")
    # Entry n: the F1 summed over all questions if the n with the lowest preference for "no answer" are answered.
    totals = np.concatenate([[0.0], np.cumsum(answered[order])])
    totals += np.append(np.cumsum(unanswered[order][::-1])[::-1], 0.0)
    # Questions of equal preference, as one asked twice, are on the same side of any threshold.
    is_possible = np.concatenate([[True], np.diff(nulls[order]) > 0, [True]])
    n = int(np.where(is_possible, totals, -1.0).argmax())
    return float(nulls[order[n - 1]]) if n else float(nulls.min()) - 1.0


def answer_by_rules(questions: Sequence[Question], train: Sequence[Question], seed: int = 0) -> dict[str, list[str]]:
    """
    Answer questions by simple rules: one to three words drawn anywhere; the sentence that shares most words with the
    question; the words of this sentence that are not in the question, from the first capitalised word or number on, as
    many as answers have by the median; and no answer at all if some training questions have none.
    """
    draw = random.Random(seed)
    lengths = sorted(len(_WORD.findall(question.answers[0])) for question in train if question.answers)
    median_length = max(1, lengths[len(lengths) // 2]) if lengths else 1
    answers: dict[str, list[str]] = {"random words": [], "best sentence": [], "best sentence's new words": []}
    for question in questions:
        words = list(_WORD.finditer(question.context))
        first = draw.randrange(len(words)) if words else 0
        answers["random words"].append(_covered_text(question.context, words[first : first + draw.randint(1, 3)]))
        question_words = set(normalize(question.question))
        sentences = [sentence.strip() for sentence in split_sentences(question.context, r"\n\s*\n")] or [""]
        sentence = max(sentences, key=lambda text: len(question_words & set(normalize(text))))
        answers["best sentence"].append(sentence)
        words = list(_WORD.finditer(sentence))
        new_words = [n for n, word in enumerate(words) if not question_words & set(normalize(word[0]))] or [0]
        names = [n for n in new_words if words and (words[n][0][0].isupper() or words[n][0][0].isdigit())] or new_words
        answer = _covered_text(sentence, words[names[0] : names[0] + median_length])
        answers["best sentence's new words"].append(answer)
    if not all(question.answers for question in train):
        answers["no answer"] = [""] * len(questions)
    return answers


def _covered_text(text: str, words: Sequence[re.Match[str]]) -> str:
    return text[words[0].start() : words[-1].end()] if words else ""
