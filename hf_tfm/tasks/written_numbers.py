"""Numbers as people, JSON and LaTeX write them: which number an answer gives, and whether two are the same."""

import re
from fractions import Fraction
from typing import NamedTuple


# What LaTeX and typography write, and the same in plain text.
_PLAIN = (
    (re.compile(r"[−﹣－]"), "-"),  # U+2212, U+FE63, U+FF0D
    (re.compile(r"\\([$%])"), r"\1"),
    (re.compile(r"(?<=\d)(?:\{,\}|\\[,;!]|[\u00a0\u2009\u202f])(?=\d{3}(?!\d))"), ","),
    (re.compile(r"\\[dt]?frac\s*\{\s*(-?[\d.,]+)\s*\}\s*\{\s*([\d.,]+)\s*\}"), r"\1/\2"),
    (re.compile(r"(\d)/(\d+)/(?=\d)"), r"\1 / \2 / "),  # a date is no fraction
    (re.compile(r"\\(?:times|cdot)(?![a-z])|×|·"), "*"),
)
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?![\d,]*\d)|\d+)(?:\.\d+)?|(?<![\d.])\.\d+"
_NUMBER = re.compile(
    rf"(?:(?<![\w.)\]}}])(?P<sign>[-+]))?[$€£¥]?(?P<sign2>(?<=[$€£¥])-)?"
    rf"(?:(?:(?P<factor>{_DIGITS})\s*\*\s*)?10\^\{{?(?P<power>[-+]?\d{{1,3}})(?!\d)\}}?"
    rf"|(?P<mantissa>{_DIGITS})(?:[eE](?P<exponent>[-+]?\d{{1,3}})(?![\w.]*\d))?"
    rf"(?:/(?P<divisor>\d+(?:\.\d+)?)(?![\d/]))?)"
    rf"(?P<percent>\s?%)?"
)
_MARK = re.compile(r"####|\\boxed\s*\{")


class WrittenNumber(NamedTuple):
    """A number without its unit, and whether the unit is a percent sign."""

    value: Fraction
    percent: bool = False

    def is_same(self, other: "WrittenNumber | None") -> bool:
        """Return whether both are the same; 50% is 50 and is 0.5, where only one has the sign."""
        if other is None:
            return False
        if self.percent == other.percent:
            return self.value == other.value
        share, plain = (self, other) if self.percent else (other, self)
        return plain.value in (share.value, share.value / 100)


def find_numbers(text: str) -> list[WrittenNumber]:
    r"""
    Return the numbers in a text, in their order.

    Read are 42, -5 and −5 (U+2212), 1,234.5, .5, 1e-05, 2 × 10^5, 3/4, \frac{3}{4}, $3.50 and 50%. A minus between two
    numbers, as in 10-20, is no sign. A decimal comma is not read: 3,50 is two numbers.
    """
    for pattern, plain in _PLAIN:
        text = pattern.sub(plain, text)
    numbers = []
    for match in _NUMBER.finditer(text):
        part = match.groupdict()
        try:
            value = Fraction((part["mantissa"] or part["factor"] or "1").replace(",", ""))
            value = value * Fraction(10) ** int(part["exponent"] or part["power"] or 0) / Fraction(part["divisor"] or 1)
        except (ValueError, ZeroDivisionError):  # thousands of digits, or divided by 0
            continue
        negative = "-" in (part["sign"], part["sign2"])
        numbers.append(WrittenNumber(-value if negative else value, part["percent"] is not None))
    return numbers


def final_number(text: str) -> WrittenNumber | None:
    r"""
    Return the number that an answer gives; None if there is none.

    It is the number at the last mark, `#### 42` (as in GSM8K: the first number behind it) or `\boxed{42}`; what
    follows, such as "I checked it in 3 steps", does not count. Without a mark it is the last number of the text.
    """
    marks = list(_MARK.finditer(text))
    if not marks:
        return next(reversed(find_numbers(text)), None)
    marked = text[marks[-1].end() :]
    if marks[-1].group() != "####":
        depth = 1
        for place, letter in enumerate(marked):
            depth += (letter == "{") - (letter == "}")
            if not depth:
                marked = marked[:place]
                break
    return next(iter(find_numbers(marked)), None)


def read_number(value: object) -> WrittenNumber | None:
    """Return the number of a field of a record: a number, a marked one, or a text with one number; else None."""
    if isinstance(value, bool):
        return None
    text = str(value)
    numbers = find_numbers(text)
    if isinstance(value, int | float) or not _MARK.search(text):
        return numbers[0] if len(numbers) == 1 else None
    return final_number(text)
