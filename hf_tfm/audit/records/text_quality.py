"""Characters that nobody wrote: wrong encodings, control characters, invisible characters, remnants of HTML."""

import re
from collections.abc import Callable

from ..report import Report
from .subject import DataSubject, Part, add_parts, list_places, tell_share


# Bytes behind the first byte of a character in UTF-8, as cp1252 and latin-1 show them.
_CONTINUATION = {bytes([byte]).decode("cp1252", "ignore"): byte for byte in range(0x80, 0xC0)}
_CONTINUATION = {shown: byte for shown, byte in _CONTINUATION.items() if shown} | {
    chr(byte): byte for byte in range(0x80, 0xC0)
}
_SIGNS = re.escape("".join(_CONTINUATION))
# Â and Ã with one sign behind them; â with two, as in â€™; the beginnings of other letters several times.
_LATIN = re.compile(rf"[ÂÃ][{_SIGNS}]")
_PUNCTUATION = re.compile(rf"â[{_SIGNS}]{{2}}|ï»¿|ï¿½")
_OTHER = re.compile(rf"(?:[Ä-ß][{_SIGNS}]){{2,}}|(?:[à-ï][{_SIGNS}]{{2}}){{2,}}|ð[{_SIGNS}]{{3}}")
_MAC = re.compile(r"‚Ä[ôúùòìîöÓ¶]|√[©®±∂ß†°•ºü¢§ª´]")
# Letters with accents stand alone or in twos; six of them are another alphabet read as latin-1.
_OTHER_ALPHABET = re.compile(r"[À-ÖØ-öø-ÿ]{6,}")
_WRONG = re.compile(r"[\ufffd\x80-\x84\x86-\x9f]")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f]")
# The soft hyphen, zero-width space and word joiner, marks of direction and of byte order. Joiners (U+200C, U+200D)
# belong to emoji and to Persian and Indic words.
_INVISIBLE = re.compile("[\u00ad\u200b\u2060\ufeff\u202a-\u202e\u2066-\u2069]")
_HTML = re.compile(r"&(?:amp|lt|gt|quot|nbsp|apos|#\d{2,5}|#x[0-9a-fA-F]{2,4});|<br ?/?>|</(?:p|div|span|li|td)>")
_SHARE_OF_WARNING = 0.001


def check_characters(subject: DataSubject, report: Report) -> None:
    """Report texts with characters of a wrong encoding, control and invisible characters, and remnants of HTML."""
    _report(subject, report, "P607", find_wrong_encoding, "hold characters of a wrong encoding")
    _report(subject, report, "P608", _find(_CONTROL), "hold control characters")
    _report(subject, report, "P608", _find(_INVISIBLE), "hold invisible characters", level="note")
    _report(subject, report, "P617", _find(_HTML), "hold remnants of HTML", level="note")


def _find(pattern: re.Pattern[str]) -> Callable[[str], str | None]:
    def find(text: str) -> str | None:
        match = pattern.search(text)
        return match[0] if match else None

    return find


def find_wrong_encoding(text: str) -> str | None:
    """
    Returns the first characters of a text that come from reading it with a wrong encoding, and what they stand for.

    These are U+FFFD, the control characters that cp1252 has as signs, and characters that are UTF-8 read as cp1252,
    latin-1 or Mac Roman (Ã© for é), or an 8-bit code of another alphabet read as these. Ã at the end of a word in
    capitals, as in MANHÃ, is none of them.
    """
    if text.isascii():
        return None
    for match in _LATIN.finditer(text):
        if meant := _decode(match[0]):
            neighbours = text[max(match.start() - 1, 0) : match.start()] + text[match.end() : match.end() + 1]
            if match[0][0] == "Â" or (meant.isalpha() and any(letter.islower() for letter in neighbours)):
                return f"{match[0]!r} for {meant!r}"
    for pattern in (_PUNCTUATION, _OTHER):
        for match in pattern.finditer(text):
            if meant := _decode(match[0]):
                return f"{match[0]!r} for {meant!r}"
    match = _MAC.search(text) or _OTHER_ALPHABET.search(text) or _WRONG.search(text)
    return repr(match[0]) if match else None


def _decode(shown: str) -> str | None:
    """Returns the text whose bytes in UTF-8 were shown as these characters."""
    try:
        return bytes(_CONTINUATION.get(sign, ord(sign)) for sign in shown).decode("utf-8")
    except (UnicodeDecodeError, ValueError):
        return None


def _report(
    subject: DataSubject,
    report: Report,
    code: str,
    find: Callable[[str], str | None],
    what: str,
    level: str = "warning",
) -> None:
    parts = []
    for split, records in subject.splits.items():
        examples: dict[int, str] = {}
        for number, record in enumerate(records):
            if example := find(subject.whole(record)):
                examples[number] = example
        if examples:
            signs = list(dict.fromkeys(example if "'" in example else repr(example) for example in examples.values()))
            is_rare = len(examples) < _SHARE_OF_WARNING * len(records)
            parts.append(
                Part(
                    "note" if is_rare else level,
                    f"{tell_share(len(examples), len(records))} of the {split} split {what}: {', '.join(signs[:4])}",
                    list_places(records, list(examples)),
                )
            )
    add_parts(report, code, parts)
