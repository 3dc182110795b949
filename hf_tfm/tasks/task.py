"""
The protocol of a task: all that training, measuring and predicting need to know about one kind of labelled record.

`training/finetune_*.py` (through [`fine_tune`](fine_tune.py)), `training/evaluate_model.py` and `hf-tfm predict` use
the same object, so a text is encoded and an output decided in one way everywhere. To add a task:

1. Subclass [`Task`] as a dataclass. Its fields are what a user can set: where records have what, and options.
2. Write `read` and `encode` (records → examples → rows of a model's inputs), `add_labels` and `loss` for training,
   `select` and `decide` (a model's outputs → predictions), `figures` and `estimates`, `output_fields` for predictions.
   `tagging.py` is a good example.
3. Name it in `LABEL_TASKS` of `evaluate/labelled.py`, so that it can be measured and predicted.
4. Write its script: a recipe with fields of the same names, and `fine_tune(MyTask.configure(vars(recipe)), …)`.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..artifacts.record import RunRecord
from ..core.statistics import Estimate
from ..data.batches import RightPadding
from ..data.forms.form import Reading
from ..data.records import Records
from ..data.tables import ReadingOptions
from .losses import LossFunction
from .soft_labels import SoftLoss, class_loss


Example = TypeVar("Example")
Outputs = Sequence[np.ndarray] | np.ndarray


def text_key(*texts: str) -> tuple[str, ...]:
    """Return texts without case and surplus blanks; texts that say the same have the same key."""
    return tuple(" ".join(text.casefold().split()) for text in texts)


@dataclass
class Split(Generic[Example]):
    """
    The records of a split, or of a chunk of a file, on their way into a model.

    Attributes:
        records: the records that were read.
        examples: what the task makes of each record.
        rows: inputs of the model such as `input_ids`, and `labels` in training; set by `encode`.
        windows: for tasks that cut long examples into several rows, which part of which example each row holds.
    """

    records: Records
    examples: list[Example]
    rows: list[dict[str, Any]] = field(default_factory=list)
    windows: list[Any] = field(default_factory=list)


@dataclass
class Task(ABC, Generic[Example]):
    """
    One kind of labelled record: how it is read, encoded, trained on, decided and measured.

    Attributes:
        model_class: transformers' Auto class of the models for this task.
        job: the job of `data/forms` that its files are read for.
        fields: the setting that names each field of the job in a user's files: `{"text": "text_field"}`.
        adapter_type: PEFT's name of the task; None if PEFT has none.
        per_token: whether [`select`] keeps an output for each token of a row rather than one for the row.
        calibrates: whether something besides the weights is chosen on the validation set, by [`calibrate`].
    """

    model_class: ClassVar[Any]
    job: ClassVar[str]
    fields: ClassVar[Mapping[str, str]]
    adapter_type: ClassVar[str | None]
    per_token: ClassVar[bool] = False
    calibrates: ClassVar[bool] = False

    dashed_options: bool = field(default=False, kw_only=True)  # messages name --text-field, not --text_field

    @classmethod
    def configure(cls, settings: Mapping[str, Any]) -> Self:
        """Return a task with those settings that it has; None stands for the default."""
        names = {setting.name for setting in dataclasses.fields(cls) if setting.init}
        return cls(**{name: value for name, value in settings.items() if name in names and value is not None})

    def reading(
        self,
        options: ReadingOptions | None = None,
        labelled: bool = True,
        trained: Mapping[str, Any] | None = None,
    ) -> Reading:
        """
        Return how users' files are read for this task.

        Args:
            trained: settings of the run that trained the model; its names of fields hold for files that have them.
        """
        names, defaults = (
            {name: settings[setting] for name, setting in self.fields.items() if settings.get(setting)}
            for settings in (vars(self), trained or {})
        )
        return Reading(self.job, names, options or ReadingOptions(), labelled, self.dashed_options, defaults)

    def recognised_fields(self, records: Records) -> dict[str, Any]:
        """Return the settings that name the fields which records were read from."""
        names = {self.fields[name]: value for name, value in records.names.items() if name in self.fields}
        return {
            setting: [value] if setting.endswith("_fields") and isinstance(value, str) else value
            for setting, value in names.items()
        }

    # Labels

    def learn_labels(self, train: Records) -> None:
        """Find the labels in the training records. Raises `InputError` if there is nothing to learn."""

    def adopt_labels(self, config: PreTrainedConfig, records: Records | None = None) -> None:
        """Take the labels from a trained model; `records` show whether labels are written as names or as numbers."""

    def config_fields(self) -> dict[str, Any]:
        """Return fields of the model's configuration, such as `id2label`."""
        return {}

    @property
    @abstractmethod
    def metrics(self) -> tuple[str, ...]:
        """Names of the figures; the first one chooses the best checkpoint on the validation set."""

    # Records → examples → rows

    @abstractmethod
    def read(self, records: Records, labelled: bool = True) -> Split[Example]:
        """
        Read records as examples, without labels if not `labelled`.

        Raises:
            InputError: a field is missing or of the wrong kind, or a label is unknown.
        """

    @abstractmethod
    def keys(self, split: Split[Example]) -> list[Hashable]:
        """Return a key for each example; two examples that ask the same have equal keys."""

    def carving_keys(self, split: Split[Example]) -> list[Hashable]:
        """Return keys by which examples stay together when a validation set is carved out."""
        return self.keys(split)

    def strata(self, split: Split[Example]) -> list[Hashable] | None:
        """Return the stratum of each example if a validation set shall have its share of each."""
        return None

    def prepare(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        """Set up the tokenizer for training, as it is then saved with the model."""

    @abstractmethod
    def encode(
        self, split: Split[Example], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> None:
        """Set the split's rows, of at most `max_length` tokens, and its windows."""

    @abstractmethod
    def add_labels(self, split: Split[Example]) -> None:
        """Add `labels` to the rows of an encoded split."""

    # Training

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]:
        """Return what turns rows into a batch."""
        return RightPadding(tokenizer)

    @abstractmethod
    def loss(self, train: Split[Example], smoothing: float = 0.0) -> LossFunction:
        """
        Return a `compute_loss_func` for Trainer: the mean over all accumulated batches.

        Raises:
            InputError: these labels have no such loss.
        """

    # Distillation

    @property
    def soft_loss(self) -> SoftLoss:
        """Return the loss between a student's outputs and its teacher's."""
        return class_loss

    def soft_outputs(self, outputs: Any) -> torch.Tensor:
        """Return a model's logits `(batch, outputs, classes)`, of which a teacher's are a student's soft labels."""
        return outputs["logits"].float()[:, None]

    def soft_shape(self, row: Mapping[str, Any]) -> tuple[int, int | None]:
        """Return how many of these outputs and classes an encoded row has; None: all of its batch."""
        return 1, None

    # Outputs → predictions → figures

    @abstractmethod
    def select(self, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return what is kept of a model's outputs `(logits, …)` for one batch."""

    def calibrate(self, outputs: Outputs, validation: Split[Example]) -> None:
        """Choose on the validation set what [`decide`] needs besides the outputs."""

    @abstractmethod
    def decide(self, outputs: Outputs, split: Split[Example]) -> Sequence[Any] | np.ndarray:
        """Return a prediction for each example from the selected outputs of each row."""

    @abstractmethod
    def figures(self, predictions: Sequence[Any] | np.ndarray, split: Split[Example]) -> dict[str, float]:
        """Return the task's metrics."""

    @abstractmethod
    def estimates(self, predictions: Sequence[Any] | np.ndarray, split: Split[Example]) -> dict[str, Estimate]:
        """Return the metrics, and perhaps more, with 95 % intervals."""

    def baselines(self, train: Split[Example], split: Split[Example], seed: int = 0) -> dict[str, dict[str, Estimate]]:
        """Return estimates of simple methods, by their names."""
        return {}

    @abstractmethod
    def output_fields(self, outputs: Outputs, split: Split[Example], top: int) -> list[dict[str, Any]]:
        """Return predictions as fields to add to each record, with the scores of the `top` best ones."""

    # Reports

    def describe(self) -> str:
        """Return one line on the task, or nothing."""
        return ""

    @abstractmethod
    def describe_split(self, split: Split[Example]) -> str:
        """Return one line on the examples of a split."""

    def notes(self, name: str, split: Split[Example]) -> Iterable[str]:
        """Return lines on what a person might not expect of a split."""
        return ()

    @abstractmethod
    def describe_example(self, tokenizer: PreTrainedTokenizerBase, train: Split[Example]) -> str:
        """Return one training example and its label as text."""

    def record_fields(self) -> dict[str, Any]:
        """Return settings for the run record, from which measuring and predicting take them again."""
        return {}

    def add_details(
        self, record: RunRecord, name: str, outputs: Outputs, split: Split[Example], folder: Path
    ) -> Iterable[str]:
        """Add to the record of a finished run, and to its folder, what this task alone shows; returns lines."""
        return ()
