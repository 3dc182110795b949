"""Ranking texts for a question: by nearest vectors (exact), by words (BM25), or by a fusion of both rankings."""

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


_VECTORS_AT_ONCE, _QUERIES_AT_ONCE = 1 << 16, 64
_WORD = re.compile(r"\w+")


class Hit(NamedTuple):
    """The number of a text and its score; a higher score is a better match."""

    number: int
    score: float


def nearest_vectors(vectors: np.ndarray, queries: np.ndarray, k: int) -> list[list[Hit]]:
    """
    Return the `k` rows of `vectors` with the highest dot product with each query, exactly; ties go to the first.

    Args:
        vectors: (texts, width).
        queries: (queries, width).
    """
    k = min(k, len(vectors))
    hits: list[list[Hit]] = [[] for _ in queries]
    for start in range(0, len(vectors), _VECTORS_AT_ONCE):
        part = vectors[start : start + _VECTORS_AT_ONCE]
        for first in range(0, len(queries), _QUERIES_AT_ONCE):
            for query, scores in enumerate(queries[first : first + _QUERIES_AT_ONCE] @ part.T, first):
                hits[query] += [Hit(start + hit.number, hit.score) for hit in best_scores(scores, k)]
    return [sorted(ranking, key=lambda hit: (-hit.score, hit.number))[:k] for ranking in hits]


def best_scores(scores: np.ndarray, k: int) -> list[Hit]:
    """Return the `k` highest of the scores (texts,), the highest first; ties go to the first."""
    candidates = np.arange(len(scores))
    if k < len(scores):
        candidates = np.flatnonzero(scores >= -np.partition(-scores, k - 1)[k - 1])
    order = candidates[np.argsort(-scores[candidates], kind="stable")][:k]
    return [Hit(int(number), float(scores[number])) for number in order]


class WordIndex:
    """
    BM25 over the words of texts (Robertson & Zaragoza 2009, with the idf of Lucene), computed by bm25s.
    """

    def __init__(self, texts: Sequence[str]):
        from bm25s import BM25  # imports scipy

        self.num_texts = len(texts)
        self.vocabulary: dict[str, int] = {}
        numbers = [
            [self.vocabulary.setdefault(word, len(self.vocabulary)) for word in split_words(text)] for text in texts
        ]
        self._bm25 = BM25(k1=1.2, b=0.75, method="atire", idf_method="lucene", dtype="float64")
        if self.vocabulary:
            self._bm25.index((numbers, dict(self.vocabulary)), show_progress=False)

    def scores(self, question: str) -> np.ndarray:
        """Return the score of every text (texts,); a word that the question has twice counts twice."""
        words = [self.vocabulary[word] for word in split_words(question) if word in self.vocabulary]
        return self._bm25.get_scores_from_ids(words) if words else np.zeros(self.num_texts)

    def search(self, questions: Sequence[str], k: int) -> list[list[Hit]]:
        """Return the `k` texts with the highest score for each question, the best first."""
        return [best_scores(self.scores(question), k) for question in questions]


def split_words(text: str) -> list[str]:
    """Return the words of a text, without case, as BM25 compares them."""
    return _WORD.findall(text.casefold())


def fuse_rankings(*rankings: Sequence[Hit], k: int, smoothing: int = 60) -> list[Hit]:
    """Return one ranking by the sums of `1 / (smoothing + rank)` (reciprocal rank fusion, Cormack et al. 2009)."""
    sums: dict[int, float] = defaultdict(float)
    for ranking in rankings:
        for rank, hit in enumerate(ranking, 1):
            sums[hit.number] += 1 / (smoothing + rank)
    return [Hit(number, score) for number, score in sorted(sums.items(), key=lambda item: (-item[1], item[0]))[:k]]
