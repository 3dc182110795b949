"""Tagging: one tag for each word, such as named entities or parts of speech."""

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import (
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..artifacts.tokenizer_files import trim_offsets
from ..core.errors import InputError
from ..core.statistics import Estimate, bootstrap
from ..data.records import Records
from ..data.text import find_words
from .labels import describe_counts, first_names, label_fields, label_ids, label_text, listed_names
from .losses import LossFunction, token_loss
from .task import Outputs, Split, Task
from .words import encode_words, values_of_words


_ENTITY_TAG = re.compile(r"O|[BIESLUM]-.+")
_PREFIXED_TAG = re.compile(r"[BIESLUM]-.+")
# BILOU's and BMES's letters for E, S and I of IOBES, which seqeval reads.
_AS_IOBES = str.maketrans("LUM", "ESI")
_CORRECT, _PREDICTED, _ACTUAL = range(3)


class TaggedWords(NamedTuple):
    """The words of a record, and the ids of their tags."""

    words: list[str]
    tags: list[int] | None = None


@dataclass(frozen=True)
class Tags:
    """
    The tags of a task.

    Attributes:
        names: the tags in the order of their ids.
        ids: a tag as a record may write it (as text) to its id.
        default: id of the tag for words that have no token: O, or the most frequent one.
    """

    names: list[str]
    ids: dict[str, int]
    default: int

    @property
    def mark_entities(self) -> bool:
        """Whether the tags mark entities (B-person, I-person, O), which are counted whole."""
        return all(_ENTITY_TAG.fullmatch(name) for name in self.names) and any(name != "O" for name in self.names)

    @property
    def without_prefix(self) -> list[str]:
        """Tags that have no prefix, though others have one such as B-: because of them no entities are counted."""
        if not any(_PREFIXED_TAG.fullmatch(name) for name in self.names):
            return []
        return [name for name in self.names if not _ENTITY_TAG.fullmatch(name)]

    @property
    def kinds(self) -> list[str]:
        """Names of what is counted: types of entities, or tags."""
        return sorted({name[2:] for name in self.names if name != "O"}) if self.mark_entities else self.names

    def count(self, predicted: Sequence[Sequence[int]], actual: Sequence[Sequence[int]]) -> np.ndarray:
        """Return numbers of correct, predicted and actual entities (or tags), `(records, kinds, 3)`."""
        counts = np.zeros((len(actual), len(self.kinds), 3), dtype=np.int64)
        number_of = {kind: number for number, kind in enumerate(self.kinds)}
        for row, *tags in zip(counts, predicted, actual):
            predicted_marks, actual_marks = (self._marks(ids) for ids in tags)
            columns = (
                (_CORRECT, predicted_marks & actual_marks),
                (_PREDICTED, predicted_marks),
                (_ACTUAL, actual_marks),
            )
            for column, marks in columns:
                for kind, *_ in marks:
                    row[number_of[kind], column] += 1
        return counts

    def _marks(self, tags: Sequence[int]) -> set[tuple[Any, ...]]:
        names = [self.names[tag] for tag in tags]
        return find_entities(names) if self.mark_entities else {(name, word) for word, name in enumerate(names)}


@dataclass
class Tagging(Task[TaggedWords]):
    """
    One tag for each word of a record.

    Args:
        words_field: field of users' files that has the words; by default recognised, as the other ones.
        tags_field: field of as many tags, or of spans in the text.
        text_field: field of running text, which is split into words and punctuation marks; replaces `words_field`.
    """

    model_class = AutoModelForTokenClassification
    adapter_type = "TOKEN_CLS"
    job = "tags"
    fields = {"tokens": "words_field", "text": "text_field", "tags": "tags_field"}
    per_token = True

    words_field: str | None = None
    tags_field: str | None = None
    text_field: str | None = None
    tags: Tags = field(init=False, repr=False)

    def learn_labels(self, train: Records) -> None:
        self.tags = read_tags(train)

    def adopt_labels(self, config: PreTrainedConfig, records: Records | None = None) -> None:
        names = [config.id2label[number] for number in range(config.num_labels)]
        tags = (tag for tags in records.values("tags") for tag in tags) if records else ()
        self.tags = Tags(names, label_ids(names, map(label_text, tags)), names.index("O") if "O" in names else 0)

    def config_fields(self) -> dict[str, Any]:
        return label_fields(self.tags.names)

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("f1", "precision", "recall") if self.tags.mark_entities else ("accuracy", "macro_f1")

    def read(self, records: Records, labelled: bool = True) -> Split[TaggedWords]:
        sentences = records.values("tokens")
        if not labelled:
            return Split(records, [TaggedWords(words) for words in sentences])
        examples = []
        for tags, words, place in zip(records.values("tags"), sentences, records.places):
            for tag in tags:
                if label_text(tag) not in self.tags.ids:
                    raise InputError(
                        f"{place}: tag {tag!r} in field {records.name_of('tags')!r} is not among those of training: "
                        f"{first_names(self.tags.names)}"
                    )
            examples.append(TaggedWords(words, [self.tags.ids[label_text(tag)] for tag in tags]))
        return Split(records, examples)

    def keys(self, split: Split[TaggedWords]) -> list[Hashable]:
        return [" ".join(example.words).casefold() for example in split.examples]

    def prepare(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        trim_offsets(tokenizer)

    def encode(
        self,
        split: Split[TaggedWords],
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
    ) -> None:
        split.rows, split.windows = encode_words(tokenizer, max_length, _sentences(split))

    def add_labels(self, split: Split[TaggedWords]) -> None:
        """Put a word's tag at its first token, and -100 at all other tokens."""
        tags = _tags(split)
        for row, window in zip(split.rows, split.windows):
            row["labels"] = [-100] * len(row["input_ids"])
            for word, column in zip(window.words, window.columns):
                row["labels"][column] = tags[window.record][word]

    def loss(self, train: Split[TaggedWords], smoothing: float = 0.0) -> LossFunction:
        return token_loss(smoothing)

    def soft_outputs(self, outputs: Any) -> torch.Tensor:
        return outputs["logits"].float()

    def soft_shape(self, row: Mapping[str, Any]) -> tuple[int, int | None]:
        return len(row["input_ids"]), None

    def select(self, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the likeliest tag's id and its probability `(batch, length, 2)`."""
        logits = outputs[0].float()
        scores, tags = logits.max(-1)
        return torch.stack([tags.to(logits.dtype), (scores - logits.logsumexp(-1)).exp()], -1)

    def decide(self, outputs: Outputs, split: Split[TaggedWords]) -> list[list[int]]:
        selected = values_of_words(outputs, split.windows, _sentences(split), (self.tags.default, 0.0))
        return [[int(tag) for tag, _ in row] for row in selected]

    def figures(self, predictions: Any, split: Split[TaggedWords]) -> dict[str, float]:
        return self.count_figures(self.tags.count(predictions, _tags(split)))

    def count_figures(self, counts: np.ndarray) -> dict[str, float]:
        """Return the metrics of [`Tags.count`]; counts can be summed over resampled records, which is fast."""
        correct, predicted, actual = counts.sum((0, 1)).tolist()
        if self.tags.mark_entities:
            shares = {"precision": correct / max(predicted, 1), "recall": correct / max(actual, 1)}
            return {"f1": 2 * correct / max(predicted + actual, 1), **shares}
        by_kind = counts.sum(0)
        occurs = by_kind.sum(-1) > 0
        return {"accuracy": correct / max(actual, 1), "macro_f1": float(_f1(by_kind[occurs]).mean())}

    def estimates(self, predictions: Any, split: Split[TaggedWords]) -> dict[str, Estimate]:
        """Return the metrics, and the F1 of each kind that occurs, with bootstrapped intervals."""
        counts = self.tags.count(predictions, _tags(split))
        occurring = [number for number, row in enumerate(counts.sum(0)) if row[_ACTUAL]]

        def statistics(resample: np.ndarray) -> dict[str, float]:
            by_kind = _f1(resample.sum(0))
            kinds = {f"f1 of {self.tags.kinds[number]}": float(by_kind[number]) for number in occurring}
            return self.count_figures(resample) | kinds

        return bootstrap(statistics, counts)

    def baselines(
        self, train: Split[TaggedWords], split: Split[TaggedWords], seed: int = 0
    ) -> dict[str, dict[str, Estimate]]:
        """Return estimates of a dictionary of the training words."""
        predictions = dictionary_tags(_sentences(train), _tags(train), _sentences(split))
        return {"dictionary": self.estimates(predictions, split)}

    def output_fields(self, outputs: Outputs, split: Split[TaggedWords], top: int) -> list[dict[str, Any]]:
        selected = values_of_words(outputs, split.windows, _sentences(split), (self.tags.default, 0.0))
        rows = []
        for original, record, example, values in zip(split.records.rows, split.records, split.examples, selected):
            places = find_words(record["text"]) if "text" in record else []
            row: dict[str, Any] = {"tokens": example.words} if "tokens" not in original else {}
            row["predicted_tags"] = [self.tags.names[int(tag)] for tag, _ in values]
            row["predicted_scores"] = [round(float(score), 6) for _, score in values]
            if self.tags.mark_entities:
                entities = sorted(find_entities(row["predicted_tags"]), key=lambda entity: entity[1:])
                row["predicted_entities"] = [
                    {"type": kind, "text": " ".join(example.words[first : last + 1])}
                    | {"first_word": first, "last_word": last}
                    | _place_in_text(record, places, first, last)
                    for kind, first, last in entities
                ]
            rows.append(row)
        return rows

    def describe(self) -> str:
        tags = f"{len(self.tags.names)} tags"
        return f"{len(self.tags.kinds)} types of entities in {tags}" if self.tags.mark_entities else tags

    def describe_split(self, split: Split[TaggedWords]) -> str:
        """Return the number of words, and of the entities of each type or the words of each tag."""
        tags = _tags(split)
        counts = dict(zip(self.tags.kinds, self.tags.count(tags, tags)[..., _ACTUAL].sum(0).tolist()))
        missing = [name for name, count in counts.items() if not count]
        without = f"; none of {', '.join(missing)}" if missing else ""
        kinds = describe_counts({kind: count for kind, count in counts.items() if count})
        return f"{len(tags):,} records, {sum(map(len, tags)):,} words: {kinds}{without}"

    def notes(self, name: str, split: Split[TaggedWords]) -> Iterable[str]:
        if name == "train" and all(tag.isdigit() for tag in self.tags.names):
            yield (
                "tags are numbers without names, so words are counted, not entities: a list of the names in the order "
                "of the numbers, in labels.json beside the file, names them"
            )
        if self.tags.without_prefix:
            listed = first_names(self.tags.without_prefix)
            yield f"words are counted, not entities: among tags such as B-person and I-person, {listed} have no prefix"
        if self.tags.mark_entities:
            sequences = [[self.tags.names[tag] for tag in tags] for tags in _tags(split)]
            broken = [pair for pair in zip(split.records.places, scheme_breaks(sequences)) if pair[1]]
            if broken:
                place, found = broken[0]
                count = f"{len(broken):,} {name} records break the scheme of their tags"
                yield f"{count}, first {place}: {found}; an entity is counted as ending or beginning there"
        words = sum(len(example.words) for example in split.examples)
        if num_lost := words - sum(len(window.words) for window in split.windows):
            default = self.tags.names[self.tags.default]
            yield f"{num_lost:,} words of {name} have no tokens and always get the tag {default}"

    def describe_example(self, tokenizer: PreTrainedTokenizerBase, train: Split[TaggedWords]) -> str:
        """Return the record with the most different tags among the first ones."""
        words, tags = max(train.examples[:50], key=lambda example: len(set(example.tags or ())))
        return " ".join(
            f"{word}/{self.tags.names[tag]}" if tag != self.tags.default else word
            for word, tag in zip(words, tags or ())
        )


def _place_in_text(
    record: Mapping[str, Any], places: Sequence[tuple[int, int]], first: int, last: int
) -> dict[str, Any]:
    """Return text, start and end of an entity in running text; nothing of one in a list of words."""
    if not places:
        return {}
    start, end = places[first][0], places[last][1]
    return {"text": record["text"][start:end], "start": start, "end": end}


def _sentences(split: Split[TaggedWords]) -> list[list[str]]:
    return [example.words for example in split.examples]


def _tags(split: Split[TaggedWords]) -> list[list[int]]:
    return [example.tags or [] for example in split.examples]


def read_tags(train: Records) -> Tags:
    """
    Find the tags of training records. Their order comes from `labels.json` beside the file, else O is the first and the
    others follow by alphabet.

    Raises:
        InputError: a record has no tags, all words have the same tag, or a tag has no prefix where others have one.
    """
    field = train.name_of("tags")
    counts = Counter(label_text(tag) for tags in train.values("tags") for tag in tags)
    names = listed_names(Path(train.path).parent / "labels.json", field) or train.classes("tags")
    if names:
        ids = label_ids(names, counts)
    else:
        names = sorted(counts, key=lambda name: (name != "O", name))
        ids = {name: number for number, name in enumerate(names)}
    if len(counts) < 2:
        raise InputError(f"{train.path}: all words have the tag {next(iter(counts), None)!r} in field {field!r}")
    tags = Tags(names, ids, default=0)
    if tags.without_prefix and "O" in names:
        # Without this refusal one slip of the pen would make another metric of the whole run.
        _refuse_without_prefix(train, field, tags)
    if tags.mark_entities and "O" in names:
        return Tags(names, ids, default=names.index("O"))
    return Tags(names, ids, default=ids.get(counts.most_common(1)[0][0], 0))


def _refuse_without_prefix(train: Records, field: str, tags: Tags) -> None:
    """Raise an `InputError` that names the first record with a tag without a prefix, if there is any."""
    wrong = set(tags.without_prefix)
    for place, row in zip(train.places, train.values("tags")):
        for number, tag in enumerate(row, 1):
            name = tags.names[tags.ids[label_text(tag)]]
            if name in wrong:
                raise InputError(
                    f"{place}: tag {number} in field {field!r} is {name!r}, without a prefix such as B- and I-, which "
                    "other tags have to mark entities: mend it"
                )


def scheme_breaks(sequences: Sequence[Sequence[str]]) -> list[str]:
    """
    Return for each sequence of tags the first place where it breaks the scheme of all of them, such as "I-PER after
    S-PER", or nothing.

    With tags for ends or single words (IOBES, BILOU, BMES), an entity that begins must end, and one that goes on must
    have begun. In IOB2 it must have begun. In IOB1, where I begins most entities, nothing is wrong.
    """
    has_ends = any(tag[:1] in "ESLU" for tags in sequences for tag in set(tags))
    pairs = [list(zip(["O", *tags], [*tags, "O"])) for tags in sequences]
    is_iob2 = any(tag[:1] == "B" and before[2:] != tag[2:] for row in pairs for before, tag in row)

    def is_broken(before: str, tag: str) -> bool:
        goes_on, is_open = tag[:1] in "IMEL", before[:1] in "BIM"
        fits = goes_on and before[:1] in ("BIM" if has_ends else "BI") and before[2:] == tag[2:]
        return (goes_on and not fits) or (has_ends and is_open and not fits)

    if not has_ends and not is_iob2:
        return [""] * len(sequences)
    return [next((f"{tag} after {before}" for before, tag in row if is_broken(before, tag)), "") for row in pairs]


def find_entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """
    Return the entities in tags of the schemes IOB1, IOB2, IOBES, BILOU and BMES as (type, first word, last word).

    seqeval finds them, as conlleval does: an I that continues no entity begins one.
    """
    from seqeval.metrics.sequence_labeling import get_entities

    return set(get_entities([tag[:1].translate(_AS_IOBES) + tag[1:] for tag in tags]))


def dictionary_tags(
    train_sentences: Sequence[Sequence[str]],
    train_tags: Sequence[Sequence[int]],
    sentences: Sequence[Sequence[str]],
) -> list[list[int]]:
    """
    Tag words by a dictionary of the training words: each word gets its most frequent tag, a new word that of rare
    training words with (or without) a capital letter.
    """
    counts: dict[str, Counter[int]] = {}
    for words, tags in zip(train_sentences, train_tags):
        for word, tag in zip(words, tags):
            counts.setdefault(word, Counter())[tag] += 1
    usual_tags = {word: by_tag.most_common(1)[0][0] for word, by_tag in counts.items()}
    rare: dict[bool, Counter[int]] = {True: Counter(), False: Counter()}
    for word, by_tag in counts.items():
        if by_tag.total() == 1:
            rare[word[:1].isupper()].update(by_tag)
    totals: Counter[int] = sum(counts.values(), Counter())
    guess = {case: (by_tag or totals).most_common(1)[0][0] for case, by_tag in rare.items()}
    return [[usual_tags.get(word, guess[word[:1].isupper()]) for word in words] for words in sentences]


def _f1(counts: np.ndarray) -> np.ndarray:
    return 2 * counts[:, _CORRECT] / np.maximum(counts[:, _PREDICTED] + counts[:, _ACTUAL], 1)
