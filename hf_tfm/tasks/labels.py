"""Labels of records: their names and ids, how files write them, and the figures of predicted ones."""

import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import InputError
from ..core.statistics import Estimate, bootstrap, correlations, proportion
from ..data.records import Records, read_list


SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
PROBLEM_TYPES = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)
_METRICS = {
    SINGLE_LABEL: ("accuracy", "macro_f1", "matthews"),
    MULTI_LABEL: ("micro_f1", "macro_f1", "exact_match"),
    REGRESSION: ("spearman", "pearson", "rmse"),
}


# So many labels that differ in nearly all records are no classes; labels of so many characters are texts to write.
_MANY_LABELS, _LONG_LABEL = 20, 60
_WHOLE_NUMBER = re.compile(r"[-+]?\d+\.0+")


@dataclass(frozen=True)
class Labels:
    """
    The labels of a classification task.

    Attributes:
        problem_type: transformers' name of the kind of task, one of `PROBLEM_TYPES`.
        names: the labels in the order of their ids; for regression the name of the field.
        field: name of the label's field in the users' file, for messages.
        ids: a label as a record may write it (as text) to its id.
        known: ids that occur in the training records; others cannot be learned and are refused.
    """

    problem_type: str
    names: list[str]
    field: str
    ids: dict[str, int]
    known: frozenset[int] | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the figures; the first one chooses the best checkpoint."""
        return _METRICS[self.problem_type]

    def config_fields(self) -> dict[str, Any]:
        """Return fields of a model's configuration."""
        return {"problem_type": self.problem_type, **label_fields(self.names)}

    def encode(self, records: Records) -> list[Any]:
        """
        Return labels as models take them: ids, tuples of 0.0 and 1.0, or numbers.

        Raises:
            InputError: a label is missing, of the wrong kind, or not known from training.
        """
        labels: list[Any] = []
        for value, place in zip(records.values("label"), records.places):
            if self.problem_type == REGRESSION:
                labels.append(_read_number(_single(value), place, self.field))
            elif self.problem_type == MULTI_LABEL:
                ids = {self._id(label, place) for label in split_labels(value)}
                labels.append(tuple(float(number in ids) for number in range(len(self.names))))
            else:
                labels.append(self._id(_single(value), place))
        return labels

    def _id(self, value: Any, place: str) -> int:
        if not label_text(value).strip():  # a table's empty cell
            raise InputError(f"{place}: a label in field {self.field!r} is blank; mend or drop this record")
        number = self.ids.get(label_text(value))
        if number is None or (self.known is not None and number not in self.known):
            raise InputError(
                f"{place}: label {value!r} in field {self.field!r} is not among those that training knows: "
                f"{first_names(self.names)}"
            )
        return number

    def name_of(self, label: Any) -> str:
        """Return an encoded label as text."""
        if self.problem_type == MULTI_LABEL:
            return ", ".join(name for name, holds in zip(self.names, label) if holds) or "none"
        return self.names[label] if self.problem_type == SINGLE_LABEL else f"{label:g}"

    def occurring(self, labels: Sequence[Any]) -> set[int]:
        """Return the ids that occur among encoded labels."""
        if self.problem_type == MULTI_LABEL:
            return {number for row in labels for number, holds in enumerate(row) if holds}
        return set(labels) if self.problem_type == SINGLE_LABEL else set()

    def counts(self, labels: Sequence[Any]) -> dict[str, int] | dict[str, float]:
        """Return the number of records of each label; for regression the range of the numbers."""
        if self.problem_type == REGRESSION:
            return {"lowest": min(labels), "mean": sum(labels) / len(labels), "highest": max(labels)}
        multi = self.problem_type == MULTI_LABEL
        counts = np.sum(labels, 0) if multi else np.bincount(labels, minlength=len(self.names))
        return {name: int(count) for name, count in zip(self.names, counts)}

    def figures(self, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Return the metrics of predicted labels."""
        from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, root_mean_squared_error

        if self.problem_type == REGRESSION:
            return {
                **correlations(predictions, labels),
                "rmse": float(root_mean_squared_error(labels, predictions)),
            }
        labels, predictions = np.asarray(labels).astype(int), np.asarray(predictions).astype(int)
        if self.problem_type == SINGLE_LABEL:
            return {
                "accuracy": float(accuracy_score(labels, predictions)),
                "macro_f1": float(f1_score(labels, predictions, average="macro")),
                "matthews": float(matthews_corrcoef(labels, predictions)),
            }
        # scikit-learn takes a single column for two classes.
        averages = {name: "binary" if labels.shape[1] == 1 else name for name in ("micro", "macro")}
        return {
            **{
                f"{name}_f1": float(f1_score(labels, predictions, average=average, zero_division=0))
                for name, average in averages.items()
            },
            "exact_match": float((predictions == labels).all(-1).mean()),
        }

    def estimates(self, predictions: np.ndarray, labels: Sequence[Any]) -> dict[str, Estimate]:
        """Return the metrics with 95 % intervals: Wilson's for shares of records, bootstrapped ones for the others."""
        labels = np.asarray(labels)
        with warnings.catch_warnings():  # a resample may have one label only
            warnings.simplefilter("ignore")
            estimates = bootstrap(self.figures, predictions, labels)
        for share in ("accuracy", "exact_match"):
            if share in estimates:
                n = len(labels)
                estimates[share] = proportion(round(estimates[share].value * n), n)
        return estimates


def read_labels(train: Records, problem_type: str | None = None) -> Labels:
    """
    Find the labels of training records.

    Lists of labels make a multi-label task unless each has one label, numbers with a fraction a regression; all else
    has one label a record.
    Names and order come from `labels.json` beside the file (a list, or lists by field), else from the file (names of
    classes in Parquet, columns), else from a field `{field}_text` of the records, else from the labels themselves:
    numbers by value, texts by alphabet.

    Raises:
        InputError: a label is missing or of the wrong kind, names contradict one another, or there is one class only.
    """
    if problem_type not in (None, *PROBLEM_TYPES):
        raise InputError(f"problem_type {problem_type!r} must be one of {', '.join(PROBLEM_TYPES)}")
    field, values = train.name_of("label"), train.values("label")
    asked, problem_type = problem_type, problem_type or _infer_problem_type(values)
    if problem_type == REGRESSION:
        return Labels(problem_type, [field], field, {})

    texts = label_texts(values, problem_type)
    if problem_type == SINGLE_LABEL and not asked:
        _refuse_other_jobs(train, field, list(texts))
    name_list = listed_names(Path(train.path).parent / "labels.json", field) or train.classes("label")
    names_by_text = None if name_list or problem_type == MULTI_LABEL else _read_names_beside(train, field)
    if name_list:
        names, ids = name_list, label_ids(name_list, texts)
    else:
        order = sorted(texts, key=_sort_key(texts))
        names = [names_by_text[text] for text in order] if names_by_text else order
        ids = {text: number for number, text in enumerate(order)}
    if len(names) != len(set(names)):
        raise InputError(f"{train.path}: two labels of field {field!r} have the same name")
    labels = Labels(problem_type, names, field, ids)
    occurring = labels.occurring(labels.encode(train))
    if len(occurring) < (1 if problem_type == MULTI_LABEL else 2):
        only = (
            f"all {len(train)} records have the label {names[min(occurring)]!r}" if occurring else "no record has any"
        )
        raise InputError(f"{train.path}: {only} in field {field!r}; a classifier needs two to tell apart")
    return replace(labels, known=frozenset(occurring))


def label_fields(names: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a configuration that hold label names."""
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: number for number, name in enumerate(names)},
    }


def label_text(value: Any) -> str:
    """Return a label as text, the same from JSON (1, 1.0) and CSV ("1", "1.0", "1 ")."""
    text = str(value).strip()
    return text.split(".")[0] if _WHOLE_NUMBER.fullmatch(text) else text


def label_texts(values: Sequence[Any], problem_type: str) -> dict[str, None]:
    """Return the labels that occur in a field, as text, in the order of their first record."""
    multi = problem_type == MULTI_LABEL
    lists = (split_labels(value) if multi or isinstance(value, list) else [value] for value in values)
    return dict.fromkeys(label_text(label) for labels in lists for label in labels)


def label_ids(names: Sequence[str], texts: Iterable[str]) -> dict[str, int]:
    """
    Map labels as the records of a file write them, as names or as numbers from 0, to ids.

    Where names are numbers themselves, such as the stars of a review, "1" may be a name or an id. Then all records are
    taken to write names if every text is a name, else ids.
    """
    by_number = {str(number): number for number in range(len(names))}
    by_name = {label_text(name): number for number, name in enumerate(names)}
    if all(by_number.get(name, number) == number for name, number in by_name.items()):
        return by_number | by_name
    return by_name if by_name.keys() >= set(texts) else by_number


def split_labels(value: Any) -> list[Any]:
    """Return the labels of a multi-label record: a list, or text (CSV) of a list or with commas."""
    if isinstance(value, str) and (entries := read_list(value)) is not None:
        return entries
    if isinstance(value, str):
        return [name.strip() for name in value.split(",") if name.strip()]
    return value if isinstance(value, list) else [value]


def listed_names(path: Path, field: str) -> list[str] | None:
    """Return the names of a field from a `labels.json`; None if there is no such file or it has none for the field."""
    if not path.is_file():
        return None
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable list of labels ({error})") from None
    names = contents.get(field) if isinstance(contents, dict) else contents
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise InputError(f"{path}: must be a list of names, or a list for each field")
    return names or None


def first_names(names: Sequence[str]) -> str:
    """Return the first eight names, for messages."""
    return ", ".join(names[:8]) + (" …" if len(names) > 8 else "")


def describe_counts(counts: dict[str, int] | dict[str, float], limit: int = 6) -> str:
    """Return labels with their numbers of records in one line, the most frequent first."""
    if any(isinstance(count, float) for count in counts.values()):
        return ", ".join(f"{name} {value:.4g}" for name, value in counts.items())
    entries = [f"{name} {count:,}" for name, count in Counter(counts).most_common(limit)]
    num_remaining = len(counts) - len(entries)
    return ", ".join(entries) + (
        f", and {num_remaining} more (fewest {min(counts.values()):,})" if num_remaining else ""
    )


def _infer_problem_type(values: list[Any]) -> str:
    singles = [_single(value) for value in values]
    if any(isinstance(value, list) for value in singles):
        return MULTI_LABEL
    try:
        numbers = [float(value) for value in singles]
    except (TypeError, ValueError):
        return SINGLE_LABEL
    return SINGLE_LABEL if all(number.is_integer() for number in numbers) else REGRESSION


def _single(value: Any) -> Any:
    """The label in a list of one."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _refuse_other_jobs(train: Records, field: str, texts: Sequence[str]) -> None:
    """Raise an `InputError` if nearly each record has a label of its own: long texts, ids or fine numbers."""
    if len(texts) < _MANY_LABELS or len(texts) < 0.9 * len(train):
        return
    longest = sum(map(len, texts)) / len(texts)
    if longest > _LONG_LABEL:
        advice = "such texts are answers to write: finetune_instruct or finetune_translation learns that"
    elif all(re.fullmatch(r"[-+]?\d+", text) for text in texts):
        advice = "numbers to predict need --problem_type regression"
    else:
        advice = "--label_field names the right one"
    raise InputError(
        f"{train.path}: field {field!r} has {len(texts):,} different labels in {len(train):,} records "
        f"({texts[0]!r:.40}, {texts[1]!r:.40}, …); {advice}, and --problem_type {SINGLE_LABEL} takes them for classes"
    )


def _read_number(value: Any, place: str, field: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{place}: field {field!r} is {value!r}, not a number, but the task is regression") from None
    if not np.isfinite(number):
        raise InputError(f"{place}: field {field!r} is {value}; mend or drop this record")
    return number


def _sort_key(texts: Iterable[str]) -> Callable[[str], Any]:
    """Numbers sort by value if all texts are numbers."""
    try:
        numbers = {text: float(text) for text in texts}
    except ValueError:
        return str
    return numbers.__getitem__


def _read_names_beside(train: Records, field: str) -> dict[str, str] | None:
    """Names by label from the field `{field}_text`, if all records have it."""
    if not all("label_text" in record for record in train):
        return None
    names: dict[str, str] = {}
    for record, place in zip(train, train.places):
        text, name = label_text(record["label"]), record["label_text"]
        if names.setdefault(text, name) != name:
            raise InputError(f"{place}: label {text} is {name!r} here but {names[text]!r} before; mend '{field}_text'")
    return names
