"""Loss of a language model that learns from a teacher: its probabilities of the likeliest tokens beside the labels."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..models.modeling_tfm_loss import ChunkLoss, linear_cross_entropy


# In place of probabilities that are too small for a logarithm.
_TINY = 1e-30


@dataclass(frozen=True)
class SoftLabels:
    """
    A teacher's probabilities at each predicted token: of `k` tokens, and of all other tokens together.

    Args:
        ids: (predicted, k); where one occurs several times, all but its first have the probability 0.
        log_probs: (predicted, k + 1), the last for all other tokens; they sum to 1.
    """

    ids: torch.Tensor
    log_probs: torch.Tensor

    @classmethod
    def of_logits(cls, logits: torch.Tensor, k: int, temperature: float) -> "SoftLabels":
        """Return the soft labels in a teacher's logits, (predicted, vocabulary)."""
        log_probs = torch.log_softmax(logits.float() / temperature, dim=-1)
        likeliest, ids = log_probs.topk(min(k, logits.shape[-1]))
        others = (1 - likeliest.exp().sum(-1, keepdim=True)).clamp(min=0)
        if k >= logits.shape[-1]:
            others.zero_()
        return cls(ids, torch.cat([likeliest, others.log()], dim=-1))


@dataclass(frozen=True)
class SoftLoss:
    """
    `weight` times the divergence from a teacher, and the rest of 1 times the cross-entropy of the labels.

    The divergence is KL(teacher ‖ student) over `k` tokens and "any other token", with both at a temperature, times the
    square of that (Hinton et al. 2015, https://huggingface.co/papers/1503.02531).
    """

    weight: float
    temperature: float = 1.0

    def on_chunks(self, labels: torch.Tensor, soft: SoftLabels) -> ChunkLoss:
        """Return the loss as one over chunks of logits."""

        def chunk_loss(logits: torch.Tensor, chunk: slice, needs_grad: bool) -> tuple[torch.Tensor, torch.Tensor]:
            ids, probs = soft.ids[chunk], soft.log_probs[chunk].exp()
            likeliest, others = probs[:, :-1], probs[:, -1:]
            student = torch.softmax(logits.float() / self.temperature, dim=-1)
            student_likeliest = student.gather(-1, ids)
            grad = student.scatter_(-1, ids, 0)
            # A student that gives others no probability gets a large but finite loss.
            student_others = grad.sum(-1, keepdim=True).clamp(min=_TINY)
            student_log_probs = torch.cat([student_likeliest, student_others], dim=-1).clamp(min=_TINY).log()
            scale = self.weight * self.temperature**2
            loss = scale * (torch.xlogy(probs, probs) - probs * student_log_probs).sum()
            # By the logits: the student's probabilities minus the teacher's, whose share of others is divided among
            # them as the student divides it.
            grad.mul_(1 - others / student_others)
            grad.scatter_(-1, ids, student_likeliest).scatter_add_(-1, ids, -likeliest).mul_(scale / self.temperature)
            if self.weight < 1:
                targets, hard_weight = labels[chunk].unsqueeze(-1), 1 - self.weight
                log_probs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
                loss = loss - hard_weight * log_probs.gather(-1, targets).sum()
                grad.add_(log_probs.exp_(), alpha=hard_weight)
                grad.scatter_add_(-1, targets, torch.full_like(targets, -hard_weight, dtype=torch.float32))
            return loss, grad

        return chunk_loss

    def of_logits(self, logits: torch.Tensor, labels: torch.Tensor, soft: SoftLabels, divisor: Any) -> torch.Tensor:
        """
        Return the mean loss of logits.

        Args:
            logits: (predicted, vocabulary).
            labels: (predicted,).
            divisor: of the sum of losses.
        """
        return _LossOfLogits.apply(logits, self.on_chunks(labels, soft), divisor)


class _LossOfLogits(torch.autograd.Function):
    """A loss over chunks, of logits that a model has computed."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, chunk_loss: ChunkLoss, divisor: Any) -> torch.Tensor:
        loss, ctx.grad, ctx.divisor = logits.new_zeros((), dtype=torch.float32), torch.empty_like(logits), divisor
        for start in range(0, len(logits), 256):
            chunk = slice(start, start + 256)
            chunk_sum, ctx.grad[chunk] = chunk_loss(logits[chunk], chunk, True)
            loss += chunk_sum
        return loss / divisor

    @staticmethod
    def backward(ctx: Any, loss_grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return ctx.grad * (loss_grad / ctx.divisor).to(ctx.grad.dtype), None, None


class LinearSoftLoss:
    """
    The `linear_loss_function` of this package's models: cross-entropy, or the loss from a teacher inside `using`.

    Args:
        loss: the loss from a teacher.
    """

    def __init__(self, loss: SoftLoss):
        self.loss = loss
        self.soft: SoftLabels | None = None

    @contextlib.contextmanager
    def using(self, soft: SoftLabels) -> Iterator[None]:
        """Use the soft labels of a batch inside the block."""
        self.soft = soft
        try:
            yield
        finally:
            self.soft = None

    def __call__(
        self, hidden_states: torch.Tensor, output_layer: nn.Linear, labels: torch.Tensor, *args: Any
    ) -> torch.Tensor:
        if (soft := self.soft) is None:
            return linear_cross_entropy(hidden_states, output_layer, labels, *args)

        def make_loss(predicted: torch.Tensor) -> ChunkLoss:
            return self.loss.on_chunks(predicted, soft)

        return linear_cross_entropy(hidden_states, output_layer, labels, *args, make_loss=make_loss)
