"""
Distillation of a fine-tuned model into a smaller one, on any task.

The student learns from its teacher's outputs (Hinton et al. 2015, arXiv:1503.02531), from the teacher's last hidden
states where both have the same tokens and width (Jiao et al. 2019, "TinyBERT", arXiv:1909.10351), and from labels. It
may begin as some of the teacher's layers (Sanh et al. 2019, "DistilBERT", arXiv:1910.01108).
"""

import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..artifacts.open import auto_class_of, fingerprint, open_model
from ..artifacts.record import RunRecord, base_model_name
from ..core.errors import InputError
from ..core.limits import longest_input, refuse_diverged
from ..core.statistics import Estimate
from ..data.batches import IGNORED, length_of, longest_first
from ..data.cache import default_cache_dir
from ..data.records import Records
from ..train import finetune
from ..train.finetune import FinetuningArguments
from ..train.finetuning_trainer import FinetuningTrainer
from ..train.recipe import FinetuningRecipe, refuse_below
from ..train.report import print_line
from .losses import LossFunction
from .soft_labels import count_outputs, state_loss, token_mask
from .task import Split, Task
from .teacher_outputs import Collator, Row, TeacherOutputs, cached_outputs, inputs_of, row_key


_SPEED_SECONDS, _SPEED_TURNS, _SPEED_ROWS = 5.0, 200, 32  # the longest measurement of speed, and its batch


@dataclass(kw_only=True)
class DistillationRecipe(FinetuningRecipe):
    """Fields of every kind of distillation from a fine-tuned model."""

    task: str | None = field(default=None, metadata={"help": "What the models do; by default the teacher's task."})
    teacher: str = field(metadata={"help": "Folder of the model to learn from, or its name on the Hub."})
    model: str = field(default="", metadata={"help": "Model that the student starts from; by default the teacher."})
    unlabelled: list[str] | None = field(
        default=None,
        metadata={"help": "More records, without labels, of any form; the student learns the teacher's outputs."},
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Folder for the teacher's outputs."})

    def __post_init__(self) -> None:
        self.model = self.model or self.teacher
        self.unlabelled = [name for name in self.unlabelled or () if name] or None
        super().__post_init__()

    @property
    def cache(self) -> Path:
        """Folder of the cache."""
        return Path(self.cache_dir or default_cache_dir()).expanduser()


@dataclass(kw_only=True)
class SoftLabelRecipe(DistillationRecipe):
    """Fields of the distillation of a model with a head."""

    temperature: float = field(
        default=1.0, metadata={"help": "Divisor of logits; above 1 unlikely classes count for more."}
    )
    soft_weight: float = field(
        default=0.9, metadata={"help": "Weight of the teacher's outputs in the loss, from 0 to 1; labels get the rest."}
    )
    hidden_weight: float | None = field(
        default=None,
        metadata={"help": "Weight of the teacher's last hidden states; by default 1 if the student can match them."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_below(self, temperature=0.01, soft_weight=0, hidden_weight=0)
        if not self.soft_weight <= 1:
            raise InputError(f"soft_weight {self.soft_weight} must be between 0 and 1")
        if self.unlabelled and not self.soft_weight:
            raise InputError("--unlabelled: with soft_weight 0 nothing is learned from these records")


@dataclass
class DistillationArguments(FinetuningArguments):
    """Arguments with defaults for distillation: soft labels are learned for longer before a student overfits."""

    num_train_epochs: float = 6.0


class Teacher:
    """
    A fine-tuned model with a head, and what a student learns from it.

    Attributes:
        unlabelled: the training records without labels.
        outputs: the teacher's outputs for all rows that the student trains on.
        figures: the teacher's figures on the measured split.
        median_rows: rows of about the median length, of the student and of the teacher, to compare their speed on.
    """

    def __init__(self, recipe: SoftLabelRecipe, task: Task[Any], args: FinetuningArguments):
        self.recipe, self.task, self.args = recipe, task, args
        self.unlabelled: Split[Any] | None = None
        self.outputs: TeacherOutputs
        self.figures: dict[str, Estimate] = {}
        self.median_rows: Sequence[tuple[Row, Row]] = []

    def open(self) -> None:
        """Open the model. Raises `InputError` if there is none, or its head is for another task."""
        model_class, trust = self.task.model_class.__name__, self.recipe.trust_remote_code
        if (head := auto_class_of(self.recipe.teacher, trust)) != model_class:
            raise InputError(
                f"{self.recipe.teacher}: is a model for {head}, not for {model_class}: choose another --task"
            )
        self.model, self.tokenizer = open_model(self.recipe.teacher, model_class, trust_remote_code=trust)
        self.model.to(self.args.device)

    def adopt_labels(self, train: Records) -> None:
        """Take the labels that the task has from the model, and read the records without labels."""
        self.task.adopt_labels(self.model.config, train)
        if self.recipe.unlabelled:
            reading = self.task.reading(self.recipe.reading_options(), labelled=False)
            self.unlabelled = self.task.read(finetune.read_split(self.recipe.unlabelled, reading), labelled=False)

    def teach(
        self,
        student: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        splits: Mapping[str, Split[Any]],
    ) -> list[dict[str, Any]]:
        """
        Compute what a student learns from, and the teacher's figures.

        Args:
            tokenizer: of the student, whose `splits` are encoded with it.

        Returns: the student's training rows; `labels` is None in those without labels.

        Raises:
            InputError: the student has other tokens, or another width, and the settings need the same.
        """
        longest = min(max_length, longest_input(self.model.config))
        self.task.prepare(self.tokenizer, longest)
        finetune.choose_attention(self.args, self.model, longest)
        learned = [splits["train"]]
        if self.unlabelled is not None:
            self.task.encode(self.unlabelled, student, tokenizer, max_length)
            for row in self.unlabelled.rows:
                row["labels"] = None
            learned.append(self.unlabelled)
        rows = [row for split in learned for row in split.rows]
        teacher_rows = [row for split in learned for row in self._encode(split, longest).rows]
        with_states = self._match_states(student, rows, teacher_rows)
        by_length = sorted(zip(rows, teacher_rows), key=lambda pair: length_of(pair[0]))
        self.median_rows = by_length[len(by_length) // 2 :][:_SPEED_ROWS]
        distinct = {row_key(row): teacher_row for row, teacher_row in zip(rows, teacher_rows)}
        keys, distinct_rows = list(distinct), list(distinct.values())
        self.outputs = cached_outputs(
            self.model,
            self.task,
            self.task.collator(self.tokenizer),
            {keys[number]: distinct_rows[number] for number in longest_first(distinct_rows)},
            with_states,
            self.args.bf16,
            fingerprint(self.model, self.tokenizer),
            self.recipe.cache,
        )
        self._measure({name: self._encode(split, longest) for name, split in splits.items() if name != "train"})
        return rows

    def _encode(self, split: Split[Any], max_length: int) -> Split[Any]:
        """Return a split with the teacher's rows."""
        own = Split(split.records, split.examples)
        self.task.encode(own, self.model, self.tokenizer, max_length)
        return own

    def _match_states(self, student: PreTrainedModel, rows: Sequence[Row], teacher_rows: Sequence[Row]) -> bool:
        """
        Return whether the student learns from hidden states.

        Raises:
            InputError: it shall, or it must learn from the outputs of tokens, and cannot.
        """
        same_tokens = [row["input_ids"] for row in rows] == [row["input_ids"] for row in teacher_rows]
        if self.task.per_token and not same_tokens:
            raise InputError(
                f"{self.recipe.model}: has other tokens than its teacher {self.recipe.teacher}; a student of this task "
                "learns from the outputs of tokens, so both need one tokenizer and one --max_length"
            )
        widths = [model.config.get_text_config().hidden_size for model in (student, self.model)]
        obstacle = (
            "other tokens"
            if not same_tokens
            else f"states of {widths[0]}, not {widths[1]},"
            if len(set(widths)) > 1
            else ""
        )
        weight = self.recipe.hidden_weight
        if weight and obstacle:
            raise InputError(
                f"{self.recipe.model}: has {obstacle} than its teacher, so it cannot learn from hidden states: leave "
                "out --hidden_weight"
            )
        self.hidden_weight = weight if weight is not None else 0.0 if obstacle else 1.0
        return bool(self.hidden_weight)

    def _measure(self, splits: Mapping[str, Split[Any]]) -> None:
        """Measure the teacher as the student is measured at the end."""
        name = finetune.measured_split(splits)
        args = copy.copy(self.args)
        args.push_to_hub = False
        trainer = FinetuningTrainer(
            model=self.model,
            args=args,
            eval_dataset=splits[name].rows,
            data_collator=self.task.collator(self.tokenizer),
            preprocess_logits_for_metrics=lambda outputs, _: select_outputs(self.task, outputs),
        )
        if self.task.calibrates:
            self.task.calibrate(trainer.predict_in_order(splits["validation"].rows), splits["validation"])
        outputs = trainer.predict_in_order(splits[name].rows)
        self.figures = self.task.estimates(self.task.decide(outputs, splits[name]), splits[name])

    def report(self) -> None:
        """Print what the student learns from."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        outputs = "outputs and hidden states" if self.hidden_weight else "outputs"
        print_line(
            "teacher", f"{type(self.model).__name__}, {parameters:,} parameters; {outputs} in {self.recipe.cache}"
        )
        if self.unlabelled is not None:
            print_line("unlabelled", f"{len(self.unlabelled.examples):,} records")

    def compare(
        self,
        record: RunRecord,
        student: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        results: Mapping[str, Estimate],
    ) -> None:
        """Put the student's share of the teacher's figure, and of its time, into the record, and print them."""
        models, tokenizers = (student, self.model), (tokenizer, self.tokenizer)
        passes = [
            forward_pass(model, self.task.collator(tokenizer)([inputs_of(row) for row in rows]))
            for model, tokenizer, rows in zip(models, tokenizers, zip(*self.median_rows))
        ]
        report_comparison(record, self.recipe, self.task.metrics[0], results, self.figures, compare_speed(*passes))


def report_comparison(
    record: RunRecord,
    recipe: DistillationRecipe,
    metric: str,
    results: Mapping[str, Estimate],
    teacher: Mapping[str, Estimate],
    speed: Sequence[float],
) -> None:
    """
    Put a student's share of its teacher's figure, and of its time, into the record, and print them.

    Args:
        results: figures of the student.
        teacher: figures of the teacher.
        speed: as [`compare_speed`] returns it.
    """
    share = results[metric].value / teacher[metric].value if teacher[metric].value else float("nan")
    lowest, median, highest = speed
    record["distillation"] = {
        "teacher": base_model_name(recipe.teacher),
        "metric": metric,
        "share": share,
        "speed": median,
        "speed_quartiles": [lowest, highest],
    }
    print_line(
        "distilled",
        f"{share:.1%} of the teacher's {metric}, {median:.2f} times as fast ({lowest:.2f} to {highest:.2f}; forward "
        "passes in turns, without bf16)",
    )


def select_outputs(task: Task[Any], outputs: Any) -> torch.Tensor:
    """Return what the task keeps of a batch's outputs, which Trainer hands over as a tensor if there is only one."""
    selected = task.select(outputs if isinstance(outputs, tuple) else (outputs,))
    refuse_diverged(selected)
    return selected


def forward_pass(model: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> Callable[[], Any]:
    """Return a call that computes a batch in evaluation mode and waits for the result."""
    inputs = send_to_device(dict(inputs), next(model.parameters()).device)
    model.eval()
    return lambda: model(**inputs)[0].cpu()


@torch.no_grad()
def compare_speed(student: Callable[[], Any], teacher: Callable[[], Any]) -> list[float]:
    """
    Return how many times as fast as its teacher a student is, in turns: lower quartile, median, upper quartile.

    Args:
        student: its [`forward_pass`].
        teacher: the same of the teacher, on the same texts.
    """
    ratios: list[float] = []
    end = time.perf_counter() + _SPEED_SECONDS
    while len(ratios) < 6 or (time.perf_counter() < end and len(ratios) < _SPEED_TURNS):
        seconds = []
        for run in (teacher, student):
            started = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - started)
        ratios.append(seconds[0] / seconds[1])
    return statistics.quantiles(ratios[1:], n=4)  # the first passes allocate memory


class DistillationCollator:
    """
    A collator that adds the teacher's outputs to batches of rows that have them.

    Rows without labels get some of the right shape, and False in `is_labelled`.

    Args:
        collate: makes a batch of rows.
        labels: those of any labelled row.
    """

    def __init__(self, collate: Collator, outputs: TeacherOutputs, labels: Any):
        self.collate, self.outputs, self.labels = collate, outputs, labels

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        is_labelled = [row.get("labels") is not None for row in rows]
        filled = [
            row if labelled else {**row, "labels": self._any_labels(row)} for row, labelled in zip(rows, is_labelled)
        ]
        batch = self.collate(filled)
        if all(row in self.outputs for row in rows):
            batch |= {"is_labelled": torch.tensor(is_labelled), **self.outputs.batch(rows)}
        return batch

    def _any_labels(self, row: Row) -> Any:
        per_token = isinstance(self.labels, list)
        return [IGNORED] * len(row["input_ids"]) if per_token else self.labels


_TARGETS = ("is_labelled", "soft_labels", "teacher_states")


class DistillationTrainer(FinetuningTrainer):
    """
    Trainer of a student, whose loss has the teacher's terms; evaluations have the labels' alone.

    The loss is `(1 - soft_weight) · labels + soft_weight · outputs + hidden_weight · hidden states`, each term a mean
    over all accumulated batches.

    Args:
        compute_loss_func: the loss of labels.
        data_collator: of labelled rows.
    """

    def __init__(self, *, teacher: Teacher, data_collator: Collator, compute_loss_func: LossFunction, **kwargs: Any):
        labels = next(row["labels"] for row in kwargs["train_dataset"] if row["labels"] is not None)
        collator = DistillationCollator(data_collator, teacher.outputs, labels)
        super().__init__(data_collator=collator, compute_loss_func=self.distillation_loss, **kwargs)
        self.teacher, self.label_loss = teacher, compute_loss_func
        self.targets: dict[str, torch.Tensor] = {}
        self.counts_in_step: tuple[torch.Tensor, torch.Tensor]

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        self.targets = {name: inputs.pop(name) for name in _TARGETS if name in inputs}
        if "soft_labels" in self.targets:
            self.targets["tokens"] = token_mask(inputs["attention_mask"], self.targets["soft_labels"])
        if "teacher_states" in self.targets:
            inputs["output_hidden_states"] = True
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def distillation_loss(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        """Return the loss of a batch, of which [`compute_loss`] keeps the teacher's outputs."""
        targets = self.targets
        if not self.model.training or not targets:
            return self.label_loss(outputs, labels, num_items_in_batch=num_items_in_batch)
        settings, task = self.teacher.recipe, self.teacher.task
        soft_labels, tokens, labelled = (targets[name] for name in ("soft_labels", "tokens", "is_labelled"))
        counts = (count_outputs(soft_labels), tokens.sum()) if num_items_in_batch is None else self.counts_in_step
        loss = task.soft_loss(task.soft_outputs(outputs), soft_labels, settings.temperature) / counts[0]
        loss = settings.soft_weight * loss
        if "teacher_states" in targets:
            states = outputs["hidden_states"][-1][tokens].float()
            loss = loss + self.teacher.hidden_weight * state_loss(states, targets["teacher_states"].float()) / counts[1]
        if labelled.any() and settings.soft_weight < 1:
            part = {name: values[labelled] for name, values in outputs.items() if name.endswith("logits")}
            label_loss = self.label_loss(part, labels[labelled], num_items_in_batch=num_items_in_batch)
            loss = loss + (1 - settings.soft_weight) * label_loss
        return loss

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        if "soft_labels" not in batch_samples[0]:  # in an evaluation
            return super()._get_num_items_in_batch(batch_samples, device)
        # The terms of the teacher are means over other things than labels.
        soft_labels = [batch["soft_labels"] for batch in batch_samples]
        tokens = [token_mask(batch["attention_mask"], target) for batch, target in zip(batch_samples, soft_labels)]
        counts = torch.stack(
            [torch.stack([count_outputs(target), mask.sum()]) for target, mask in zip(soft_labels, tokens)]
        )
        counts = counts.sum(0).to(device)
        if self.args.world_size > 1:
            counts = self.accelerator.gather(counts[None]).sum(0)
        self.counts_in_step = counts[0], counts[1]
        labelled = [{**batch, "labels": batch["labels"][batch["is_labelled"]]} for batch in batch_samples]
        return super()._get_num_items_in_batch(labelled, device)
