"""Words of a sentence: read from records, encoded as rows of a model, and their outputs out of those of tokens."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from ..core.errors import InputError
from .task import Outputs


class WordWindow(NamedTuple):
    """
    A row of a model's input.

    Attributes:
        record: number of the record that it belongs to.
        words: numbers of the record's words in it.
        columns: column of each word's first token.
    """

    record: int
    words: list[int]
    columns: list[int]


def encode_words(
    tokenizer: PreTrainedTokenizerBase, max_length: int, sentences: Sequence[Sequence[str]]
) -> tuple[list[dict[str, Any]], list[WordWindow]]:
    """
    Encode words as rows of a model's inputs, in the tokens that they have in running text.

    A sentence longer than `max_length` tokens becomes several rows, so that no word is lost. Words that the tokenizer
    drops (control characters) are in no window.

    Raises:
        InputError: the tokenizer does not show which token belongs to which word.
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"{type(tokenizer).__name__} cannot tell words apart: a fast tokenizer (tokenizer.json) is needed"
        )
    blank = _blank_before_words(tokenizer)
    room = max_length - tokenizer.num_special_tokens_to_add()
    # So the first word of a row that continues a sentence has the same tokens as within the sentence.
    sentences = [[(blank if n else "") + word for n, word in enumerate(words)] for words in sentences]
    encoding = tokenizer(sentences, is_split_into_words=True, add_special_tokens=False, verbose=False)
    spans = []
    for record, words in enumerate(sentences):
        tokens = Counter(encoding.word_ids(record))
        spans += [(record, part) for part in _parts([tokens[word] for word in range(len(words))], room)]
    texts = [[sentences[record][word] for word in part] for record, part in spans]
    inputs = tokenizer(texts, is_split_into_words=True, truncation=True, max_length=max_length, verbose=False)
    # Truncation set by this call must not be saved as the tokenizer's own.
    tokenizer.backend_tokenizer.no_truncation()
    windows = []
    for number, (record, part) in enumerate(spans):
        first: dict[int, int] = {}
        for column, word in enumerate(inputs.word_ids(number)):
            if word is not None:
                first.setdefault(part[word], column)
        windows.append(WordWindow(record, list(first), list(first.values())))
    return [dict(zip(inputs, row)) for row in zip(*inputs.values())], windows


def values_of_words(
    outputs: Outputs, windows: Sequence[WordWindow], sentences: Sequence[Sequence[str]], default: Any
) -> list[list[Any]]:
    """Return a value for each word, its first token's out of values `(rows, length, …)`; `default` without a token."""
    values = [[default] * len(words) for words in sentences]
    for row, window in zip(outputs, windows):
        for word, column in zip(window.words, window.columns):
            values[window.record][word] = row[column]
    return values


def _blank_before_words(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a blank for tokenizers that make it part of the next word's token, as byte-level ones do; else nothing."""
    running_text = tokenizer("of the")["input_ids"]
    return "" if running_text == tokenizer(["of", "the"], is_split_into_words=True)["input_ids"] else " "


def _parts(tokens: Sequence[int], room: int) -> Iterator[range]:
    """Yield runs of words that fit in `room` tokens; a word that is longer stands alone."""
    start = num_tokens = 0
    for word, count in enumerate(tokens):
        if word > start and num_tokens + count > room:
            yield range(start, word)
            start, num_tokens = word, 0
        num_tokens += count
    yield range(start, len(tokens))
