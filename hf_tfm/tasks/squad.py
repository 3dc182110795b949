"""Questions in the shape of SQuAD (Rajpurkar et al. 2016): how records have them, and scores of one answer."""

import re
import string
from collections import Counter
from dataclasses import dataclass

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


def read_questions(records: Records) -> list[Question]:
    """Returns the questions of records that were read for the job `questions`; answers are at their starts."""
    questions = []
    for record in records:
        answers = record["answers"]
        start = answers["answer_start"][0] if answers["text"] else 0
        questions.append(Question(record["question"], record["context"], tuple(answers["text"]), start))
    return questions


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
