"""Characters that nobody wrote: wrong encodings, control characters, invisible characters, remnants of HTML."""

import re
from collections.abc import Callable
from typing import NamedTuple

from ...data.records import Records
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


class Fault(NamedTuple):
    """A kind of characters that nobody wrote: its code and level, its name, and the function that finds an example."""

    code: str
    level: str
    name: str
    find: Callable[[str], str | None]


def _find_first(pattern: re.Pattern[str], text: str) -> str | None:
    match = pattern.search(text)
    return repr(match[0]) if match else None


def find_control(text: str) -> str | None:
    """Returns the first control character of a text."""
    return _find_first(_CONTROL, text)


def find_invisible(text: str) -> str | None:
    """Returns the first invisible character of a text."""
    return None if text.isascii() else _find_first(_INVISIBLE, text)


def find_html(text: str) -> str | None:
    """Returns the first entity or tag of HTML in a text."""
    return _find_first(_HTML, text) if "&" in text or "<" in text else None


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


_FAULTS = (
    Fault("P607", "warning", "characters of a wrong encoding", find_wrong_encoding),
    Fault("P608", "warning", "control characters", find_control),
    Fault("P608", "note", "invisible characters", find_invisible),
    Fault("P617", "note", "remnants of HTML", find_html),
)


def check_characters(subject: DataSubject, report: Report) -> None:
    """Report texts with characters of a wrong encoding, control and invisible characters, and remnants of HTML."""
    examples = {split: _find_examples(subject, records) for split, records in subject.splits.items()}
    for fault in _FAULTS:
        parts = [
            _describe_part(fault, split, records, examples[split][fault])
            for split, records in subject.splits.items()
            if examples[split][fault]
        ]
        add_parts(report, fault.code, parts)


def _find_examples(subject: DataSubject, records: Records) -> dict[Fault, dict[int, str]]:
    """Returns, for each fault, the first characters that show it, by the numbers of the records that have them."""
    examples: dict[Fault, dict[int, str]] = {fault: {} for fault in _FAULTS}
    for number, record in enumerate(records):
        text = subject.whole(record)
        for fault in _FAULTS:
            if example := fault.find(text):
                examples[fault][number] = example
    return examples


def _describe_part(fault: Fault, split: str, records: Records, examples: dict[int, str]) -> Part:
    listed = ", ".join(list(dict.fromkeys(examples.values()))[:4])
    return Part(
        "note" if len(examples) < _SHARE_OF_WARNING * len(records) else fault.level,
        f"{tell_share(len(examples), len(records))} of the {split} split contain {fault.name}: {listed}",
        list_places(records, list(examples)),
    )
