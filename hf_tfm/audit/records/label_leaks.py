"""What tells the label without reading the text: one word, the length, another field."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...data.records import Records
from ..report import Report
from .label_balance import count_labels
from .subject import DataSubject
from .texts import has_scores, input_of, labels_of


MOST_RECORDS, MOST_WORDS = 20_000, 100
ACCURACY = 0.99  # of a rule that tells the label
_FEWEST = 20  # records of a class, and of all others
_WORD_OR_MARK = re.compile(r"\w+|[^\w\s]")
_LABEL_NAMES = re.compile(r"label|class|categor|target|tag|intent|sentiment|rating|score|gold|stars|answer", re.I)


def check_leaks(subject: DataSubject, report: Report) -> None:
    """Report words, lengths and fields of the training split that tell the label alone."""
    records = subject.splits.get("train")
    if records is None:
        return
    if subject.job == "preferences":
        _check_preferences(records, report)
    elif subject.job == "classification" and not has_scores([record.get("label") for record in records]):
        _check_classes(subject, records, report)


def _check_classes(subject: DataSubject, records: Records, report: Report) -> None:
    numbers = np.random.default_rng(0).permutation(len(records))[:MOST_RECORDS]
    texts = [input_of(subject.job, records[number]) for number in numbers]
    labels = [set(labels_of(subject.job, records[number])) for number in numbers]
    frequent = [label for label, count in count_labels(subject, "train").most_common(100) if count >= _FEWEST]
    telling = find_telling_words(texts, labels, frequent)
    if telling:
        report.add("P610", f"{_list_words(telling)} (by {len(texts):,} records of the train split)")
    names = {name for name in records.names.values() if isinstance(name, str)}
    sample = records.subset(sorted(numbers.tolist()))
    sample_labels = [str(labels_of(subject.job, record)) for record in sample]
    lengths = [float(len(input_of(subject.job, record))) for record in sample]
    if (accuracy := tell_by_number(lengths, sample_labels)) is not None:
        report.add("P614", f"the number of characters of the text tells the label of {accuracy:.1%} of records")
    telling_fields = find_telling_fields(sample.rows, sample_labels, names)
    if telling_fields:
        listed = ", ".join(f"{name!r} ({accuracy:.1%})" for name, accuracy in telling_fields.items())
        report.add("P614", f"these fields beside the text tell the label alone (share of records): {listed}")


def _check_preferences(records: Records, report: Report) -> None:
    """Report words that tell which answer is the better one, and a better one that is nearly always longer."""
    numbers = np.random.default_rng(0).permutation(len(records))[: MOST_RECORDS // 2]
    sides = {side: [records[number][side][0]["content"] for number in numbers] for side in ("chosen", "rejected")}
    texts = [*sides["chosen"], *sides["rejected"]]
    labels = [{"chosen"}] * len(numbers) + [{"rejected"}] * len(numbers)
    if telling := find_telling_words(texts, labels, ["chosen", "rejected"]):
        report.add("P610", f"{_list_words(telling)} (by {len(numbers):,} pairs of the train split)")
    longer = sum(len(chosen) > len(rejected) for chosen, rejected in zip(sides["chosen"], sides["rejected"]))
    share = longer / len(numbers)
    if len(numbers) >= _FEWEST and max(share, 1 - share) >= 0.9:
        which = "longer" if share >= 0.9 else "not longer"
        report.add(
            "P619", f"the chosen answer is {which} than the rejected one in {max(share, 1 - share):.0%} of pairs"
        )


def _list_words(telling: dict[str, tuple[str, float, float]]) -> str:
    return "; ".join(
        f"{word} is in {inside:.1%} of the texts with the label {label!r} and in {outside:.1%} of the others"
        for label, (word, inside, outside) in list(telling.items())[:5]
    )


def find_telling_words(
    texts: Sequence[str], labels: Sequence[set[str]], wanted: Sequence[str]
) -> dict[str, tuple[str, float, float]]:
    """
    Returns for each label that one word tells: the word, and its share in the texts with and without this label.

    A word, or its place at the beginning or the end, is chosen by one half of the texts and judged by the other: it
    tells the label if the mean of both shares that are right (balanced accuracy) is at least `ACCURACY`.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    if not texts:
        return {}
    counter = CountVectorizer(analyzer=_features, binary=True, min_df=min(5, len(texts)), max_features=50_000)
    try:
        counts = counter.fit_transform(texts).tocsr()
    except ValueError:  # no word is in enough texts
        return {}
    names = counter.get_feature_names_out()
    half = np.arange(len(texts)) % 2 == 0
    telling: dict[str, tuple[str, float, float]] = {}
    for label in wanted:
        has_label = np.array([label in several for several in labels])
        shares = {}
        for name, rows in (("choose", half), ("judge", ~half)):
            inside, outside = counts[rows & has_label], counts[rows & ~has_label]
            if min(inside.shape[0], outside.shape[0]) < _FEWEST // 2:
                break
            shares[name] = (np.asarray(inside.mean(0)).ravel(), np.asarray(outside.mean(0)).ravel())
        if len(shares) < 2:
            continue
        balanced = {name: (1 + inside - outside) / 2 for name, (inside, outside) in shares.items()}
        best = int(balanced["choose"].argmax())
        if min(balanced["choose"][best], balanced["judge"][best]) >= ACCURACY:
            inside, outside = shares["judge"]
            telling[label] = (str(names[best]), float(inside[best]), float(outside[best]))
    return telling


def _features(text: str) -> set[str]:
    """The words and marks of a text, those with capitals also as they stand, and its first and last one."""
    words = _WORD_OR_MARK.findall(text)
    ends = [*words[:MOST_WORDS], *words[MOST_WORDS:][-MOST_WORDS:]]
    features = {f"{word!r}" for word in ends}
    features.update(f"{word.casefold()!r}" for word in ends)
    if words:
        features.update((f"{words[0]!r} at the beginning", f"{words[-1]!r} at the end"))
    return features


def find_telling_fields(rows: Sequence[dict[str, Any]], labels: Sequence[str], used: set[str]) -> dict[str, float]:
    """
    Returns the fields that tell the label alone, with the share of records of which they tell it.

    Fields that were read, those that are the label under another name, and free text are left out.
    """
    telling = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values: list[Any] = [row.get(name) for row in rows]
        if name in used or _LABEL_NAMES.search(str(name)) or any(isinstance(value, list | dict) for value in values):
            continue
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            if _is_sorted(values):
                continue  # a number of the row; the order of rows is judged by itself
            accuracy = tell_by_number(values, labels) or tell_by_value(values, labels)
        else:
            accuracy = tell_by_value(values, labels)
        if accuracy is not None:
            telling[str(name)] = accuracy
    return telling


def tell_by_value(values: Sequence[Any], labels: Sequence[str]) -> float | None:
    """
    Returns the share of records whose label is the usual one for their value, if that tells the label, else None.

    The usual label is taken from one half of the records, and the share from the other.
    """
    if _is_one_sided(labels):
        return None
    half = _halves(len(labels))
    usual: dict[str, Counter[str]] = {}
    for value, label, is_first in zip(values, labels, half):
        if is_first:
            usual.setdefault(str(value), Counter())[label] += 1
    frequent = Counter(labels).most_common(1)[0][0]
    tables = {value: counts.most_common(1)[0][0] for value, counts in usual.items()}
    judged = [
        tables.get(str(value), frequent) == label for value, label, first in zip(values, labels, half) if not first
    ]
    accuracy = sum(judged) / len(judged)
    return accuracy if accuracy >= ACCURACY else None


def tell_by_number(values: Sequence[float], labels: Sequence[str]) -> float | None:
    """Returns the share of records whose label a few thresholds of a number tell, if they tell it, else None."""
    from sklearn.tree import DecisionTreeClassifier

    if _is_one_sided(labels):
        return None
    half = _halves(len(labels))
    column = np.nan_to_num(np.asarray(values, dtype=float)).reshape(-1, 1)
    targets = np.asarray(labels)
    tree = DecisionTreeClassifier(max_leaf_nodes=max(2, min(len(set(labels)), 50)), random_state=0)
    accuracy = tree.fit(column[half], targets[half]).score(column[~half], targets[~half])
    return float(accuracy) if accuracy >= ACCURACY else None


def _halves(count: int) -> np.ndarray:
    """Whether each record is in the half that rules are made by; drawn, since files may alternate labels."""
    return np.random.default_rng(1).permutation(count) % 2 == 0


def _is_one_sided(labels: Sequence[str]) -> bool:
    """Whether most records have one label, or there are too few, so that a rule would say nothing."""
    return len(labels) < 2 * _FEWEST or Counter(labels).most_common(1)[0][1] > 0.9 * len(labels)


def _is_sorted(values: Sequence[float]) -> bool:
    differences = np.diff(np.asarray(values, dtype=float))
    return bool((differences > 0).all() or (differences < 0).all())
