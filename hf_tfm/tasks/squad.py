"""Questions in the shape of SQuAD (Rajpurkar et al. 2016): how records have them, and scores of one answer."""

import re
import string
from collections import Counter
from dataclasses import dataclass

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


def read_questions(records: Records, skip: bool = False) -> tuple[Records, list[Question]]:
    """
    Read questions of records with `question`, `context` and `answers`: `{"text": […], "answer_start": […]}`, both empty
    where the context has no answer. An answer without a start is searched in the context.

    Args:
        skip: leave out records with an answer that is not at its start, instead of raising.

    Returns: the records that are left, and their questions.

    Raises:
        InputError: an answer is not at its start.
    """
    questions, numbers = [], []
    for number, (record, place) in enumerate(zip(records, records.places)):
        context, answers = record["context"], record["answers"]["text"]
        starts = record["answers"]["answer_start"]
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
        questions.append(Question(record["question"], context, tuple(answers), start))
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
