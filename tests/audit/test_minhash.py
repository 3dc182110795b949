"""Signatures of many texts: they estimate the similarity of texts, and forget case and marks."""

import random

import numpy as np
import pytest

from hf_tfm.audit.records import minhash
from hf_tfm.audit.records.duplicates import find_near_duplicates


def words(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices("abcdefgh", k=5)) for _ in range(count)]


def similarity(one: list[str], other: list[str]) -> float:
    """The share of word 5-grams in common (Jaccard)."""
    first, second = ({tuple(text[start : start + 5]) for start in range(len(text) - 4)} for text in (one, other))
    return len(first & second) / len(first | second)


@pytest.mark.parametrize("changed", [0, 5, 30, 100])
def test_signatures_estimate_the_share_of_common_shingles(changed):
    errors = []
    for seed in range(20):
        one = words(200, seed)
        other = [*one[: 200 - changed], *words(changed, seed + 1000)]
        _, (first, second) = minhash.sign_texts([" ".join(one), " ".join(other)])
        errors.append((first == second).mean() - similarity(one, other))
    # 64 permutations: a standard error of at most 0.0625, and of 20 texts 0.014.
    assert abs(np.mean(errors)) < 0.05 and max(map(abs, errors)) < 0.25


def test_case_marks_and_neighbours_do_not_count(monkeypatch):
    text = " ".join(words(50, 1))
    _, (one, other) = minhash.sign_texts([text, "  " + text.upper().replace(" ", ", ") + "!"])
    assert (one == other).all()
    texts = [" ".join(words(40, seed)) for seed in range(30)]
    numbers, together = minhash.sign_texts(texts)
    monkeypatch.setattr(minhash, "_CHUNK", 500)
    other_numbers, chunked = minhash.sign_texts(texts)
    assert (numbers == other_numbers).all() and (together == chunked).all()


def test_texts_of_few_words_are_left_out():
    numbers, _ = minhash.sign_texts(["too short", " ".join(words(30, 1)), "", "…"])
    assert numbers.tolist() == [1]
    assert find_near_duplicates(["", "a"]) == []


@pytest.mark.parametrize(
    "text",
    [
        "汉字没有空格所以每个字都算作一个词而不是整句话",
        "ภาษาไทยไม่มีช่องว่างระหว่างคำในประโยค",
        "हिन्दी में शब्दों के बीच ख़ाली जगह होती है और मात्राएँ शब्द के भीतर रहती हैं",
    ],
)
def test_scripts_without_blanks_have_words(text):
    assert find_near_duplicates([text * 3, "x", text * 3 + text[0]]) == [(2, 0)]
    words_of_text = minhash._hash_words([text])[0]
    assert len(words_of_text) == (len(text.split()) if " " in text else len(text))


def test_many_variants_of_a_text_are_compared_with_its_first():
    text = " ".join(words(100, 1))
    assert find_near_duplicates([f"{text} {number}" for number in range(50)]) == [
        (number, 0) for number in range(1, 50)
    ]
