"""Near duplicates: texts that share most of their runs of words, whatever their case and marks."""

import random

import pytest

from hf_tfm.audit.records.duplicates import find_near_duplicates


def words(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices("abcdefgh", k=5)) for _ in range(count)]


@pytest.mark.parametrize("changed, near", [(0, True), (2, True), (60, False), (100, False)])
def test_texts_with_few_other_words_are_near(changed, near):
    pairs = []
    for seed in range(10):
        text = words(200, seed)
        other = [*text[: 200 - changed], *words(changed, seed + 1000)]
        pairs += find_near_duplicates([" ".join(text), " ".join(words(50, seed + 2000)), " ".join(other)])
    assert pairs == [(2, 0)] * (10 if near else 0)


def test_case_and_marks_do_not_count():
    text = " ".join(words(50, 1))
    assert find_near_duplicates([text, "  " + text.upper().replace(" ", ", ") + "!"]) == [(1, 0)]


def test_texts_of_few_words_are_left_out():
    assert find_near_duplicates(["", "a", "too short", "too short", "", "…"]) == []


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


def test_many_variants_of_a_text_are_compared_with_its_first():
    text = " ".join(words(100, 1))
    assert find_near_duplicates([f"{text} {number}" for number in range(50)]) == [
        (number, 0) for number in range(1, 50)
    ]
