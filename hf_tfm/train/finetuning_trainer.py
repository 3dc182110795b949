"""Trainer for records of different lengths: batches of similar length, and outputs in the order of the records."""

from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback

from ..data.batches import SeededLengthGroups, in_order, length_of, longest_first
from .run_identity import data_seed
from .trainer import RunMixin


class _SetSamplerEpoch(TrainerCallback):
    def __init__(self, trainer: "FinetuningMixin"):
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer.sampler is not None:
            self.trainer.sampler.epoch = int(state.epoch or 0)


class FinetuningMixin(RunMixin):
    """
    For any Trainer over encoded records of different lengths: batches of similar length, and evaluation sorted by
    length. A resumed run draws the same batches; transformers' own sampler draws from the global generator, whose state
    at the start of an epoch is lost.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.sampler: SeededLengthGroups | None = None
        self.labels_of_a_row = 1.0
        self.add_callback(_SetSamplerEpoch(self))

    def median_batch(self) -> dict[str, Any]:
        """Return a batch of records of about the median length, to measure the time of a step."""
        records = sorted(self.train_dataset, key=length_of)
        start = max(0, (len(records) - self.args.train_batch_size) // 2)
        collate = self._get_collator_with_removed_columns(self.data_collator)
        return collate(records[start : start + self.args.train_batch_size])

    def predict_in_order(self, records: list[dict[str, Any]]) -> np.ndarray:
        """
        Return the outputs for encoded records, in their order.

        They are computed without autocast, in which training wraps the model, so that the saved model has the figures
        that are measured here.
        """
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        # The metrics are those of the validation set.
        compute_metrics, self.compute_metrics = self.compute_metrics, None
        try:
            return in_order(self.predict(records).predictions, records)
        finally:
            self.compute_metrics = compute_metrics

    def evaluation_loop(self, dataloader: Any, *args: Any, **kwargs: Any) -> Any:
        """Evaluate; the loss is the mean over all labels, whatever the batches (see `prediction_step`)."""
        counts = [count_labels(torch.as_tensor(row["labels"])) for row in iter(dataloader.dataset) if "labels" in row]
        self.labels_of_a_row = max(sum(counts), 1) / max(len(counts), 1)
        # Each process's loss is to be the mean over its own labels.
        across, self.args.average_tokens_across_devices = self.args.average_tokens_across_devices, False
        try:
            return super().evaluation_loop(dataloader, *args, **kwargs)
        finally:
            self.args.average_tokens_across_devices = across

    def prediction_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """
        Return loss, outputs and labels of a batch.

        Trainer takes the mean over the rows of the losses of their batches. Times the labels that a row of this batch
        has more than others, it is the mean over all labels.
        """
        labels = inputs.get("labels")
        loss, *outputs = super().prediction_step(model, inputs, *args, **kwargs)
        if loss is not None and labels is not None:
            count = count_labels(labels)
            # Without any label the mean over the batch is not a number.
            loss = loss * (count / len(labels) / self.labels_of_a_row) if count else torch.zeros_like(loss)
        return loss, *outputs

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        # Trainer does not count labels of -100. In a regression, -100 is a number like any other.
        label_batches = [
            {**batch, "labels": torch.zeros_like(labels)}
            if (labels := batch.get("labels")) is not None and labels.is_floating_point()
            else batch
            for batch in batch_samples
        ]
        return super()._get_num_items_in_batch(label_batches, device)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        lengths = [length_of(record) for record in train_dataset or self.train_dataset]
        group_size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        self.sampler = SeededLengthGroups(group_size, lengths, data_seed(self.args))
        return self.sampler

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        return longest_first(eval_dataset)


def count_labels(labels: torch.Tensor) -> int:
    """Return the number of labels that a loss is a mean over: all numbers of a regression, else those but -100."""
    return labels.numel() if labels.is_floating_point() else int((labels != -100).sum())


class FinetuningTrainer(FinetuningMixin, Trainer):
    """transformers' Trainer with [`FinetuningMixin`]."""
