"""What a tagging task is (entities, parts of speech): words and tags, the pieces of words, figures, a baseline."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from ..core.errors import InputError
from ..core.statistics import Estimate, bootstrap
from ..data.records import Records, split_list
from .classification import label_ids, listed_names, written_label


_ENTITY_TAG = re.compile(r"O|[BIESLUM]-.+")
# The letters of BILOU and BMES for what IOBES calls E, S and I.
_AS_IOBES = str.maketrans("LUM", "ESI")
_HITS, _PREDICTED, _ACTUAL = range(3)


def read_words(records: Records, field: str) -> list[list[str]]:
    """
    The words of all records: a list each, or a text (CSV) as [`split_list`] reads it.

    Raises:
        InputError: the field is missing, holds something else or no word.
    """
    sentences = []
    for value, place in zip(records.values(field, "words_field"), records.places):
        words = split_list(value)
        if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
            raise InputError(f"{place}: field {field!r} is no list of words, or an empty one; mend or drop this record")
        sentences.append(words)
    return sentences


@dataclass(frozen=True)
class TagTask:
    """
    How words get tags, and tags become figures.

    Attributes:
        names: the tags in the order of their ids.
        field: where a record has its tags.
        ids: a tag as a record may write it (as text) to its id.
        default: the tag that a word gets which the model cannot see: O, or the most frequent one.
    """

    names: list[str]
    field: str
    ids: dict[str, int]
    default: int

    @property
    def entities(self) -> bool:
        """Whether the tags mark entities (B-person, I-person, O): these are then counted, each one whole."""
        return all(_ENTITY_TAG.fullmatch(name) for name in self.names) and any(name != "O" for name in self.names)

    @property
    def kinds(self) -> list[str]:
        """What is counted: types of entities, or tags."""
        return sorted({name[2:] for name in self.names if name != "O"}) if self.entities else self.names

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the figures; by the first one the best checkpoint is chosen, on the validation records."""
        return ("f1", "precision", "recall") if self.entities else ("accuracy", "macro_f1")

    def config_fields(self) -> dict[str, Any]:
        """Fields of a model's configuration."""
        return {
            "num_labels": len(self.names),
            "id2label": dict(enumerate(self.names)),
            "label2id": {name: number for number, name in enumerate(self.names)},
        }

    def encode(self, records: Records, sentences: Sequence[Sequence[str]]) -> list[list[int]]:
        """
        The tags of all records as ids.

        Raises:
            InputError: a record has another number of tags than words, or a tag that is not known.
        """
        encoded = []
        for tags, words, place in zip(_read_tags(records, self.field), sentences, records.places):
            if len(tags) != len(words):
                raise InputError(
                    f"{place}: {len(words)} words but {len(tags)} tags in field {self.field!r}; mend or drop it"
                )
            for tag in tags:
                if written_label(tag) not in self.ids:
                    there = ", ".join(self.names[:8]) + (" …" if len(self.names) > 8 else "")
                    raise InputError(
                        f"{place}: tag {tag!r} in field {self.field!r} is not among those of training: {there}"
                    )
            encoded.append([self.ids[written_label(tag)] for tag in tags])
        return encoded

    def loss(self, smoothing: float = 0.0) -> Callable[..., torch.Tensor]:
        """A `compute_loss_func` for Trainer: the mean over the tagged words of all accumulated batches."""

        def compute(
            outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
        ) -> torch.Tensor:
            logits = outputs["logits"].float().flatten(0, 1)
            loss = F.cross_entropy(logits, labels.flatten(), reduction="sum", label_smoothing=smoothing)
            return loss / ((labels != -100).sum() if num_items_in_batch is None else num_items_in_batch)

        return compute

    def count(self, predicted: Sequence[Sequence[int]], actual: Sequence[Sequence[int]]) -> np.ndarray:
        """Hits, predictions and true ones `(records, kinds, 3)` of entities or of tags."""
        counts = np.zeros((len(actual), len(self.kinds), 3), dtype=np.int64)
        number_of = {kind: number for number, kind in enumerate(self.kinds)}
        for row, guess, truth in zip(counts, predicted, actual):
            found, there = (self._marks(tags) for tags in (guess, truth))
            for column, marks in ((_HITS, found & there), (_PREDICTED, found), (_ACTUAL, there)):
                for kind, *_ in marks:
                    row[number_of[kind], column] += 1
        return counts

    def _marks(self, tags: Sequence[int]) -> set[tuple]:
        names = [self.names[tag] for tag in tags]
        return find_entities(names) if self.entities else {(name, word) for word, name in enumerate(names)}

    def figures(self, counts: np.ndarray) -> dict[str, float]:
        """The task's metrics from [`count`]."""
        hits, predicted, actual = counts.sum((0, 1)).tolist()
        if self.entities:
            share = {"precision": hits / max(predicted, 1), "recall": hits / max(actual, 1)}
            return {"f1": 2 * hits / max(predicted + actual, 1), **share}
        by_kind = counts.sum(0)
        there = by_kind.sum(-1) > 0
        return {"accuracy": hits / max(actual, 1), "macro_f1": float(_f1(by_kind[there]).mean())}

    def estimates(self, predicted: Sequence[Sequence[int]], actual: Sequence[Sequence[int]]) -> dict[str, Estimate]:
        """The metrics, then the F1 of each kind that occurs, with intervals from records drawn again."""
        counts = self.count(predicted, actual)
        there = [number for number, row in enumerate(counts.sum(0)) if row[_ACTUAL]]

        def statistics(drawn: np.ndarray) -> dict[str, float]:
            by_kind = _f1(drawn.sum(0))
            return self.figures(drawn) | {f"f1 of {self.kinds[number]}": float(by_kind[number]) for number in there}

        return bootstrap(statistics, counts)


def read_task(train: Records, sentences: Sequence[Sequence[str]], field: str) -> TagTask:
    """
    The task that the training records pose. The tags' order comes from `labels.json` beside the file, else from the
    tags themselves, O in front.

    Raises:
        InputError: a record has no tags or another number of them than of words; all words have the same tag.
    """
    counts = Counter(written_label(tag) for tags in _read_tags(train, field) for tag in tags)
    names = listed_names(Path(train.path).parent / "labels.json", field)
    if names:
        ids = label_ids(names, counts)
    else:
        names = sorted(counts, key=lambda name: (name != "O", name))
        ids = {name: number for number, name in enumerate(names)}
    task = TagTask(names, field, ids, default=0)
    task.encode(train, sentences)
    if len(counts) < 2:
        raise InputError(f"{train.path}: all words have the tag {next(iter(counts))!r} in field {field!r}")
    most_frequent = task.ids[counts.most_common(1)[0][0]]
    return TagTask(names, field, ids, default=names.index("O") if task.entities and "O" in names else most_frequent)


def tag_ids(names: Sequence[str], records: Records, field: str) -> dict[str, int]:
    """Ids of a model's tags by what the records write, names or numbers, as [`label_ids`] tells them apart."""
    return label_ids(names, {written_label(tag) for tags in _read_tags(records, field) for tag in tags})


def find_entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """
    Entities in tags of the schemes IOB1, IOB2, IOBES, BILOU and BMES as (type, first word, last word), as conlleval and
    seqeval read the first three: an I without an entity to go on with begins one.
    """
    spans: list[tuple[str, int, int]] = []
    before = ("O", "")
    for word, tag in enumerate(tags):
        prefix, _, kind = tag.partition("-")
        prefix = prefix.translate(_AS_IOBES)
        if prefix in "IE" and before[0] in "BI" and before[1] == kind:
            spans[-1] = (kind, spans[-1][1], word)
        elif prefix != "O":
            spans.append((kind, word, word))
        before = (prefix, kind)
    return set(spans)


class Window(NamedTuple):
    """A row of a model's input: the record it is of, its words' numbers, and the column of each one's first piece."""

    record: int
    words: list[int]
    columns: list[int]


def encode_words(
    tokenizer: PreTrainedTokenizerBase, max_length: int, sentences: Sequence[Sequence[str]]
) -> tuple[list[dict[str, Any]], list[Window]]:
    """
    Inputs of a model from words, which are cut into pieces as in running text.

    What is longer than `max_length` becomes several rows, so that no word is lost. Words that the tokenizer drops
    (control characters) are in no window.

    Raises:
        InputError: the tokenizer cannot tell which piece is of which word.
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"{type(tokenizer).__name__} cannot tell words apart: a fast tokenizer (tokenizer.json) is needed"
        )
    blank = _blank_before_words(tokenizer)
    room = max_length - tokenizer.num_special_tokens_to_add()
    # The first word of a row that goes on with a sentence is cut as in that sentence too, and as it was counted.
    sentences = [[(blank if n else "") + word for n, word in enumerate(words)] for words in sentences]
    counted = tokenizer(sentences, is_split_into_words=True, add_special_tokens=False, verbose=False)
    spans = []
    for record, words in enumerate(sentences):
        pieces = Counter(counted.word_ids(record))
        spans += [(record, part) for part in _parts([pieces[word] for word in range(len(words))], room)]
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
        windows.append(Window(record, list(first), list(first.values())))
    return [dict(zip(inputs, row)) for row in zip(*inputs.values())], windows


def add_labels(rows: Sequence[dict[str, Any]], windows: Sequence[Window], tags: Sequence[Sequence[int]]) -> None:
    """Put the tags into the rows as `labels`: at the first piece of each word, -100 elsewhere."""
    for row, window in zip(rows, windows):
        row["labels"] = [-100] * len(row["input_ids"])
        for word, column in zip(window.words, window.columns):
            row["labels"][column] = tags[window.record][word]


def tags_of_words(
    predictions: np.ndarray | Sequence[np.ndarray],
    windows: Sequence[Window],
    sentences: Sequence[Sequence[str]],
    default: Any,
) -> list[list[Any]]:
    """What a model says of each word out of what it says of each column `(rows, length, …)`."""
    said = [[default] * len(words) for words in sentences]
    for row, window in zip(predictions, windows):
        for word, column in zip(window.words, window.columns):
            said[window.record][word] = row[column]
    return said


def dictionary_tagger(
    sentences: Sequence[Sequence[str]], tags: Sequence[Sequence[int]]
) -> Callable[[Sequence[Sequence[str]]], list[list[int]]]:
    """A baseline: each word's most frequent tag in training; for new words that of capitalised or other rare words."""
    counts: dict[str, Counter] = {}
    for words, given in zip(sentences, tags):
        for word, tag in zip(words, given):
            counts.setdefault(word, Counter())[tag] += 1
    known = {word: tag.most_common(1)[0][0] for word, tag in counts.items()}
    unknown = {True: Counter(), False: Counter()}
    for word, tag in counts.items():
        if tag.total() == 1:
            unknown[word[:1].isupper()].update(tag)
    everything = sum(counts.values(), Counter())
    guess = {case: (tag or everything).most_common(1)[0][0] for case, tag in unknown.items()}
    return lambda texts: [[known.get(word, guess[word[:1].isupper()]) for word in words] for words in texts]


def _read_tags(records: Records, field: str) -> Iterator[list[Any]]:
    for value, place in zip(records.values(field, "tags_field"), records.places):
        tags = split_list(value)
        if not isinstance(tags, list):
            raise InputError(f"{place}: field {field!r} is a {type(value).__name__}, not a list of tags")
        for number, tag in enumerate(tags, 1):
            if not isinstance(tag, str | int) or isinstance(tag, bool):
                raise InputError(f"{place}: tag {number} in field {field!r} is {tag!r}; mend or drop this record")
        yield tags


def _blank_before_words(tokenizer: PreTrainedTokenizerBase) -> str:
    """A blank where a tokenizer takes it as part of the word behind it, as byte-level ones do; else nothing."""
    pieces = lambda words: tokenizer(words, is_split_into_words=isinstance(words, list))["input_ids"]  # noqa: E731
    return "" if pieces("of the") == pieces(["of", "the"]) else " "


def _parts(pieces: Sequence[int], room: int) -> Iterator[range]:
    """Runs of words with no more pieces than there is room for; a word that is longer by itself stands alone."""
    start = used = 0
    for word, count in enumerate(pieces):
        if word > start and used + count > room:
            yield range(start, word)
            start, used = word, 0
        used += count
    yield range(start, len(pieces))


def _f1(counts: np.ndarray) -> np.ndarray:
    return 2 * counts[:, _HITS] / np.maximum(counts[:, _PREDICTED] + counts[:, _ACTUAL], 1)
