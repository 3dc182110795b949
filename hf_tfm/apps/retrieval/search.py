"""Finding texts: exactly the nearest vectors, the most words in common (BM25), or both rankings made one."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


_SCANNED, _QUERIES = 1 << 16, 64  # vectors that are compared at one time, with so many queries
_LARGE = 1 << 16  # from so many vectors on faiss is worth its import
_WORD = re.compile(r"\w+")


class Hit(NamedTuple):
    """A text's number, and how well it goes with the question (the higher the better)."""

    number: int
    score: float


def nearest(vectors: np.ndarray, queries: np.ndarray, k: int) -> list[list[Hit]]:
    """
    The `k` rows of `vectors` with the highest product with each query, exactly; of equal ones the first.

    Large arrays are left to faiss where it is installed (`pip install hf-tfm[search]`), which needs no index for it.
    """
    k = min(k, len(vectors))
    if len(vectors) >= _LARGE and (faiss := _faiss()) is not None:
        scores, numbers = faiss.knn(queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
        return [[Hit(int(n), float(s)) for n, s in zip(*row)] for row in zip(numbers, scores)]
    hits: list[list[Hit]] = [[] for _ in queries]
    for start in range(0, len(vectors), _SCANNED):
        part = vectors[start : start + _SCANNED]
        for first in range(0, len(queries), _QUERIES):
            for number, scores in enumerate(queries[first : first + _QUERIES] @ part.T, first):
                hits[number] += [Hit(start + hit.number, hit.score) for hit in best(scores, k)]
    return [sorted(several, key=lambda hit: (-hit.score, hit.number))[:k] for several in hits]


def best(scores: np.ndarray, k: int) -> list[Hit]:
    """The `k` highest of scores `(texts,)`, the highest first; of equal ones the first."""
    candidates = np.arange(len(scores))
    if k < len(scores):
        candidates = np.flatnonzero(scores >= -np.partition(-scores, k - 1)[k - 1])
    order = candidates[np.argsort(-scores[candidates], kind="stable")][:k]
    return [Hit(int(number), float(scores[number])) for number in order]


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        return None
    return faiss


class BM25:
    """
    Texts by the words that they share with a question (Robertson & Zaragoza 2009, the idf of Lucene).

    Args:
        texts: read once.
        k1, b: how soon a word said again stops counting, and how much long texts are discounted.
    """

    def __init__(self, texts: Sequence[str], k1: float = 1.2, b: float = 0.75):
        counts = [Counter(words(text)) for text in texts]
        lengths = np.array([count.total() for count in counts], np.float64)
        norms = k1 * (1 - b + b * lengths / max(lengths.mean(), 1e-12))
        places: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for number, count in enumerate(counts):
            for word, times in count.items():
                places[word].append((number, times))
        self.length = len(counts)
        self._postings = {}
        for word, several in places.items():
            numbers, times = np.array(several).T
            idf = math.log(1 + (len(counts) - len(several) + 0.5) / (len(several) + 0.5))
            self._postings[word] = numbers, idf * times * (k1 + 1) / (times + norms[numbers])

    def scores(self, question: str) -> np.ndarray:
        """Of all texts `(texts,)`; a word that is asked for twice counts twice."""
        scores = np.zeros(self.length)
        for word in words(question):
            if word in self._postings:
                numbers, weights = self._postings[word]
                scores[numbers] += weights
        return scores

    def search(self, questions: Sequence[str], k: int) -> list[list[Hit]]:
        """The `k` texts with the highest score for each question, the best first; those that share no word too."""
        return [best(self.scores(question), k) for question in questions]


def words(text: str) -> list[str]:
    """The words of a text as BM25 compares them."""
    return _WORD.findall(text.casefold())


def fuse(*rankings: Sequence[Hit], k: int, smoothing: int = 60) -> list[Hit]:
    """
    One ranking out of several by the sums of `1 / (smoothing + rank)` (Cormack et al. 2009, reciprocal rank fusion).
    """
    sums: dict[int, float] = defaultdict(float)
    for ranking in rankings:
        for rank, hit in enumerate(ranking, 1):
            sums[hit.number] += 1 / (smoothing + rank)
    return [Hit(number, score) for number, score in sorted(sums.items(), key=lambda item: (-item[1], item[0]))[:k]]
