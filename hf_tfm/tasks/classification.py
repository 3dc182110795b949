"""Classification of texts and of pairs: one label, several labels, or a number."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import expit, softmax
from torch.nn import functional as F
from transformers import (
    AutoModelForNextSentencePrediction,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..artifacts.record import RunRecord
from ..core.errors import InputError
from ..core.statistics import Estimate
from ..data.forms.form import Reading
from ..data.records import Records
from ..train.base_model import separate_pairs
from ..train.finetune import encode_texts
from ..train.report import input_text
from .labels import MULTI_LABEL, REGRESSION, SINGLE_LABEL, Labels, describe_counts, label_ids, label_texts, read_labels
from .losses import LossFunction
from .soft_labels import SoftLoss, class_loss, label_loss, number_loss
from .task import Outputs, Split, Task, text_key


CONFUSION_FILE = "confusion_matrix.png"
_MAX_CELLS_WITH_COUNTS = 20  # a confusion matrix of more labels is drawn without numbers in its cells


class LabelledText(NamedTuple):
    """One or two texts and their encoded label: an id, a tuple of 0.0 and 1.0, or a number."""

    texts: tuple[str, ...]
    label: Any = None


@dataclass
class Classification(Task[LabelledText]):
    """
    Texts, or pairs of texts, with one label, several labels or a number each.

    Args:
        text_field: field of users' files that has the text; by default recognised, as the following ones.
        text_pair_field: field of the second text, for pairs.
        label_field: field of the label, the labels or the number; several for a column of 0 and 1 for each class.
        problem_type: one of `PROBLEM_TYPES`; by default inferred from the labels.
        class_weights: whether rare labels count as much as frequent ones in the loss.
        pooling: `cls` or `mean`, for encoders that have this choice in place of a pooler.
    """

    model_class = AutoModelForSequenceClassification
    adapter_type = "SEQ_CLS"
    job = "classification"
    fields = {"text": "text_field", "text_pair": "text_pair_field", "label": "label_field"}

    text_field: str | None = None
    text_pair_field: str | None = None
    label_field: str | Sequence[str] | None = None
    problem_type: str | None = None
    class_weights: bool = False
    pooling: str | None = None
    labels: Labels = field(init=False, repr=False)
    has_pairs: bool = field(init=False, default=False)

    def reading(self, *args: Any, **kwargs: Any) -> Reading:
        return replace(super().reading(*args, **kwargs), several=self.problem_type == MULTI_LABEL)

    def learn_labels(self, train: Records) -> None:
        self.labels = read_labels(train, self.problem_type)

    def adopt_labels(self, config: PreTrainedConfig, records: Records | None = None) -> None:
        names = [config.id2label[number] for number in range(config.num_labels)]
        field = records.name_of("label") if records else "label"
        problem_type = config.problem_type or (REGRESSION if len(names) == 1 else SINGLE_LABEL)
        if problem_type == REGRESSION:
            self.labels = Labels(problem_type, names, field, {})
            return
        texts = label_texts(records.values("label"), problem_type) if records else ()
        numbered = (records and records.classes("label")) or []
        if records and numbered and all(map(str.isdigit, numbered)) and len(numbered) != len(names):
            raise InputError(f"{records.path}: has {len(numbered)} classes without names, the model {len(names)}")
        self.labels = Labels(problem_type, names, field, label_ids(names, texts))

    def config_fields(self) -> dict[str, Any]:
        pooling = {"classifier_pooling": self.pooling} if self.pooling else {}
        return {**self.labels.config_fields(), **pooling}

    @property
    def metrics(self) -> tuple[str, ...]:
        return self.labels.metrics

    def read(self, records: Records, labelled: bool = True) -> Split[LabelledText]:
        columns = [records.texts("text")]
        if records and "text_pair" in records[0]:
            columns.append(records.texts("text_pair"))
            self.has_pairs = True
        labels = self.labels.encode(records) if labelled else [None] * len(records)
        return Split(records, [LabelledText(texts, label) for texts, label in zip(zip(*columns), labels)])

    def keys(self, split: Split[LabelledText]) -> list[Hashable]:
        return [text_key(*example.texts) for example in split.examples]

    def strata(self, split: Split[LabelledText]) -> list[Hashable] | None:
        return _labels(split) if self.labels.problem_type == SINGLE_LABEL else None

    def prepare(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        # Some models, such as GPT-2, count positions from the left even where there is padding.
        tokenizer.padding_side = "right"
        if self.has_pairs:
            separate_pairs(tokenizer)

    def encode(
        self,
        split: Split[LabelledText],
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
    ) -> None:
        columns = [list(texts) for texts in zip(*(example.texts for example in split.examples))]
        split.rows = encode_texts(tokenizer, max_length, *columns)

    def add_labels(self, split: Split[LabelledText]) -> None:
        for row, label in zip(split.rows, _labels(split)):
            row["labels"] = label

    def loss(self, train: Split[LabelledText], smoothing: float = 0.0) -> LossFunction:
        """
        Return a `compute_loss_func` for Trainer: the mean over all accumulated batches.

        Some of transformers' classifiers do not read `num_items_in_batch`; their own loss would be too large by the
        number of accumulated batches.
        """
        problem_type = self.labels.problem_type
        for name, setting in (("class_weights", self.class_weights), ("label_smoothing_factor", smoothing)):
            if setting and problem_type != SINGLE_LABEL:
                raise InputError(f"--{name} is for one label a record; this task is a {problem_type}")
        weights = balanced_weights(_labels(train), len(self.labels.names)) if self.class_weights else None

        def compute(
            outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
        ) -> torch.Tensor:
            logits = outputs["logits"].float()
            if problem_type == SINGLE_LABEL:
                weight = None if weights is None else weights.to(logits.device)
                loss = F.cross_entropy(logits, labels, weight=weight, reduction="sum", label_smoothing=smoothing)
            elif problem_type == MULTI_LABEL:
                loss = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="sum")
            else:
                loss = F.mse_loss(logits.squeeze(-1), labels.float(), reduction="sum")
            return loss / (labels.numel() if num_items_in_batch is None else num_items_in_batch)

        return compute

    @property
    def soft_loss(self) -> SoftLoss:
        return {SINGLE_LABEL: class_loss, MULTI_LABEL: label_loss, REGRESSION: number_loss}[self.labels.problem_type]

    def select(self, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the logits `(batch, labels)`; some models, such as BART, return hidden states behind them."""
        return outputs[0].float()

    def decide(self, outputs: Outputs, split: Split[LabelledText]) -> np.ndarray:
        """Return ids, rows of 0 and 1, or numbers, from logits `(records, labels)`."""
        logits = np.asarray(outputs)
        if self.labels.problem_type == SINGLE_LABEL:
            return logits.argmax(-1)
        return (logits > 0).astype(int) if self.labels.problem_type == MULTI_LABEL else logits[:, 0]

    def figures(self, predictions: Any, split: Split[LabelledText]) -> dict[str, float]:
        return self.labels.figures(predictions, np.asarray(_labels(split)))

    def estimates(self, predictions: Any, split: Split[LabelledText]) -> dict[str, Estimate]:
        return self.labels.estimates(predictions, _labels(split))

    def baselines(
        self, train: Split[LabelledText], split: Split[LabelledText], seed: int = 0
    ) -> dict[str, dict[str, Estimate]]:
        """Return estimates of the most frequent label (or the mean), and of a linear model over TF-IDF."""
        train_texts, texts = (["\n".join(example.texts) for example in part.examples] for part in (train, split))
        predictions = predict_baselines(self.labels.problem_type, train_texts, _labels(train), texts)
        return {name: self.estimates(prediction, split) for name, prediction in predictions.items()}

    def output_fields(self, outputs: Outputs, split: Split[LabelledText], top: int) -> list[dict[str, Any]]:
        names, problem_type = self.labels.names, self.labels.problem_type
        if problem_type == REGRESSION:
            return [{"predicted_number": float(logits[0])} for logits in outputs]
        multi = problem_type == MULTI_LABEL
        fields: list[dict[str, Any]] = []
        for logits in outputs:
            scores = expit(logits) if multi else softmax(logits)
            order = [int(number) for number in np.argsort(-scores, kind="stable")]
            chosen = [number for number in order if scores[number] > 0.5] if multi else order[:1]
            top_scores = {names[number]: float(scores[number]) for number in order[: max(top, len(chosen))]}
            best = (
                {"predicted_labels": [names[number] for number in chosen]}
                if multi
                else {"predicted_label": names[order[0]], "predicted_score": float(scores[order[0]])}
            )
            fields.append({**best, "predicted_scores": top_scores})
        return fields

    def describe(self) -> str:
        count = len(self.labels.names)
        return f"{self.labels.problem_type}: {count} label{'s' * (count > 1)} in {self.labels.field!r}"

    def describe_split(self, split: Split[LabelledText]) -> str:
        return f"{len(split.examples):,} records: {describe_counts(self.labels.counts(_labels(split)))}"

    def notes(self, name: str, split: Split[LabelledText]) -> Iterable[str]:
        names, records = self.labels.names, len(split.examples)
        if name != "train" or self.labels.problem_type == REGRESSION:
            return
        if all(label.removeprefix("-").isdigit() for label in names):
            yield "labels are numbers without names: a list of names in labels.json beside the file names them"
        if self.labels.problem_type == SINGLE_LABEL and len(names) > max(records / 2, 10):
            yield f"{len(names):,} labels in {records:,} records: few records for each, or the field is no label"
        if any(len(label) > 60 for label in names):
            longest = max(names, key=len)
            yield f"some labels are long, such as {longest[:60]!r} …: texts to write are learned by finetune_instruct"

    def describe_example(self, tokenizer: PreTrainedTokenizerBase, train: Split[LabelledText]) -> str:
        label = self.labels.name_of(train.examples[0].label)
        return f"{input_text(tokenizer, train.rows[0]['input_ids'])} → {label}"

    def record_fields(self) -> dict[str, Any]:
        return {"pooling": self.pooling} if self.pooling else {}

    def add_details(
        self, record: RunRecord, name: str, outputs: Outputs, split: Split[LabelledText], folder: Path
    ) -> Iterable[str]:
        """Add the confusion matrix, as numbers and as a picture."""
        if self.labels.problem_type == SINGLE_LABEL:
            from sklearn.metrics import confusion_matrix

            names = self.labels.names
            matrix = confusion_matrix(_labels(split), self.decide(outputs, split), labels=range(len(names)))
            plot_confusion(matrix, names, folder / CONFUSION_FILE)
            record["confusion_matrix"] = {"labels": names, "actual_by_predicted": matrix.tolist()}
            record["pictures"] = {CONFUSION_FILE: f"Confusion matrix on the {name} records"}
        return ()


class NextSentencePrediction(Classification):
    """Whether the second text follows the first one, as BERT's own head predicts; for predictions only."""

    model_class = AutoModelForNextSentencePrediction

    def adopt_labels(self, config: PreTrainedConfig, records: Records | None = None) -> None:
        self.labels = Labels(SINGLE_LABEL, ["follows", "does not follow"], "label", {})

    def read(self, records: Records, labelled: bool = True) -> Split[LabelledText]:
        split = super().read(records, labelled)
        if len(split.examples[0].texts) < 2:
            raise InputError("a model for next sentences needs two: name the second text with --text-pair-field")
        return split

    def output_fields(self, outputs: Outputs, split: Split[LabelledText], top: int) -> list[dict[str, Any]]:
        scores = [float(softmax(logits)[0]) for logits in outputs]
        return [{"predicted_follows": score > 0.5, "predicted_score": score} for score in scores]


def _labels(split: Split[LabelledText]) -> list[Any]:
    return [example.label for example in split.examples]


def balanced_weights(labels: Sequence[int], size: int) -> torch.Tensor:
    """Return weights `(size,)` that let every class count the same; their mean over the records is 1."""
    counts = np.bincount(labels, minlength=size)
    weights = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return torch.tensor(weights, dtype=torch.float32)


def predict_baselines(
    problem_type: str, train_texts: Sequence[str], train_labels: Sequence[Any], texts: Sequence[str]
) -> dict[str, np.ndarray]:
    """Return predictions of the most frequent label (or the mean), and of a linear model over TF-IDF."""
    from sklearn.dummy import DummyClassifier, DummyRegressor
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_union

    # In a large set a feature that occurs once helps nothing, and such features make the fit many times slower.
    min_df = 2 if len(train_texts) >= 1000 else 1
    vectorizer = make_union(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=min_df),
        TfidfVectorizer(analyzer="char", ngram_range=(2, 4), sublinear_tf=True, min_df=min_df),
    )
    try:
        train_vectors = vectorizer.fit_transform(train_texts)
    except ValueError:  # there are no words, as in emoji, or no word occurs in two texts
        vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 4), sublinear_tf=True)
        train_vectors = vectorizer.fit_transform(train_texts)
    vectors = vectorizer.transform(texts)
    if problem_type == REGRESSION:
        models = {"mean": DummyRegressor(), "TF-IDF + ridge": Ridge()}
    else:
        linear = LogisticRegression(C=10, max_iter=1000)
        models = {
            "majority": DummyClassifier(strategy="most_frequent"),
            "TF-IDF + logistic regression": OneVsRestClassifier(linear) if problem_type == MULTI_LABEL else linear,
        }
    target = np.asarray(train_labels)
    if problem_type == MULTI_LABEL:
        target = target.astype(int)
    # scikit-learn returns a single column as a flat array.
    return {
        name: np.asarray(model.fit(train_vectors, target).predict(vectors)).reshape(len(texts), *target.shape[1:])
        for name, model in models.items()
    }


def plot_confusion(matrix: np.ndarray, names: Sequence[str], path: Path) -> None:
    """
    Draw a confusion matrix as a PNG.

    Args:
        matrix: numbers of records `(actual, predicted)`, written into the cells; the colours are shares of each row.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = min(max(4.0, 0.45 * len(names)), 16.0)
    figure, axes = plt.subplots(figsize=(side + 1.5, side), layout="constrained")
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the label's records", shrink=0.8)
    size = 9 if len(names) <= _MAX_CELLS_WITH_COUNTS else 6
    ticks = range(len(names))
    # Two dollar signs in a label are not a formula.
    axes.set_xticks(ticks, names, rotation=90 if len(names) > 4 else 0, fontsize=size, parse_math=False)
    axes.set_yticks(ticks, names, fontsize=size, parse_math=False)
    axes.set(xlabel="predicted", ylabel="actual")
    if len(names) <= _MAX_CELLS_WITH_COUNTS:
        for (actual, predicted), count in np.ndenumerate(matrix):
            color = "white" if shares[actual, predicted] > 0.5 else "black"
            axes.text(predicted, actual, str(count), ha="center", va="center", fontsize=size, color=color)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)
