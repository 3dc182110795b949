"""
How much a classifier gains from contextual embeddings: bags of words, static and contextual vectors side by side.

The classifier is logistic regression for all three; the model that embeds the texts is not trained.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from ..core.errors import InputError
from ..core.statistics import Estimate, bootstrap, proportion
from ..data.records import Records
from ..tasks.labels import read_labels
from ..train.finetune import encode_texts
from .predict import Predictor


# Inverse regularisation strengths that are tried on the validation records.
_STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)


def compare_representations(predictor: Predictor, train: Records, test: Records) -> Iterator[tuple[str, Estimate]]:
    """
    Yield the accuracy of each representation by name, and the gains of contextual embeddings over the others.

    Args:
        predictor: embeds texts by the mean of the last hidden states.

    Raises:
        InputError: a record lacks a field, or there are too few training records.
    """
    names = read_labels(train, "single_label_classification")
    labels, expected = np.array(names.encode(train)), np.array(names.encode(test))
    texts, test_texts = (records.texts("text") for records in (train, test))
    representations: dict[str, Callable[[], tuple[Any, Any]]] = {
        "bag of words": lambda: bags_of_words(texts, test_texts),
        "static": lambda: standardize(*(static_embeddings(predictor, part) for part in (texts, test_texts))),
        "contextual": lambda: standardize(*(contextual_embeddings(predictor, part) for part in (train, test))),
    }
    majority = np.bincount(labels).argmax()
    yield "commonest label", proportion(int((expected == majority).sum()), len(expected))
    right = {}
    for name, represent in representations.items():
        right[name] = classify(*represent(), labels) == expected
        yield name, proportion(int(right[name].sum()), len(expected))
    for name in ("bag of words", "static"):
        gain = bootstrap(lambda a, b: {"gain": float(a.mean() - b.mean())}, right["contextual"], right[name])
        yield f"contextual − {name}", gain["gain"]


def bags_of_words(train: list[str], test: list[str]) -> tuple[Any, Any]:
    """Return tf-idf vectors over the words of the training texts, each of length 1."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b|[^\w\s]")
    return vectorizer.fit_transform(train), vectorizer.transform(test)


def static_embeddings(predictor: Predictor, texts: list[str]) -> np.ndarray:
    """Return the mean of each text's input embeddings, which do not depend on context, `(texts, hidden)`."""
    table = predictor.model.get_input_embeddings().weight.detach().float()
    special = set(predictor.tokenizer.all_special_ids)
    rows = encode_texts(predictor.tokenizer, predictor.max_length, texts)
    token_ids = [[token for token in row["input_ids"] if token not in special] for row in rows]
    return torch.stack([table[ids].mean(0) if ids else torch.zeros(table.shape[1]) for ids in token_ids]).numpy()


def contextual_embeddings(predictor: Predictor, records: Records) -> np.ndarray:
    """Return the mean of each text's last hidden states, `(texts, hidden)`."""
    return np.array([row["embedding"] for row in predictor(records)], dtype=np.float32)


def standardize(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale each feature to mean 0 and deviation 1 over the training texts."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train)
    return scaler.transform(train), scaler.transform(test)


def classify(train: Any, test: Any, labels: np.ndarray) -> np.ndarray:
    """
    Return the test texts' labels by logistic regression, its strength chosen on a tenth of the training texts.

    Raises:
        InputError: there are too few training texts.
    """
    from sklearn.linear_model import LogisticRegression

    def fit(features: Any, targets: np.ndarray, strength: float) -> LogisticRegression:
        return LogisticRegression(C=strength, max_iter=300, tol=1e-3).fit(features, targets)

    tenth = np.arange(train.shape[0]) % 10 == 0
    if len(np.unique(labels[~tenth])) < 2:
        raise InputError(f"{len(labels)} training records are too few: without a tenth to choose on one label is left")
    scores = [
        (fit(train[~tenth], labels[~tenth], strength).score(train[tenth], labels[tenth]), -strength)
        for strength in _STRENGTHS
    ]
    return fit(train, labels, -max(scores)[1]).predict(test)
