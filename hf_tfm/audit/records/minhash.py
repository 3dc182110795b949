"""
MinHash signatures (Broder, 1997) of many texts at once, by NumPy.

Libraries such as datasketch hash shingles one by one in Python, which takes minutes for 100,000 conversations. A
signature consists of the smallest values of random affine functions of 32-bit hashes.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np


SHINGLE = 5  # words
PERMUTATIONS = 64
MOST_WORDS = 500  # of a text
# Texts of fewer words differ in most shingles as soon as one word differs, or are equal by chance.
FEWEST_WORDS = 12
_CHUNK = 250_000  # characters; NumPy's arrays of so many fit into a cache
_LONGEST_WORD = 64
# Thai and Lao, Burmese, Khmer, kana, ideographs: scripts without blanks, of which each character is taken for a word.
_UNSPACED = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF))
_TABLE = 0x20000  # code points; above are rare ideographs
_SEPARATOR, _LETTER, _UNSPACED_LETTER = 0, 1, 2
# Fibonacci hashing: an odd multiplier of 64 bits carries all bits of a word into the upper half.
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def sign_texts(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """
    Returns the numbers of the texts that have at least `FEWEST_WORDS` words, shape (rows,), and their signatures over
    runs of `SHINGLE` words without case and marks, shape (rows, `PERMUTATIONS`).
    """
    draw = np.random.default_rng(1)
    factors = draw.integers(0, 1 << 32, PERMUTATIONS, dtype=np.uint32) | np.uint32(1)
    addends = draw.integers(0, 1 << 32, PERMUTATIONS, dtype=np.uint32)
    numbers, signatures = [], []
    for first, chunk in _chunks(texts):
        hashes, owners = _hash_shingles(chunk)
        starts = np.flatnonzero(np.diff(owners, prepend=-1))
        rows = [np.minimum.reduceat(hashes * factor + addend, starts) for factor, addend in zip(factors, addends)]
        if len(starts):
            numbers.append(owners[starts] + first)
            signatures.append(np.stack(rows, axis=1))
    if not numbers:
        return np.zeros(0, dtype=np.int64), np.zeros((0, PERMUTATIONS), dtype=np.uint32)
    return np.concatenate(numbers), np.concatenate(signatures)


def _chunks(texts: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Yields the number of the first of some texts, and these texts."""
    first, size = 0, 0
    for number, text in enumerate(texts):
        size += len(text)
        if size > _CHUNK:
            yield first, list(texts[first : number + 1])
            first, size = number + 1, 0
    if first < len(texts):
        yield first, list(texts[first:])


def _hash_shingles(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns a hash of 32 bits for each run of words, and the number of its text."""
    words, owners = _hash_words(texts)
    counts = np.bincount(owners, minlength=len(texts))
    places = np.arange(len(words)) - (np.cumsum(counts) - counts)[owners]  # of words in their text
    enough = (places < MOST_WORDS) & (counts >= FEWEST_WORDS)[owners]
    words, owners = words[enough], owners[enough]
    count = max(len(words) - SHINGLE + 1, 0)
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(SHINGLE):
        hashes = (hashes ^ words[offset : offset + count]) * _MULTIPLIER
        hashes ^= hashes >> np.uint64(29)
    is_one_text = owners[:count] == owners[len(owners) - count :]
    return (hashes >> np.uint64(32)).astype(np.uint32)[is_one_text], owners[:count][is_one_text]


def _hash_words(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns a hash of 64 bits for each word, and the number of its text."""
    joined = "\0".join(texts).encode("utf-32-le", "surrogatepass")
    codes = np.frombuffer(joined, dtype=np.uint32)
    kinds, lower = _tables()
    known = np.minimum(codes, _TABLE - 1)
    kind = kinds[known]
    previous = np.concatenate([[_SEPARATOR], kind[:-1]])
    begins = (kind == _UNSPACED_LETTER) | ((kind == _LETTER) & (previous != _LETTER))
    starts = np.flatnonzero(begins)
    if not len(starts):
        return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
    place = np.arange(len(codes)) - starts[np.maximum(np.cumsum(begins) - 1, 0)]
    powers = np.cumprod(np.full(_LONGEST_WORD, _MULTIPLIER))
    letters = np.where(codes < _TABLE, lower[known], codes).astype(np.uint64) + np.uint64(1)
    values = np.where(kind == _SEPARATOR, np.uint64(0), letters * powers[np.minimum(place, _LONGEST_WORD - 1)])
    ends = np.cumsum([len(text) + 1 for text in texts])
    return np.add.reduceat(values, starts), np.searchsorted(ends, starts, side="right")


@cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """The kind of each code point, and its small letter."""
    characters = [chr(code) for code in range(_TABLE)]
    kinds = np.array([char.isalnum() or unicodedata.category(char)[0] == "M" for char in characters], dtype=np.uint8)
    lower = np.array([ord(small) if len(small := char.lower()) == 1 else ord(char) for char in characters])
    for start, end in _UNSPACED:
        kinds[start : end + 1] *= _UNSPACED_LETTER
    kinds[-1] = _UNSPACED_LETTER  # stands for all code points above
    return kinds, lower.astype(np.uint32)
