"""Losses: cross-entropy over the vocabulary without holding all logits, and sentence heads."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from transformers.loss.loss_utils import fixed_cross_entropy

from .configuration_tfm import TfmConfig


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """Return the dtype of matrix products with `x`: autocast's dtype if autocast is on, else that of `x`."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def cap_logits(logits: torch.Tensor, softcap: float | None) -> torch.Tensor:
    """Squash logits smoothly into ± `softcap`, if set (Gemma 2, https://huggingface.co/papers/2408.00118)."""
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


# Largest number of elements of the logits' gradient that are kept until they are added to the weights' gradient.
_BUFFERED_GRADIENTS = 1 << 24


# From the logits of a chunk, and the rows it has: the sum of losses, and the gradient of the logits if needed, in fp32.
ChunkLoss = Callable[[torch.Tensor, slice, bool], tuple[torch.Tensor, torch.Tensor | None]]


class LinearLoss(torch.autograd.Function):
    """
    A loss of `hidden_states @ weight.T + bias` without the logits of all rows.

    A chunk of rows is projected, and the gradient of its logits is computed while they are in the CPU's cache. The
    gradients of several chunks are buffered, in the dtype of the products, before they are added to the gradient of
    the weights, because that addition costs as much for few rows as for many.
    """

    @staticmethod
    def forward(ctx, hidden_states, weight, bias, chunk_loss, divisor, softcap, dtype):
        device_type = hidden_states.device.type
        with torch.autocast(device_type, enabled=False):
            states, matrix = hidden_states.to(dtype), weight.to(dtype)
            offset = None if bias is None else bias.to(dtype)
            needs_states, needs_weight, needs_bias = ctx.needs_input_grad[:3]
            states_grad = torch.empty_like(states) if needs_states else None
            weight_grad = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
            bias_grad = torch.zeros_like(bias, dtype=torch.float32) if needs_bias else None
            loss = torch.zeros((), dtype=torch.float32, device=states.device)
            chunk_size = 256 if device_type == "cpu" else 4096
            buffer_size = chunk_size * max(1, _BUFFERED_GRADIENTS // (chunk_size * len(matrix)))
            buffer = states.new_empty(min(buffer_size, len(states)), len(matrix)) if any(ctx.needs_input_grad) else None
            for start in range(0, len(states), chunk_size):
                chunk = slice(start, start + chunk_size)
                logits = cap_logits(F.linear(states[chunk], matrix, offset), softcap)
                chunk_sum, logits_grad = chunk_loss(logits, chunk, buffer is not None)
                loss += chunk_sum
                if buffer is None:
                    continue
                if softcap is not None:
                    logits_grad *= 1 - (logits / softcap).square()
                if needs_bias:
                    bias_grad += logits_grad.sum(0)
                first = start // buffer_size * buffer_size
                end = start + len(logits)
                buffered = buffer[start - first : end - first].copy_(logits_grad)
                if needs_states:
                    torch.mm(buffered, matrix, out=states_grad[chunk])
                if needs_weight and (end - first == buffer_size or end == len(states)):
                    weight_grad += buffer[: end - first].T @ states[first:end]
        ctx.gradients = states_grad, weight_grad, bias_grad
        ctx.dtypes = hidden_states.dtype, weight.dtype, None if bias is None else bias.dtype
        ctx.save_for_backward(divisor)
        return loss / divisor

    @staticmethod
    def backward(ctx, loss_grad):
        (divisor,) = ctx.saved_tensors
        scale = loss_grad / divisor
        gradients = [
            None if gradient is None else (gradient * scale).to(dtype)
            for gradient, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)
        ]
        return *gradients, None, None, None, None


def chunk_cross_entropy(labels: torch.Tensor) -> ChunkLoss:
    """Return the cross-entropy of the rows' `labels`, for [`LinearLoss`]."""

    def chunk_loss(logits, chunk, needs_grad):
        targets = labels[chunk].unsqueeze(-1)
        probabilities = F.softmax(logits, dim=-1, dtype=torch.float32)
        # log Σ exp(logits) from the likeliest token, whose probability is never too small for a logarithm
        log_sums = logits.amax(-1).float() - probabilities.amax(-1).log()
        loss = log_sums.sum() - logits.gather(-1, targets).float().sum()
        if not needs_grad:
            return loss, None
        return loss, probabilities.scatter_add_(-1, targets, torch.full_like(targets, -1, dtype=torch.float32))

    return chunk_loss


@torch.compiler.disable
def linear_cross_entropy(
    hidden_states: torch.Tensor,
    output_layer: nn.Linear,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    softcap: float | None = None,
    ignore_index: int = -100,
    make_loss: Callable[[torch.Tensor], ChunkLoss] = chunk_cross_entropy,
) -> torch.Tensor:
    """
    Return the mean cross-entropy in nats of the output layer's logits without holding all of them.

    Memory does not grow with the vocabulary, and on a CPU it is twice as fast. The numbers are those of matrix products
    under autocast and a softmax in fp32.

    Args:
        hidden_states: `(..., hidden)`.
        labels: `(...)`, not shifted here; `ignore_index` is not predicted.
        num_items_in_batch: divisor of the sum, the number of predicted tokens by default.
        softcap: `final_logit_softcapping`.
        make_loss: makes another loss from the labels of the predicted tokens.
    """
    hidden_states, labels = hidden_states.flatten(0, -2), labels.flatten()
    predicted = labels != ignore_index
    divisor = predicted.sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
    divisor = divisor.clamp(min=1)  # if nothing is predicted, the loss and its gradients are 0
    rows = predicted.nonzero().flatten()
    if len(rows) < len(labels):
        hidden_states, labels = hidden_states[rows], labels[rows]
    return LinearLoss.apply(
        hidden_states,
        output_layer.weight,
        output_layer.bias,
        make_loss(labels),
        divisor.to(hidden_states.device, torch.float32),
        softcap,
        compute_dtype(hidden_states),
    )


def sequence_classification_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    config: TfmConfig,
    num_items_in_batch: torch.Tensor | None = None,
    **kwargs,
) -> torch.Tensor:
    """
    Return the loss of a sentence head, whose `logits` are `(batch, num_labels)`.

    `config.problem_type` decides; if it is None, the labels of the first call set it, as in transformers.
    `num_items_in_batch` is the number of labels in all accumulated batches.
    """
    if config.problem_type is None:
        if config.num_labels == 1:
            config.problem_type = "regression"
        elif labels.dtype in (torch.long, torch.int):
            config.problem_type = "single_label_classification"
        else:
            config.problem_type = "multi_label_classification"
    labels = labels.to(logits.device)
    if config.problem_type == "single_label_classification":
        return fixed_cross_entropy(
            logits.view(-1, config.num_labels).float(), labels.view(-1), num_items_in_batch=num_items_in_batch
        )
    function = F.mse_loss if config.problem_type == "regression" else F.binary_cross_entropy_with_logits
    logits = logits.float().view(labels.shape)
    if num_items_in_batch is None:
        return function(logits, labels.float())
    return function(logits, labels.float(), reduction="sum") / num_items_in_batch
