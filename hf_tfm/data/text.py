"""Rules for sentences and words of any script, once for everything that splits texts."""

import itertools
import re
from collections.abc import Iterator
from unicodedata import category


# Marks that end a sentence before a space, those of scripts without spaces, and marks that may close a sentence.
_ENDS_BEFORE_SPACE = ".!?؟۔"
_ENDS_WITHOUT_SPACE = "。！？।॥"
_CLOSING = "\"'”’»)]」』）"

# Regular expression of the end of a sentence with the spaces behind it.
SENTENCE_END = (
    rf"[{_ENDS_BEFORE_SPACE}…]+[{re.escape(_CLOSING)}]*\s+|[{_ENDS_WITHOUT_SPACE}]+[{re.escape(_CLOSING)}]*\s*"
)

_WORDS_AND_MARKS = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
_JOINERS = "\u200c\u200d"  # stand inside Persian and Indic words

# First bytes of UTF-8 of the characters of scripts without spaces. They are bytes so that a byte-level token that holds
# the beginning of a character is recognised too; 0xE0, 0xE1, 0xEF and 0xF0 alone begin characters of other scripts.
_UNSPACED = re.compile(
    rb"\xe0[\xb8-\xbb]"  # Thai, Lao
    rb"|\xe1(?:[\x80\x81\x9e\x9f]|\x82[\x80-\x9f])"  # Burmese, Khmer
    rb"|\xe3(?![\x84-\x86])|[\xe4-\xe9]"  # kana and ideographs, without the Korean letters among them
    rb"|\xef(?:[\xa4-\xab]|\xbd[\xa6-\xbf]|\xbe[\x80-\x9f])"  # compatibility ideographs, half-width kana
    rb"|\xf0[\xa0-\xbf]"  # rare ideographs
)


def sentence_ends(text: str, paragraph_break: str = r"\n+") -> list[int]:
    """
    Returns where sentences end, with the spaces behind them, in characters.

    Args:
        paragraph_break: Regular expression of what ends a sentence too.
    """
    return [match.end() for match in re.finditer(rf"{SENTENCE_END}|{paragraph_break}", text)]


def split_sentences(text: str, paragraph_break: str = r"\n+") -> list[str]:
    """Returns the sentences of a text with the spaces behind them, as [`sentence_ends`]; joined they are the text."""
    ends = [0, *sentence_ends(text, paragraph_break), len(text)]
    return [text[start:end] for start, end in itertools.pairwise(ends) if start < end]


def ends_sentence(token: str) -> bool:
    """Whether a sentence ends with this token's text, perhaps before a closing quote or bracket."""
    last = token.rstrip(_CLOSING + "\n")[-1:]
    return "\n" in token or bool(last) and last in _ENDS_BEFORE_SPACE + _ENDS_WITHOUT_SPACE


def is_unspaced(text: str | bytes) -> bool:
    """Whether a text, or its bytes in UTF-8, begins with a character of a script without spaces (Chinese, Thai, …)."""
    if isinstance(text, bytes):
        return bool(_UNSPACED.match(text))
    return bool(_UNSPACED.match(text[:1].encode()))


def begins_unspaced_word(character: str) -> bool:
    """Whether a character is a word's first one in a script without spaces: no mark and no lengthening sign."""
    return is_unspaced(character) and category(character) not in ("Mn", "Mc", "Lm")


def split_words(text: str) -> list[str]:
    """
    Returns the words and single punctuation marks of a text, and the single characters of scripts without spaces;
    accents, vowel signs and joiners stay in their word.
    """
    return [text[start:end] for start, end in find_words(text)]


def find_words(text: str) -> list[tuple[int, int]]:
    """Returns the first character of each word of [`split_words`] and the one behind it."""
    words: list[tuple[int, int]] = []
    end, continues = -1, False
    for match in _WORDS_AND_MARKS.finditer(text):
        is_sign = category(match[0][0]).startswith("M") or match[0] in _JOINERS
        if words and match.start() == end and (is_sign or (continues and match[0][0].isalnum())):
            words[-1] = (words[-1][0], match.end())
        else:
            words.append(match.span())
        end, continues = match.end(), is_sign and text[words[-1][0]].isalnum()
    return words if text.isascii() else [part for word in words for part in _split_unspaced(text, *word)]


def _split_unspaced(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    for place in range(start + 1, end):
        leaves_script = is_unspaced(text[place - 1]) and not is_unspaced(text[place]) and text[place].isalnum()
        if begins_unspaced_word(text[place]) or leaves_script:
            yield start, place
            start = place
    yield start, end
