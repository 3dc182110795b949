"""Adaptive masking: a vocabulary entry is masked the more often, the worse the model predicts it."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from ..data.batches import IGNORED
from ..data.objectives import CausalFirst, Masked
from ..models.modeling_tfm_loss import ChunkLoss, chunk_cross_entropy, linear_cross_entropy


if TYPE_CHECKING:
    from .trainer import RunTrainer as _Trainer  # the mixin stands in front of it
else:
    _Trainer = object

MASKING_FILE = "masking.pt"

# As in the paper: how much of the old weight remains, and the smallest weight, so that no entry is forgotten for good.
_KEPT_SHARE = 0.2
_SMALLEST_WEIGHT = 1 / 30


class AdaptiveMasking:
    """
    Counts right and wrong predictions of each vocabulary entry and sets the weights of a masked objective from them
    (Edman and Fraser 2025, https://huggingface.co/papers/2510.20475).

    Every `interval` steps the weight of an entry becomes 0.2 times itself plus 0.8 times its share of wrong predictions
    since the last time, those of next tokens (`causal_first`) among them. The number of masked tokens stays the same.
    Counts are integers, so their sum does not depend on processes and accumulated batches.

    Args:
        objective: the objective of the training, whose masked part gets `weights`.
        interval: number of optimizer steps between two changes of the weights.

    Attributes:
        counts: `(2, vocabulary)`, predictions and right ones since the last change, of this process; None while nothing
            is counted.
    """

    def __init__(self, objective: Masked | CausalFirst, interval: int):
        self.masked = objective.masked if isinstance(objective, CausalFirst) else objective
        self.interval = interval
        self.weights = torch.ones(len(self.masked.tokenizer), dtype=torch.float64)
        self.counts: torch.Tensor | None = None

    def start(self, device: torch.device) -> None:
        """Begin to count."""
        self.counts = torch.zeros(2, len(self.weights), dtype=torch.long, device=device)

    def count(self, labels: torch.Tensor, logits: torch.Tensor) -> None:
        """
        Count the predictions of a batch.

        Args:
            labels: of any shape, -100 where nothing is predicted.
            logits: of all tokens, `(*labels.shape, vocabulary)`, or of the predicted ones alone.
        """
        if self.counts is None:
            return
        is_predicted = labels != IGNORED
        predicted = labels[is_predicted]
        logits = logits[is_predicted] if logits.shape[:-1] == labels.shape else logits
        hits = predicted[logits.argmax(-1) == predicted]
        for row, ids in zip(self.counts, (predicted, hits), strict=True):
            row += torch.bincount(ids, minlength=len(row))

    def make_loss(self, labels: torch.Tensor) -> ChunkLoss:
        """Return the cross-entropy of `labels` for models that never hold all logits; in training it counts too."""
        chunk_loss = chunk_cross_entropy(labels)
        if not torch.is_grad_enabled():
            return chunk_loss

        def counted_loss(
            logits: torch.Tensor, chunk: slice, needs_grad: bool
        ) -> tuple[torch.Tensor, torch.Tensor | None]:
            self.count(labels[chunk], logits)
            return chunk_loss(logits, chunk, needs_grad)

        return counted_loss

    def update(self, counts: torch.Tensor) -> None:
        """Set new weights from the counts of all processes, and count from 0 again."""
        predictions, hits = counts.double().cpu()
        # An entry without predictions counts as one that is predicted as well as the average.
        accuracy = (hits + hits.sum() / predictions.sum().clamp(min=1)) / (predictions + 1)
        self.weights = _KEPT_SHARE * self.weights + (1 - _KEPT_SHARE) * (1 - accuracy)
        self.weights.clamp_(min=_SMALLEST_WEIGHT)
        self.masked.weights = self.weights.numpy()
        self.start(counts.device)

    def load(self, state: Mapping[str, torch.Tensor], device: torch.device, is_first: bool) -> None:
        """Restore `weights` and `counts` of a checkpoint; the counts of all processes go to the first one."""
        self.weights = state["weights"]
        self.masked.weights = self.weights.numpy()
        self.start(device)
        if is_first:
            self.counts = state["counts"].to(device)


class AdaptiveMaskingMixin(_Trainer):
    """For a Trainer with `RunMixin`: count predictions, change the weights every interval, keep both in checkpoints."""

    def __init__(self, *args: Any, adaptive_masking: AdaptiveMasking | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.adaptive_masking = adaptive_masking
        if adaptive_masking is not None:
            self.add_callback(_AdaptMasking(self, adaptive_masking))
            if hasattr(self.model, "linear_loss_function"):
                loss_function = functools.partial(linear_cross_entropy, make_loss=adaptive_masking.make_loss)
                self.model.linear_loss_function = loss_function

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        if self.adaptive_masking is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs["labels"]
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        logits = outputs.get("logits", outputs.get("prediction_logits"))
        if logits is not None:  # otherwise the loss function counts
            self.adaptive_masking.count(labels, logits)
        return (loss, outputs) if return_outputs else loss

    def save_training_state(self, checkpoint: Path) -> None:
        super().save_training_state(checkpoint)
        if self.adaptive_masking is not None:
            state = {"weights": self.adaptive_masking.weights, "counts": self.sum_counts()}
            if self.args.should_save:
                torch.save(state, checkpoint / MASKING_FILE)

    def sum_counts(self) -> torch.Tensor:
        """Return the counts of all processes together; all of them must call this."""
        assert self.adaptive_masking is not None and self.adaptive_masking.counts is not None
        return self.accelerator.reduce(self.adaptive_masking.counts, reduction="sum")


class _AdaptMasking(TrainerCallback):
    def __init__(self, trainer: AdaptiveMaskingMixin, adaptive_masking: AdaptiveMasking):
        self.trainer, self.adaptive_masking = trainer, adaptive_masking

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        checkpoint = self.trainer.checkpoint_to_resume
        if checkpoint is None:
            self.adaptive_masking.start(args.device)
        else:
            saved = torch.load(Path(checkpoint) / MASKING_FILE, weights_only=True, map_location="cpu")
            self.adaptive_masking.load(saved, args.device, is_first=args.process_index == 0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.adaptive_masking.interval == 0:
            self.adaptive_masking.update(self.trainer.sum_counts())
