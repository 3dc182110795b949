"""Forms of tagging: words with a tag each, and running text for predictions."""

from collections.abc import Mapping
from typing import Any

from ..records import split_list
from ..tables import BadRow
from ..text import split_words
from .form import FormRow, Record, Sample, check_text, explains, rows, skip_rejected
from .jobs import JOBS


_WORDS = ("tokens", *JOBS["tags"].fields["tokens"].aliases)
_TAGS = ("tags", *JOBS["tags"].fields["tags"].aliases)
_TEXT = ("text", "sentence", "content", "document", "data")
_FEW = 20  # records of one word each are no mistake in so small a file


def _is_running_text(sample: Sample) -> bool:
    """Whether there is text to split, and not words, such as those of a field that the model was trained on."""
    if sample.reading.labelled:
        return False
    words, text = (
        sample.name_of(name, standard) for name, standard in (("tokens", ("tokens", "words")), ("text", _TEXT))
    )
    if words is not None and sample.reading.names.get("text") is None:
        return not any(isinstance(row.get(words), str) or _list_words(row.get(words)) for row in sample.rows)
    return not any(isinstance(row.get(text), list) for row in sample.rows)


@rows(
    "tags",
    "running-text",
    "for predictions: a text, which is split into words and punctuation marks as texts with spans are",
    {"text": _TEXT},
    recognise=_is_running_text,
    example={"texts.jsonl": '{"text": "Ann sings."}\n'},
    gives=[{"text": "Ann sings.", "tokens": ["Ann", "sings", "."]}],
)
def read_running_text(row: FormRow) -> Record:
    text = row["text"]
    text = check_text(text.get("text") if isinstance(text, Mapping) else text, f"field {row.names['text']!r}")
    return {"text": text, "tokens": split_words(text) or [text]}


@rows(
    "tags",
    "words-and-tags",
    "a list of words and a list of as many tags, or texts with blanks between words and tags",
    {"tokens": _WORDS, "tags": _TAGS},
    recognise=lambda sample: not _has_single_words(sample),
    example={"train.jsonl": '{"tokens": ["Ann", "sings"], "tags": ["B-PER", "O"]}\n'},
    gives=[{"tokens": ["Ann", "sings"], "tags": ["B-PER", "O"]}],
)
def read_words_and_tags(row: FormRow) -> Record:
    skip_rejected(row)
    words = read_words(row)
    if not row.sample.reading.labelled:
        return {"tokens": words}
    tags, name = split_list(row["tags"]), row.names["tags"]
    if not isinstance(tags, list):
        raise BadRow(f"field {name!r} is a {type(tags).__name__}, not a list of tags")
    for number, tag in enumerate(tags, 1):
        if not isinstance(tag, (str, int)) or isinstance(tag, bool):
            raise BadRow(f"a tag in field {name!r} is no text", f"tag {number} is {tag!r:.30}")
        if str(tag).startswith("-") and str(tag)[1:].isdigit():
            raise BadRow(
                f"a tag in field {name!r} is a number below 0, which stands for no tag", f"tag {number}, {tag}"
            )
    if len(tags) != len(words):
        raise BadRow("another number of tags than of words", f"{len(words)} words, {len(tags)} tags")
    return {"tokens": words, "tags": tags}


def read_words(row: FormRow) -> list[str]:
    """Returns the words: a list, or a text with blanks between them."""
    words = _list_words(split_list(row["tokens"]))
    if not words:
        raise BadRow(f"field {row.names['tokens']!r} is no list of words, or an empty one")
    return words


def _list_words(value: Any) -> list[str] | None:
    """The words in a list of texts, or of mappings with a text (Prodigy); None of other values."""
    if not isinstance(value, list):
        return None
    words = [word.get("text") if isinstance(word, Mapping) else word for word in value]
    texts = [word for word in words if isinstance(word, str)]
    return texts if len(texts) == len(words) else None


def _has_single_words(sample: Sample) -> bool:
    """Whether all first records have one word: probably a word a row, whose sentences cannot be told apart."""
    if not sample.reading.labelled or sample.reading.options.format == "words-and-tags" or len(sample.rows) < _FEW:
        return False
    name = sample.name_of("tokens", _WORDS)
    words = [split_list(row.get(name)) for row in sample.rows]
    return all(isinstance(entry, list) and len(entry) == 1 for entry in words)


@explains("tags")
def explain_single_words(sample: Sample) -> str | None:
    if sample.name_of("tokens", _WORDS) is None or not _has_single_words(sample):
        return None
    return (
        f"all first {len(sample.rows)} records have one word, so sentences cannot be told apart: a word a row needs a "
        "column `sentence_id`, or a blank line behind each sentence; "
        f"{sample.reading.option('format')} words-and-tags takes the words for sentences"
    )


@explains("tags")
def explain_lists_as_text(sample: Sample) -> str | None:
    name = sample.reading.names.get("text")
    if name and any(isinstance(row.get(name), list) for row in sample.rows):
        option = sample.reading.option_of
        return f"field {name!r} ({option('text')}) holds lists: {option('tokens')} {name} reads them"
    return None
