"""Questions in the shape of SQuAD (Rajpurkar et al. 2016): how records have them, and scores of one answer."""

import json
import re
import string
from collections import Counter
from dataclasses import dataclass
from typing import Any

from ..core.errors import InputError
from ..data.records import Records


_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True)
class Question:
    """
    A question about a context.

    Attributes:
        answers: right answers, of which the first one is trained; none if the context has no answer.
        start: first character of the first answer in the context.
    """

    question: str
    context: str
    answers: tuple[str, ...] = ()
    start: int = 0

    @property
    def end(self) -> int:
        """The character behind the first answer."""
        return self.start + len(self.answers[0])


def read_questions(
    records: Records, fields: tuple[str, str, str], skip: bool = False
) -> tuple[Records, list[Question]]:
    """
    Read questions in SQuAD's shape: `answers` is `{"text": […], "answer_start": […]}`, both empty where the context has
    no answer. An answer without a start is searched in the context. In CSV, `answers` may be JSON.

    Args:
        fields: the fields of a record that have its question, its context and its answers.
        skip: leave out records with an answer that is not at its start, instead of raising.

    Returns: the records that are left, and their questions.

    Raises:
        InputError: a field is missing or of the wrong kind, or an answer is not at its start.
    """
    question_field, context_field, answers_field = fields
    questions, numbers = [], []
    columns = zip(
        records.texts(question_field, "question_field"),
        records.texts(context_field, "context_field"),
        records.values(answers_field, "answers_field"),
        records.places,
    )
    for number, (question, context, value, place) in enumerate(columns):
        answers, starts = _read_answers(value, answers_field, place)
        problem = _find_problem(answers, starts, context)
        if problem and not skip:
            raise InputError(
                f"{place}: {problem}; mend or drop this record, or leave out all such with --skip_bad_answers"
            )
        if problem:
            continue
        start = 0
        if answers:
            start = context.find(answers[0]) if starts[0] is None else starts[0]
        questions.append(Question(question, context, tuple(answers), start))
        numbers.append(number)
    if not questions:
        raise InputError(f"{records.path}: no record has its answer in its context")
    return records.subset(numbers), questions


def _find_problem(answers: list[str], starts: list[int | None], context: str) -> str | None:
    """The last answer that is not where it should be."""
    problem = None
    for answer, start in zip(answers, starts):
        if start is not None and context[start : start + len(answer)] == answer:
            continue
        position = context.find(answer)
        if position < 0:
            problem = f"answer {answer!r} is not in its context"
        elif start is not None:
            problem = f"answer {answer!r} is not at {start} in its context, but at {position}"
    return problem


def unfold(records: Records) -> Records:
    """Return a record for each question of SQuAD's own files (`data`, `paragraphs`, `qas`); others as they are."""
    if not any("paragraphs" in part for record in records for part in _parts(record, "data")):
        return records
    flat, places = [], []
    for record, place in zip(records, records.places):
        for title in _parts(record, "data"):
            for paragraph in _parts(title, "paragraphs"):
                for question in _parts(paragraph, "qas"):
                    flat.append({"context": paragraph.get("context"), **question})
                    places.append(f"{place}, question {question.get('id', len(flat))}")
    return Records(flat, places, records.path, records.more_paths)


def _parts(record: dict[str, Any], field: str) -> list[dict[str, Any]]:
    parts = record.get(field)
    return [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []


def _read_answers(value: Any, field: str, place: str) -> tuple[list[str], list[int | None]]:
    """Texts and starts of the answers of one record, in any of the forms that data sets have."""
    if isinstance(value, str):
        if value.lstrip().startswith("{"):
            try:
                value = json.loads(value)
            except ValueError as error:
                raise InputError(f"{place}: field {field!r} is broken JSON ({error}); mend or drop it") from None
        else:
            value = {"text": [value] if value.strip() else []}
    if isinstance(value, list):  # as in SQuAD's own files, an answer an entry
        if not all(isinstance(answer, str | dict) for answer in value):
            raise InputError(f"{place}: field {field!r} must hold answers' texts; mend or drop this record")
        answers = [answer if isinstance(answer, dict) else {"text": answer} for answer in value]
        value = {name: [answer.get(name) for answer in answers] for name in ("text", "answer_start")}
    if not isinstance(value, dict) or "text" not in value:
        raise InputError(f"{place}: field {field!r} has no 'text'; it must be {{'text': […], 'answer_start': […]}}")
    texts = _as_list(value["text"])
    starts = _as_list(value.get("answer_start")) or [None] * len(texts)
    if len(texts) != len(starts):
        raise InputError(f"{place}: {len(texts)} answers but {len(starts)} starts in field {field!r}")
    for text, start in zip(texts, starts):
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"{place}: answer {text!r} in field {field!r} is no text; mend or drop this record")
        if start is not None and (not isinstance(start, int) or isinstance(start, bool) or start < 0):
            raise InputError(
                f"{place}: answer_start {start!r} in field {field!r} is no place in a text; mend or drop it"
            )
    return texts, starts


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def normalize(answer: str) -> list[str]:
    """Return the words of an answer in lower case, without punctuation and English articles."""
    return _ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split()


def exact_match(answer: str, reference: str) -> float:
    """Return 1.0 if both have the same normalized words in the same order, else 0.0."""
    return float(normalize(answer) == normalize(reference))


def token_f1(answer: str, reference: str) -> float:
    """Return the F1 of the normalized words that both have in common."""
    words, reference_words = normalize(answer), normalize(reference)
    common = (Counter(words) & Counter(reference_words)).total()
    return 2 * common / (len(words) + len(reference_words)) if common else 0.0
