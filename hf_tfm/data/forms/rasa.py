"""Forms of Rasa's nlu.yml: intents (classes) with examples, in which entities (tags) are marked."""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from ...core.errors import InputError
from ..tables import BadRow
from .form import Note, Placed, Reading, Sample, check_text, lines
from .tag_spans import Span, tag_spans


# [north](location), or [chines]{"entity": "cuisine", "value": "chinese"}.
_MARK = re.compile(r"\[([^\]]+)\](?:\(([^)]+)\)|(\{[^}]*\}))")
_EXAMPLE = {
    "nlu.yml": 'version: "3.1"\nnlu:\n- intent: eat\n  examples: |\n    - a cafe in [Bonn](place)\n    - lunch\n'
}
_SUFFIXES = (".yml", ".yaml")


def _is_rasa(sample: Sequence[str]) -> bool:
    return any(line.rstrip() == "nlu:" for line in sample) and any(re.match(r"\s*- intent:", line) for line in sample)


@lines(
    "classification",
    "rasa",
    "Rasa's nlu.yml: examples of intents, which are the classes",
    _is_rasa,
    suffixes=_SUFFIXES,
    example=_EXAMPLE,
    gives=[{"text": "a cafe in Bonn", "label": "eat"}, {"text": "lunch", "label": "eat"}],
)
def read_intents(placed: Iterator[tuple[str, str]], reading: Reading) -> Iterator[Placed]:
    yield from _read(placed, lambda intent, text, spans: {"text": check_text(text, "the example"), "label": intent})


@lines(
    "tags",
    "rasa",
    "Rasa's nlu.yml: examples of intents, in which entities stand in brackets",
    _is_rasa,
    suffixes=_SUFFIXES,
    example=_EXAMPLE,
    gives=[
        {"tokens": ["a", "cafe", "in", "Bonn"], "tags": ["O", "O", "O", "B-place"]},
        {"tokens": ["lunch"], "tags": ["O"]},
    ],
)
def read_entities(placed: Iterator[tuple[str, str]], reading: Reading) -> Iterator[Placed]:
    sample = Sample(reading)
    yield from _read(placed, lambda intent, text, spans: tag_spans(text, spans, sample))
    yield from (("", Note(f"{count:,} × {what}")) for what, count in sample.counts.items())


def _read(placed: Iterator[tuple[str, str]], record: Any) -> Iterator[Placed]:
    """Yields what a function makes of each example's intent, text and entities; other parts of the file are noted."""
    import yaml

    rows = list(placed)
    file = rows[0][0].rpartition(", line ")[0] if rows else "the file"
    try:
        # The base loader leaves texts as they are: an intent `yes` is no True.
        content = yaml.load("\n".join(line for _, line in rows), Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise InputError(f"{file}: is no YAML: {' '.join(str(error).split())}") from error
    entries = content.get("nlu") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{file}: has no list `nlu` with intents and their examples")
    others = sorted({name for entry in entries for name in entry if name in ("synonym", "regex", "lookup")})
    if others:
        yield file, Note(f"not read: {', '.join(others)}")
    for entry in entries:
        for number, marked in enumerate(_list_examples(entry.get("examples")) if "intent" in entry else (), 1):
            place = f"{file}, intent {entry['intent']}, example {number}"
            try:
                yield place, record(entry["intent"], *read_marks(marked))
            except BadRow as error:
                yield place, error


def _list_examples(examples: Any) -> list[str]:
    """The examples of an intent: lines of a text that begin with a hyphen, or mappings with a text."""
    if isinstance(examples, str):
        return [line.strip()[1:].strip() for line in examples.splitlines() if line.strip().startswith("-")]
    return [str(example["text"]).strip() for example in examples or ()]


def read_marks(marked: str) -> tuple[str, list[Span]]:
    """Returns a text without its marks, and the entities that they name. Raises `BadRow` for a mark without a name."""
    text, spans, end = "", list[Span](), 0
    for match in _MARK.finditer(marked):
        text += marked[end : match.start()]
        end = match.end()
        try:
            name = match[2].partition(":")[0] if match[2] else json.loads(match[3])["entity"]
        except (ValueError, KeyError, TypeError):
            raise BadRow("a mark names no entity", f"{match[0]!r:.50}") from None
        spans.append(Span(len(text), len(text) + len(match[1]), name, match[1]))
        text += match[1]
    return text + marked[end:], spans
