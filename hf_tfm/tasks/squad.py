"""Scores of one answer as SQuAD 1.1 counts them (Rajpurkar et al. 2016), from 0 to 1."""

import re
import string
from collections import Counter


_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


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
