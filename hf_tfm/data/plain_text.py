"""Reads plain text: documents, paragraphs or lines of a file, in constant memory."""

import io
import itertools
from collections.abc import Iterator

from ..core.errors import InputError
from .files import DataFile, open_file
from .tables import ReadingOptions


# Longer documents are cut, in characters.
MAX_CHARACTERS = 1 << 20


def read_plain_text(file: DataFile, sample_by: str = "document", longest: int | None = None) -> Iterator[str]:
    """
    Yield the documents of a file of plain text.

    Args:
        sample_by: What a document is: "document" (the file), "paragraph" (between blank lines) or "line".
        longest: A longer file is cut at line ends into documents of so many characters, `MAX_CHARACTERS` by default.

    Raises:
        InputError: The file cannot be read or is not text.
    """
    with open_file(file) as stream:
        lines = io.TextIOWrapper(stream, encoding="utf-8-sig")
        texts: Iterator[str]
        if sample_by == "line":
            texts = (line.rstrip("\n") for line in lines)
        elif sample_by == "paragraph":
            groups = itertools.groupby(lines, key=str.isspace)
            texts = ("".join(group).rstrip("\n") for is_blank, group in groups if not is_blank)
        else:
            texts = _cut_stream(lines, longest or MAX_CHARACTERS)
        for text in texts:
            if "\0" in text:
                raise InputError(f"{file}: is not text (it has zero bytes); leave it out")
            yield text


def open_lines(file: DataFile, options: ReadingOptions | None = None) -> Iterator[tuple[str, str]]:
    """
    Yield the place (`file, line 3`) and the text of each line, without its end; blank lines too.

    Raises:
        InputError: The file cannot be read or is not text.
    """
    encoding = (options and options.encoding) or "utf-8-sig"
    with open_file(file) as stream:
        for number, line in enumerate(io.TextIOWrapper(stream, encoding=encoding), 1):
            yield f"{file}, line {number}", line.rstrip("\n")


def cut_text(text: str, longest: int = MAX_CHARACTERS) -> list[str]:
    """Returns a text in parts of at most `longest` characters, cut at line ends, else at spaces, else anywhere."""
    parts, start = [], 0
    while len(text) - start > longest:
        half, full = start + longest // 2, start + longest
        end = text.rfind("\n", half, full) + 1 or text.rfind(" ", half, full) + 1 or full
        parts.append(text[start:end])
        start = end
    return [*parts, text[start:]]


def _cut_stream(lines: io.TextIOWrapper, longest: int) -> Iterator[str]:
    rest = ""
    while chunk := lines.read(longest):
        *whole, rest = cut_text(rest + chunk, longest)
        yield from whole
    if rest:
        yield rest
