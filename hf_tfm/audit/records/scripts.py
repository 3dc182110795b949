"""Scripts of texts, and how many tokens a tokenizer takes for their letters."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from ..report import Report
from .subject import DataSubject


_MOST_TEXTS, _MOST_CHARACTERS = 500, 1_000
_SHARE = 0.01  # of the letters of a script that is told
# First words of names of letters that belong to no script, or repeat those of another.
_NO_SCRIPT = frozenset(
    "COMBINING MODIFIER MATHEMATICAL FULLWIDTH HALFWIDTH FEMININE MASCULINE MICRO KELVIN ANGSTROM DOUBLE-STRUCK SCRIPT"
    " CIRCLED SUPERSCRIPT PARENTHESIZED SQUARED OHM EULER BLACK-LETTER TURNED INFORMATION".split()
)
# A sign of these scripts is a word or a syllable.
_SYLLABLES = frozenset("CJK HIRAGANA KATAKANA HANGUL YI ETHIOPIC".split())
# Tokens for a letter or for a sign: tokenizers that know the script take at most half as many (GPT-2 for Russian 1.0,
# for Chinese 2.2; multilingual tokenizers 0.35 and 0.8).
_MANY, _MANY_OF_SYLLABLES = 0.85, 1.6
_ENGLISH = (
    "Every tokenizer knows some script well, and this sentence measures how many tokens it takes for the letters of "
    "common English words when nothing in the texts is better known."
)


@lru_cache(maxsize=1 << 16)
def script_of(character: str) -> str | None:
    """Returns the script of a letter or a vowel sign by its name in Unicode (LATIN, CJK); None of other characters."""
    if unicodedata.category(character)[0] not in "LM":
        return None
    script = unicodedata.name(character, "").partition(" ")[0]
    return None if script in _NO_SCRIPT or not script else script


def check_scripts(subject: DataSubject, tokenizer: PreTrainedTokenizerBase | None, report: Report) -> None:
    """Tell the scripts of the texts, and report those that the tokenizer cuts into bytes."""
    texts = _sample_texts(subject)
    letters = count_letters(texts)
    total = sum(letters.values())
    if not total:
        return
    shares = {script: count / total for script, count in letters.most_common()}
    report.facts["scripts"] = ", ".join(
        f"{script.capitalize()} {share:.1%}" for script, share in shares.items() if share >= _SHARE / 10
    )
    if tokenizer is None:
        return
    if not tokenizer.is_fast:
        report.cannot_see("tokens by script: the tokenizer is a slow one, which does not tell where tokens stand")
        return
    tokens = count_tokens(tokenizer, texts)
    fertility = {script: tokens[script] / letters[script] for script, share in shares.items() if share >= _SHARE}
    report.facts["tokens per letter"] = ", ".join(f"{name.capitalize()} {rate:.2f}" for name, rate in fertility.items())
    reference = min(
        count_tokens(tokenizer, [_ENGLISH])["LATIN"] / count_letters([_ENGLISH])["LATIN"],
        *(rate * _MANY / _limit(script) for script, rate in fertility.items()),
    )
    if reference >= _MANY:
        return  # tokens are letters or bytes on purpose, in every script
    for script, rate in fertility.items():
        if rate >= _limit(script) and rate * _MANY / _limit(script) >= 2 * reference:
            report.add(
                "P609",
                f"{rate:.2f} tokens for a letter of the script {script.capitalize()}, which {shares[script]:.0%} of "
                f"the letters are; scripts that the tokenizer knows take {reference:.2f}",
            )


def _limit(script: str) -> float:
    return _MANY_OF_SYLLABLES if script in _SYLLABLES else _MANY


def _sample_texts(subject: DataSubject) -> list[str]:
    """The beginnings of texts, evenly over all splits."""
    step = max(1, sum(map(len, subject.splits.values())) // _MOST_TEXTS)
    return [
        subject.whole(record)[:_MOST_CHARACTERS] for records in subject.splits.values() for record in records[::step]
    ]


def count_letters(texts: Iterable[str]) -> Counter[str]:
    """Returns the number of letters of each script."""
    characters: Counter[str] = Counter()
    for text in texts:
        characters.update(text)
    letters: Counter[str] = Counter()
    for character, count in characters.items():
        if script := script_of(character):
            letters[script] += count
    return letters


def count_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Counter[str]:
    """Returns the number of tokens whose first letter is of each script; a token of a part of a letter counts."""
    counts: Counter[str] = Counter()
    encoded = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    for text, offsets in zip(texts, encoded["offset_mapping"]):
        for start, end in offsets:
            script = next((script for character in text[start:end] if (script := script_of(character))), None)
            if script:
                counts[script] += 1
    return counts
