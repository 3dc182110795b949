"""Reads plain text: documents, paragraphs or lines of a file, in constant memory."""

import io
import itertools
import re
from collections.abc import Iterable, Iterator
from functools import partial

from .encodings import open_text
from .files import WIKITEXT, DataFile
from .reading import ReadingOptions


# Longer documents are cut, in characters.
MAX_CHARACTERS = 1 << 20
# Project Gutenberg's header ends within so many characters.
_HEAD_CHARACTERS = 1 << 16
_GUTENBERG_MARK = re.compile(
    r"^\*\*\* ?(?:START|END) OF (?:THE|THIS) PROJECT GUTENBERG E(?:BOOK|TEXT)", re.IGNORECASE | re.MULTILINE
)
_ARTICLE = re.compile(r" = (?!= ).*(?<! =) = \n?")


def read_plain_text(
    file: DataFile,
    unit: str = "document",
    longest: int | None = None,
    options: ReadingOptions | None = None,
    strip_gutenberg: bool = False,
    notes: list[str] | None = None,
) -> Iterator[str]:
    """
    Yield the documents of a file of plain text.

    Args:
        unit: What a document is: "document" (the file; an article in files of WikiText), "paragraph" (between
            blank lines) or "line".
        longest: A longer document is cut at line ends into parts of so many characters, `MAX_CHARACTERS` by default.
        strip_gutenberg: Whether the header and the licence of a book of Project Gutenberg are left out.
        notes: Receives what was guessed or left out.

    Raises:
        InputError: The file cannot be read or is not text.
    """
    notes = [] if notes is None else notes
    with open_text(file, options.encoding if options else None, notes) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8")
        head = text.read(_HEAD_CHARACTERS)
        is_book = bool(_GUTENBERG_MARK.search(head))
        if is_book:
            rest = "are left out" if strip_gutenberg else "are part of the text; --strip_gutenberg leaves them out"
            notes.append(f"Project Gutenberg's header and licence {rest}")
        is_wikitext = file.suffixes[0] in WIKITEXT
        longest = longest or MAX_CHARACTERS
        if unit == "document" and not is_wikitext and not (is_book and strip_gutenberg):
            yield from _cut_pieces(itertools.chain([head], iter(partial(text.read, longest), "")), longest)
            return
        lines: Iterator[str] = itertools.chain(io.StringIO(head + text.readline()), text)
        if is_book and strip_gutenberg:
            lines = _strip_gutenberg(lines)
        if unit == "line":
            yield from (line.rstrip("\n") for line in lines)
        elif unit == "paragraph":
            groups = itertools.groupby(lines, key=str.isspace)
            yield from ("".join(group).rstrip("\n") for is_blank, group in groups if not is_blank)
        else:
            for article in _split_articles(lines) if is_wikitext else [lines]:
                yield from _cut_pieces(article, longest)


def open_lines(
    file: DataFile, options: ReadingOptions | None = None, notes: list[str] | None = None
) -> Iterator[tuple[str, str]]:
    """
    Yield the place (`file, line 3`) and the text of each line without its end, blank ones too.

    Raises:
        InputError: The file cannot be read or is not text.
    """
    with open_text(file, options.encoding if options else None, notes) as stream:
        for number, line in enumerate(io.TextIOWrapper(stream, encoding="utf-8"), 1):
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


def _cut_pieces(pieces: Iterable[str], longest: int) -> Iterator[str]:
    parts, size = [], 0
    for piece in pieces:
        parts.append(piece)
        size += len(piece)
        if size > longest:
            *whole, rest = cut_text("".join(parts), longest)
            yield from whole
            parts, size = [rest], len(rest)
    if rest := "".join(parts):
        yield rest


def _split_articles(lines: Iterable[str]) -> Iterator[Iterator[str]]:
    """Articles of WikiText, which begin with ` = Title = `; sections have more signs."""
    article = 0

    def number(line: str) -> int:
        nonlocal article
        article += bool(_ARTICLE.fullmatch(line))
        return article

    return (group for _, group in itertools.groupby(lines, key=number))


def _strip_gutenberg(lines: Iterator[str]) -> Iterator[str]:
    """The lines between the two marks around a book."""
    is_mark = False
    for line in lines:
        is_mark = is_mark or bool(_GUTENBERG_MARK.match(line))
        if is_mark and line.rstrip().endswith("***"):  # the mark may go on behind a long title
            break
    return itertools.takewhile(lambda line: not _GUTENBERG_MARK.match(line), lines)
