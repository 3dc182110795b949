"""Text with its line breaks, tabs and control characters made visible."""

import re


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def escape_controls(text: str) -> str:
    """Return text whose control characters are escaped as `\\x1b`, except line breaks and tabs."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def visible(text: str) -> str:
    """Return text on one line: line breaks and tabs are shown by signs, control characters are escaped."""
    return escape_controls(text.replace("\n", "⏎").replace("\t", "⇥"))
