"""One rule for sentences and one for scripts without spaces, in every script."""

import pytest

from hf_tfm.data.text import (
    begins_unspaced_word,
    ends_sentence,
    find_words,
    is_unspaced,
    split_sentences,
    split_words,
)


@pytest.mark.parametrize(
    "sentences",
    [
        ["It rained. ", "He said: “Go!” ", "Why (again?) ", "No end"],
        ["Wait… ", "3.14 is no end. ", "Yes."],
        ["下雨了。", "他说：「走！」", "为什么？"],
        ["هل تمطر؟ ", "نعم."],
        ["یہ ایک جملہ ہے۔ ", "ہاں۔"],
        ["A title\n\n", "A paragraph. ", "Its end"],
    ],
)
def test_sentences_of_many_scripts(sentences):
    assert split_sentences("".join(sentences)) == sentences


def test_a_paragraph_break_is_chosen():
    text = "one line\nthe same sentence\n\nanother"
    assert split_sentences(text, r"\n\s*\n") == ["one line\nthe same sentence\n\n", "another"]
    assert split_sentences(text) == ["one line\n", "the same sentence\n\n", "another"]
    assert split_sentences("") == []


def test_tokens_that_end_a_sentence():
    assert all(map(ends_sentence, [".", '."', ".]", "。", "?)", "word.", "\n", "؟", "॥"]))
    assert not any(map(ends_sentence, ["", "word", ",", '"', "…", "("]))


def test_scripts_without_spaces():
    assert all(map(is_unspaced, ["中", "あ", "カ", "ｶ", "ไ", "ກ", "က", "ក", "𠀀"]))
    assert not any(map(is_unspaced, ["", "a", "é", "я", "한", "ا"]))
    assert is_unspaced("中".encode()[:2]) and not is_unspaced(b"\xe1")
    assert begins_unspaced_word("中") and not begins_unspaced_word("ー") and not begins_unspaced_word("ั")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rain, or (so-so)?", ["rain", ",", "or", "(", "so", "-", "so", ")", "?"]),
        ("हिन्दी cafe\u0301s می\u200cخواهم it's", ["हिन्दी", "cafe\u0301s", "می\u200cخواهم", "it's"]),
        ("2024年iPhone发布。", ["2024", "年", "iPhone", "发", "布", "。"]),
        ("ルーム ง่าย 한국어", ["ルー", "ム", "ง่", "า", "ย", "한국어"]),
        (" \n", []),
    ],
)
def test_words_are_pieces_of_the_text_without_blanks(text, words):
    assert split_words(text) == words == [text[start:end] for start, end in find_words(text)]
    assert "".join(words) == "".join(text.split())
