"""Forms of tagging: words with a tag each."""

from typing import Any

from ..records import split_list
from ..tables import BadRow
from ..text import split_words
from .form import FormRow, Record, Sample, explains, rows
from .jobs import JOBS


_WORDS = ("tokens", *JOBS["tags"].fields["tokens"].aliases)
_TAGS = ("tags", *JOBS["tags"].fields["tags"].aliases)


@rows(
    "tags",
    "running-text",
    "for predictions: a text, which is split into words and punctuation marks",
    {"text": ("text", "sentence")},
    recognise=lambda sample: not sample.reading.labelled and "tokens" not in sample.columns,
    example={"texts.jsonl": '{"text": "Ann sings."}\n'},
    gives=[{"tokens": ["Ann", "sings", "."]}],
)
def read_running_text(row: FormRow) -> Record:
    text = row.text("text")
    return {"tokens": split_words(text) or [text]}


@rows(
    "tags",
    "words-and-tags",
    "a list of words and a list of as many tags, or texts with blanks between words and tags",
    {"tokens": _WORDS, "tags": _TAGS},
    example={"train.jsonl": '{"tokens": ["Ann", "sings"], "tags": ["B-PER", "O"]}\n'},
    gives=[{"tokens": ["Ann", "sings"], "tags": ["B-PER", "O"]}],
)
def read_words_and_tags(row: FormRow) -> Record:
    words = read_words(row)
    if not row.sample.reading.labelled:
        return {"tokens": words}
    tags, name = split_list(row["tags"]), row.names["tags"]
    if not isinstance(tags, list):
        raise BadRow(f"field {name!r} is a {type(tags).__name__}, not a list of tags")
    for number, tag in enumerate(tags, 1):
        if not isinstance(tag, (str, int)) or isinstance(tag, bool):
            raise BadRow(f"a tag in field {name!r} is no text", f"tag {number} is {tag!r:.30}")
    if len(tags) != len(words):
        raise BadRow("another number of tags than of words", f"{len(words)} words, {len(tags)} tags")
    return {"tokens": words, "tags": tags}


def read_words(row: FormRow) -> list[str]:
    """Returns the words: a list, or a text with blanks between them."""
    words: Any = split_list(row["tokens"])
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise BadRow(f"field {row.names['tokens']!r} is no list of words, or an empty one")
    return words


@explains("tags")
def explain_lists_as_text(sample: Sample) -> str | None:
    name = sample.reading.names.get("text")
    if any(isinstance(row.get(name), list) for row in sample.rows):
        option = sample.reading.option_of
        return f"field {name!r} ({option('text')}) holds lists: {option('tokens')} {name} reads them"
    return None
