"""What a text classification task is: its labels as the data names them, its loss, its figures, its baselines."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ..core.errors import InputError
from ..core.limits import refuse_diverged
from ..core.statistics import Estimate, bootstrap, proportion
from ..data.records import Records, read_list


PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
_SINGLE, _MULTI, _REGRESSION = PROBLEM_TYPES
_METRICS = {
    _SINGLE: ("accuracy", "macro_f1", "matthews"),
    _MULTI: ("micro_f1", "macro_f1", "exact_match"),
    _REGRESSION: ("spearman", "pearson", "rmse"),
}
_SHOWN_CELLS = 20  # a confusion matrix of more labels than this is drawn without figures in its cells


@dataclass(frozen=True)
class Task:
    """
    How records become labels, and outputs become figures.

    Attributes:
        problem_type: by transformers' name, one of `PROBLEM_TYPES`.
        names: the labels in the order of their ids; for regression the name of the field.
        field: where a record has its label.
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
        """Names of the figures; by the first one the best checkpoint is chosen, on the validation records."""
        return _METRICS[self.problem_type]

    def config_fields(self) -> dict[str, Any]:
        """Fields of a model's configuration."""
        return {
            "num_labels": len(self.names),
            "problem_type": self.problem_type,
            "id2label": dict(enumerate(self.names)),
            "label2id": {name: number for number, name in enumerate(self.names)},
        }

    def encode(self, records: Records) -> list[Any]:
        """
        Labels as the models take them: ids, rows of 0.0 and 1.0, or numbers.

        Raises:
            InputError: a label is missing, of the wrong kind, or not known from training.
        """
        labels: list[Any] = []
        for value, place in zip(records.values(self.field, "label_field"), records.places):
            if self.problem_type == _REGRESSION:
                labels.append(_number(value, place, self.field))
                continue
            ids = [self._id(one, place) for one in (_several(value) if self.problem_type == _MULTI else [value])]
            labels.append([float(i in ids) for i in range(len(self.names))] if self.problem_type == _MULTI else ids[0])
        return labels

    def _id(self, value: Any, place: str) -> int:
        if not written_label(value).strip():  # as a table leaves a label open
            raise InputError(f"{place}: a label in field {self.field!r} is blank; mend or drop this record")
        number = self.ids.get(written_label(value))
        if number is None or (self.known is not None and number not in self.known):
            there = ", ".join(self.names[:8]) + (" …" if len(self.names) > 8 else "")
            raise InputError(
                f"{place}: label {value!r} in field {self.field!r} is not among those that training knows: {there}"
            )
        return number

    def name_of(self, label: Any) -> str:
        """An encoded label as a person reads it."""
        if self.problem_type == _MULTI:
            return ", ".join(name for name, holds in zip(self.names, label) if holds) or "none"
        return self.names[label] if self.problem_type == _SINGLE else f"{label:g}"

    def occurring(self, labels: list[Any]) -> set[int]:
        """Ids that occur among encoded labels."""
        if self.problem_type == _MULTI:
            return {number for row in labels for number, holds in enumerate(row) if holds}
        return set(labels) if self.problem_type == _SINGLE else set()

    def counts(self, labels: list[Any]) -> dict[str, int] | dict[str, float]:
        """Records for each label by name; for regression the range of the numbers."""
        if self.problem_type == _REGRESSION:
            return {"lowest": min(labels), "mean": sum(labels) / len(labels), "highest": max(labels)}
        counts = np.sum(labels, 0) if self.problem_type == _MULTI else np.bincount(labels, minlength=len(self.names))
        return {name: int(count) for name, count in zip(self.names, counts)}

    def class_weights(self, labels: list[Any]) -> torch.Tensor:
        """Weights that let every class count the same; their mean over the training records is 1."""
        if self.problem_type != _SINGLE:
            raise InputError(f"--class_weights is for one label a record; this task is a {self.problem_type}")
        counts = np.bincount(labels, minlength=len(self.names))
        weights = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
        return torch.tensor(weights, dtype=torch.float32)

    def loss(self, weights: torch.Tensor | None = None, smoothing: float = 0.0) -> Callable[..., torch.Tensor]:
        """
        A `compute_loss_func` for Trainer: the mean over all accumulated batches.

        transformers' classifiers differ in this: some leave `num_items_in_batch` unread, and are then trained on a
        loss that is too large by the number of accumulated batches.
        """

        def compute(
            outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
        ) -> torch.Tensor:
            logits = outputs["logits"].float()
            if self.problem_type == _SINGLE:
                weight = None if weights is None else weights.to(logits.device)
                loss = F.cross_entropy(logits, labels, weight=weight, reduction="sum", label_smoothing=smoothing)
            elif self.problem_type == _MULTI:
                loss = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="sum")
            else:
                loss = F.mse_loss(logits.squeeze(-1), labels.float(), reduction="sum")
            return loss / (labels.numel() if num_items_in_batch is None else num_items_in_batch)

        return compute

    def decide(self, logits: np.ndarray) -> np.ndarray:
        """Predictions from logits `(records, labels)`: ids, rows of 0 and 1, or numbers."""
        refuse_diverged(logits)
        if self.problem_type == _SINGLE:
            return logits.argmax(-1)
        return (logits > 0).astype(int) if self.problem_type == _MULTI else logits[:, 0]

    def figures(self, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """The task's metrics, as scikit-learn and scipy compute them."""
        if self.problem_type == _REGRESSION:
            return {
                "spearman": _correlation(_ranks(predictions), _ranks(labels)),
                "pearson": _correlation(predictions, labels),
                "rmse": float(np.sqrt(np.mean((predictions - labels) ** 2))),
            }
        if self.problem_type == _MULTI:
            hits = (predictions * labels).sum(0)
            predicted, actual = predictions.sum(0), labels.sum(0)
            return {
                "micro_f1": float(_f1(hits.sum(), predicted.sum(), actual.sum())),
                "macro_f1": float(_f1(hits, predicted, actual).mean()),
                "exact_match": float((predictions == labels).all(-1).mean()),
            }
        matrix = confusion_matrix(predictions, labels, len(self.names))
        hits, predicted, actual = matrix.diagonal(), matrix.sum(0), matrix.sum(1)
        there = predicted + actual > 0
        n = len(labels)
        spread = np.sqrt(float(n**2 - (predicted**2).sum())) * np.sqrt(float(n**2 - (actual**2).sum()))
        return {
            "accuracy": float(hits.sum() / n),
            "macro_f1": float(_f1(hits, predicted, actual)[there].mean()),
            "matthews": float((hits.sum() * n - predicted @ actual) / spread) if spread else 0.0,
        }

    def estimates(self, predictions: np.ndarray, labels: Sequence[Any]) -> dict[str, Estimate]:
        """The metrics with 95 % intervals: Wilson's for shares of records, bootstrapped ones for the others."""
        labels = np.asarray(labels)
        estimates = bootstrap(self.figures, predictions, labels)
        for share in ("accuracy", "exact_match"):
            if share in estimates:
                n = len(labels)
                estimates[share] = proportion(round(estimates[share].value * n), n)
        return estimates


def read_task(train: Records, field: str = "label", problem_type: str | None = None) -> Task:
    """
    The task that the training records pose.

    Lists of labels make a multi-label task, numbers with a fraction regression, all else one label a record. Names
    and order come from `labels.json` beside the file (a list, or lists by field), else from a `{field}_text` beside
    the label, else from the labels themselves, numbers in their order and texts in the alphabet's.

    Raises:
        InputError: a label is missing, of the wrong kind or names contradict one another; there is one class only.
    """
    if problem_type not in (None, *PROBLEM_TYPES):
        raise InputError(f"problem_type {problem_type!r} must be one of {', '.join(PROBLEM_TYPES)}")
    values = train.values(field, "label_field")
    problem_type = problem_type or _guess(values)
    if problem_type == _REGRESSION:
        return Task(problem_type, [field], field, {})

    written = written_labels(values, problem_type)
    listed = listed_names(Path(train.path).parent / "labels.json", field)
    told = None if listed or problem_type == _MULTI else _told_names(train, field)
    if listed:
        names, ids = listed, label_ids(listed, written)
    else:
        order = sorted(written, key=_order(written))
        names = [told[value] for value in order] if told else order
        ids = {value: number for number, value in enumerate(order)}
    if len(names) != len(set(names)):
        raise InputError(f"{train.path}: two labels of field {field!r} have the same name")
    task = Task(problem_type, names, field, ids)
    occurring = task.occurring(task.encode(train))
    if len(occurring) < (1 if problem_type == _MULTI else 2):
        only = (
            f"all {len(train)} records have the label {names[min(occurring)]!r}" if occurring else "no record has any"
        )
        raise InputError(f"{train.path}: {only} in field {field!r}; a classifier needs two to tell apart")
    return replace(task, known=frozenset(occurring))


def confusion_matrix(predictions: np.ndarray, labels: np.ndarray, size: int) -> np.ndarray:
    """Counts `(actual, predicted)`."""
    return np.bincount(np.asarray(labels) * size + predictions, minlength=size * size).reshape(size, size)


def baselines(
    task: Task, train_texts: Sequence[str], train_labels: Sequence[Any], texts: Sequence[str]
) -> dict[str, np.ndarray]:
    """Predictions of what costs next to nothing: the most frequent label (or mean), and a linear model over TF-IDF."""
    from sklearn.dummy import DummyClassifier, DummyRegressor
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_union

    # In a large set what occurs once helps nobody and makes the fit many times slower.
    often = 2 if len(train_texts) >= 1000 else 1
    words_and_characters = make_union(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=often),
        TfidfVectorizer(analyzer="char", ngram_range=(2, 4), sublinear_tf=True, min_df=often),
    )
    try:
        vectors = (vectorizer := words_and_characters).fit_transform(train_texts)
    except ValueError:  # there are no words, as in emoji, or none stands in two texts
        vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 4), sublinear_tf=True)
        vectors = vectorizer.fit_transform(train_texts)
    seen = vectorizer.transform(texts)
    if task.problem_type == _REGRESSION:
        models = {"mean": DummyRegressor(), "TF-IDF + ridge": Ridge()}
    else:
        linear = LogisticRegression(C=10, max_iter=1000)
        linear = OneVsRestClassifier(linear) if task.problem_type == _MULTI else linear
        models = {
            "majority": DummyClassifier(strategy="most_frequent"),
            "TF-IDF + logistic regression": linear,
        }
    target = np.asarray(train_labels)
    if task.problem_type == _MULTI:
        target = target.astype(int)
    # scikit-learn gives a single column as a plain row.
    return {
        name: np.asarray(model.fit(vectors, target).predict(seen)).reshape(len(texts), *target.shape[1:])
        for name, model in models.items()
    }


def plot_confusion(matrix: np.ndarray, names: Sequence[str], path: Path) -> None:
    """A confusion matrix as a PNG; colours are shares of the actual label's records, figures are records."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = min(max(4.0, 0.45 * len(names)), 16.0)
    figure, axes = plt.subplots(figsize=(side + 1.5, side), layout="constrained")
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the label's records", shrink=0.8)
    size = 9 if len(names) <= _SHOWN_CELLS else 6
    ticks = range(len(names))
    # Two dollars in a label are no formula.
    axes.set_xticks(ticks, names, rotation=90 if len(names) > 4 else 0, fontsize=size, parse_math=False)
    axes.set_yticks(ticks, names, fontsize=size, parse_math=False)
    axes.set(xlabel="predicted", ylabel="actual")
    if len(names) <= _SHOWN_CELLS:
        for (actual, predicted), count in np.ndenumerate(matrix):
            color = "white" if shares[actual, predicted] > 0.5 else "black"
            axes.text(predicted, actual, str(count), ha="center", va="center", fontsize=size, color=color)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)


def _guess(values: list[Any]) -> str:
    if any(isinstance(value, list) for value in values):
        return _MULTI
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        return _SINGLE
    return _SINGLE if all(number.is_integer() for number in numbers) else _REGRESSION


def written_label(value: Any) -> str:
    """A label as text, the same from JSON (1, 1.0) and CSV ("1")."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def written_labels(values: Sequence[Any], problem_type: str) -> dict[str, None]:
    """The labels that occur in a field, as text, in the order of their first record."""
    several = (_several(value) if problem_type == _MULTI else [value] for value in values)
    return dict.fromkeys(written_label(one) for labels in several for one in labels)


def label_ids(names: Sequence[str], written: Iterable[str]) -> dict[str, int]:
    """
    Ids by what the records of a file write: names, or numbers from 0. Where names are numbers themselves, as the stars
    of a review, "1" could be either: then all records write the one or all the other.
    """
    by_number = {str(number): number for number in range(len(names))}
    by_name = {name: number for number, name in enumerate(names)}
    if all(by_number.get(name, number) == number for name, number in by_name.items()):
        return by_number | by_name
    return by_name if by_name.keys() >= set(written) else by_number


def _several(value: Any) -> list[Any]:
    """The labels of a multi-label record: a list, or text (CSV) that [`read_list`] reads or that has commas."""
    if isinstance(value, str) and (listed := read_list(value)) is not None:
        return listed
    if isinstance(value, str):
        return [name.strip() for name in value.split(",") if name.strip()]
    return value if isinstance(value, list) else [value]


def _number(value: Any, place: str, field: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise InputError(f"{place}: field {field!r} is {value!r}, not a number, but the task is regression") from None
    if not np.isfinite(number):
        raise InputError(f"{place}: field {field!r} is {value}; mend or drop this record")
    return number


def _order(written: dict[str, None]) -> Callable[[str], Any]:
    try:
        numbers = {value: float(value) for value in written}
    except ValueError:
        return str
    return numbers.__getitem__


def listed_names(path: Path, field: str) -> list[str] | None:
    """Names from a `labels.json`, if there is one that names this field."""
    if not path.is_file():
        return None
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable list of labels ({error})") from None
    names = listed.get(field) if isinstance(listed, dict) else listed
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise InputError(f"{path}: must be a list of names, or a list for each field")
    return names or None


def _told_names(train: Records, field: str) -> dict[str, str] | None:
    """Names from `{field}_text`, if all records have it."""
    beside = f"{field}_text"
    if not all(isinstance(record.get(beside), str) for record in train):
        return None
    told: dict[str, str] = {}
    for record, place in zip(train, train.places):
        value, name = written_label(record[field]), record[beside]
        if told.setdefault(value, name) != name:
            raise InputError(f"{place}: label {value} is {name!r} here but {told[value]!r} before; mend {beside!r}")
    return told


def _f1(hits: Any, predicted: Any, actual: Any) -> Any:
    return np.divide(2.0 * hits, np.maximum(predicted + actual, 1))


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    spread = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / spread) if spread else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    return rankdata(values)


def describe_counts(counts: dict[str, int] | dict[str, float], most: int = 6) -> str:
    """Labels with their records in one line, the most frequent first."""
    if any(isinstance(count, float) for count in counts.values()):
        return ", ".join(f"{name} {value:.4g}" for name, value in counts.items())
    shown = [f"{name} {count:,}" for name, count in Counter(counts).most_common(most)]
    rest = len(counts) - len(shown)
    return ", ".join(shown) + (f", and {rest} more (fewest {min(counts.values()):,})" if rest else "")
