"""Cross-entropy over the vocabulary without holding the logits of a whole batch."""

import torch
from torch import nn
from torch.nn import functional as F


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """What matrix products with `x` are computed in: autocast's type where it is on, else its own."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def soft_capped(logits: torch.Tensor, softcap: float | None) -> torch.Tensor:
    """Logits bent to stay below `final_logit_softcapping` (Gemma 2, https://huggingface.co/papers/2408.00118)."""
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap


# Numbers of a gradient with respect to logits that are held at most, beyond those of one step of rows.
_WAITING_GRADIENTS = 1 << 24


class LinearCrossEntropy(torch.autograd.Function):
    """
    Cross-entropy of `hidden_states @ weight.T + bias` without holding the logits: some rows at a time are projected,
    and their gradient is taken while their logits are still in the processor's cache. It waits, in the products' type,
    for that of some more rows, because adding to the weights' gradient costs as much for few rows as for many.
    """

    @staticmethod
    def forward(ctx, hidden_states, weight, bias, labels, divisor, softcap, dtype):
        device_type = hidden_states.device.type
        with torch.autocast(device_type, enabled=False):
            states, matrix = hidden_states.to(dtype), weight.to(dtype)
            offset = None if bias is None else bias.to(dtype)
            needs_states, needs_weight, needs_bias = ctx.needs_input_grad[:3]
            states_grad = torch.empty_like(states) if needs_states else None
            weight_grad = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
            bias_grad = torch.zeros_like(bias, dtype=torch.float32) if needs_bias else None
            loss = torch.zeros((), dtype=torch.float32, device=states.device)
            rows = 256 if device_type == "cpu" else 4096
            waiting = rows * max(1, _WAITING_GRADIENTS // (rows * len(matrix)))
            gradients = states.new_empty(min(waiting, len(states)), len(matrix)) if any(ctx.needs_input_grad) else None
            for start in range(0, len(states), rows):
                some = slice(start, start + rows)
                logits = soft_capped(F.linear(states[some], matrix, offset), softcap)
                targets = labels[some].unsqueeze(-1)
                probabilities = F.softmax(logits, dim=-1, dtype=torch.float32)
                # log Σ exp(logits) by the likeliest token, whose probability is never too small for its logarithm
                log_sums = logits.amax(-1).float() - probabilities.amax(-1).log()
                loss += log_sums.sum() - logits.gather(-1, targets).float().sum()
                if gradients is None:
                    continue
                probabilities.scatter_add_(-1, targets, torch.full_like(targets, -1, dtype=torch.float32))
                if softcap is not None:
                    probabilities *= 1 - (logits / softcap).square()
                if needs_bias:
                    bias_grad += probabilities.sum(0)
                first = start // waiting * waiting
                gradient = gradients[start - first : start - first + len(logits)].copy_(probabilities)
                if needs_states:
                    torch.mm(gradient, matrix, out=states_grad[some])
                end = start + len(logits)
                if needs_weight and (end - first == waiting or end == len(states)):
                    weight_grad += gradients[: end - first].T @ states[first:end]
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


@torch.compiler.disable
def linear_cross_entropy(
    hidden_states: torch.Tensor,
    output_layer: nn.Linear,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    softcap: float | None = None,
    ignore_index: int = -100,
) -> torch.Tensor:
    """
    Mean cross-entropy in nats of the output layer's logits, which never exist all at once: memory does not grow with
    the vocabulary, and on a processor it is twice as fast. The same numbers as autocast's matrix products and a
    softmax in fp32.

    Args:
        hidden_states: `(..., hidden)`.
        labels: `(...)`, not shifted here.
        num_items_in_batch: what the sum is divided by, the number of predicted tokens by default.
        softcap: `final_logit_softcapping`.
    """
    hidden_states, labels = hidden_states.flatten(0, -2), labels.flatten()
    predicted = labels != ignore_index
    divisor = predicted.sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
    divisor = divisor.clamp(min=1)  # where nothing is predicted the loss is 0, and so are its gradients
    rows = predicted.nonzero().flatten()
    if len(rows) < len(labels):
        hidden_states, labels = hidden_states[rows], labels[rows]
    return LinearCrossEntropy.apply(
        hidden_states,
        output_layer.weight,
        output_layer.bias,
        labels,
        divisor.to(hidden_states.device, torch.float32),
        softcap,
        compute_dtype(hidden_states),
    )
