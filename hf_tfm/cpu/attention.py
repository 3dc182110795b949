"""
Attention for training on a CPU, for any model that uses transformers' attention interface.

The forward pass of torch's `scaled_dot_product_attention` is fast on a CPU, its backward pass is slow. At the lengths
of small models both are matrix products over blocks that fit into the cache; and if a layer has a narrow window, most
products with tokens outside the window can be skipped. `training/LOG.md` has the figures.

`enable_blockwise_attention(model)` turns it on. `enable_unpadded_training(model)` moreover flattens the rows of a batch
for everything but attention, which is the part of a block that differs by window, mask and row length: so a block is
compiled once. Both are attention implementations registered with transformers (`AttentionInterface`,
`AttentionMaskInterface`).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from ..core.inference import unwrap_adapter
from ..models.modeling_tfm import TfmAttention, TfmModel


# Names of the attention implementations.
BLOCKWISE, BLOCKWISE_UNPADDED = "blockwise", "blockwise_unpadded"

# For longer rows the probabilities, which the backward pass needs, take too much memory.
MAX_LENGTH = 1024

# Queries in a block, and attention scores computed together: 2 MB of them in bf16.
BLOCK = 128
SCORES = 2**20

# The block of a layer with a window is the smallest multiple of this that is no smaller than the window.
NARROW_BLOCK = 32


class BlockwiseAttention(torch.autograd.Function):
    """
    Softmax attention in bf16 by blocks of queries, without the causal blocks above the diagonal.

    Inputs are `(batch, heads, length, head_dim)` and a boolean mask `(batch or 1, heads or 1, length, length)`, True
    for keys that a query may attend to, or None. `is_causal` tells that nothing above the diagonal is visible, with or
    without a mask. Returns `(batch, heads, length, head_dim)`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        is_causal: bool,
        scaling: float,
    ) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            batch, heads, length, width = query.shape
            query, key, value = (x.to(torch.bfloat16).reshape(-1, length, width) for x in (query, key, value))
            query = query * scaling  # cheaper than scaling the scores, which are more numbers
            output = torch.empty_like(query)
            probabilities = []
            above = query.new_full((BLOCK, BLOCK), float("-inf")).triu(1) if is_causal and mask is None else None
            hidden = None if mask is None else ~mask.expand(batch, -1, -1, -1)
            for rows, start, end, keys in _blocks(batch, heads, length, is_causal):
                matrices = slice(rows.start * heads, rows.stop * heads)
                scores = torch.bmm(query[matrices, start:end], key[matrices, :keys].mT)
                if hidden is not None:
                    # The lowest number instead of -inf, so that a query without visible keys (padding) stays finite.
                    lowest = torch.finfo(scores.dtype).min
                    by_row = scores.view(-1, heads, end - start, keys)
                    by_row.masked_fill_(hidden[rows, :, start:end, :keys], lowest)
                elif above is not None:
                    scores[:, :, start:] += above[: end - start, : end - start]
                probabilities.append(F.softmax(scores, dim=-1))
                output[matrices, start:end] = torch.bmm(probabilities[-1], value[matrices, :keys])
        ctx.save_for_backward(query, key, value, output, *probabilities)
        ctx.settings = (batch, heads, length, is_causal, scaling)
        return output.view(batch, heads, length, width)

    @staticmethod
    def backward(ctx: Any, output_grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, output, *probabilities = ctx.saved_tensors
        batch, heads, length, is_causal, scaling = ctx.settings
        output_grad = output_grad.to(output.dtype).reshape(output.shape)
        mean_grad = (output_grad.float() * output).sum(-1, keepdim=True).to(output.dtype)
        query_grad, key_grad, value_grad = (torch.empty_like(x) for x in (query, key, value))
        blocks = zip(_blocks(batch, heads, length, is_causal), probabilities, strict=True)
        # In reverse order: the last block sees all keys and writes their gradients, the other blocks add to them.
        for (rows, start, end, keys), weights in reversed(list(blocks)):
            matrices = slice(rows.start * heads, rows.stop * heads)
            gradient = output_grad[matrices, start:end]
            scores_grad = torch.bmm(gradient, value[matrices, :keys].mT).sub_(mean_grad[matrices, start:end])
            scores_grad.mul_(weights)
            query_grad[matrices, start:end] = torch.bmm(scores_grad, key[matrices, :keys]).mul_(scaling)
            for total, part in (
                (value_grad[matrices, :keys], torch.bmm(weights.mT, gradient)),
                (key_grad[matrices, :keys], torch.bmm(scores_grad.mT, query[matrices, start:end])),
            ):
                total.copy_(part) if end == length else total.add_(part)
        shape = (batch, heads, length, -1)
        return query_grad.view(shape), key_grad.view(shape), value_grad.view(shape), None, None, None


class WindowedAttention(torch.autograd.Function):
    """
    Softmax attention within a window: all blocks of queries at once, each with the keys it can see.

    The work grows with the window instead of the length. Inputs are `(batch, heads, length, head_dim)`, whose dtype is
    used, and a boolean mask `(batch or 1, heads or 1, length, length)`, True for keys that a query may attend to: at
    most `window` tokens away. `is_causal` tells that nothing above the diagonal is visible. `length` is a multiple of
    `block`, and `block` is no smaller than `window`. Returns `(batch, heads, length, head_dim)`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor,
        is_causal: bool,
        scaling: float,
        window: int,
        block: int,
    ) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            batch, heads, length, width = query.shape
            left, right = window, 0 if is_causal else window
            keys = left + block + right  # for a block of queries
            hidden = F.pad(~mask, (left, right), value=True)
            # The diagonal pairs each block of queries with the range of keys that belongs to it.
            hidden = hidden.unflatten(2, (-1, block)).unfold(-1, keys, block).diagonal(dim1=2, dim2=4).movedim(-1, 2)
            query = query.reshape(-1, block, width) * scaling
            key, value = (
                F.pad(x, (0, 0, left, right)).unfold(2, keys, block).mT.reshape(-1, keys, width) for x in (key, value)
            )
            scores = torch.bmm(query, key.mT)
            scores.view(batch, heads, -1, block, keys).masked_fill_(hidden, torch.finfo(scores.dtype).min)
            weights = F.softmax(scores, dim=-1)
            output = torch.bmm(weights, value)
        ctx.save_for_backward(query, key, value, output, weights)
        ctx.settings = (batch, heads, length, left, right, scaling)
        return output.view(batch, heads, length, width)

    @staticmethod
    def backward(ctx: Any, output_grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, output, weights = ctx.saved_tensors
        batch, heads, length, left, right, scaling = ctx.settings
        block = query.shape[1]
        output_grad = output_grad.to(output.dtype).reshape(output.shape)
        mean_grad = (output_grad.float() * output).sum(-1, keepdim=True).to(output.dtype)
        scores_grad = torch.bmm(output_grad, value.mT).sub_(mean_grad).mul_(weights)

        def merge(parts: torch.Tensor) -> torch.Tensor:
            """Return the gradients of all keys, summed over the blocks that see a key."""
            parts = parts.unflatten(0, (batch * heads, -1))
            total = parts[:, :, left : left + block].clone()
            total[:, :-1, block - left :] += parts[:, 1:, :left]
            if right:
                total[:, 1:, :right] += parts[:, :-1, left + block :]
            return total.view(batch, heads, length, -1)

        query_grad = torch.bmm(scores_grad, key).mul_(scaling).view(batch, heads, length, -1)
        key_grad, value_grad = merge(torch.bmm(scores_grad.mT, query)), merge(torch.bmm(weights.mT, output_grad))
        return query_grad, key_grad, value_grad, None, None, None, None, None


def _blocks(batch: int, heads: int, length: int, is_causal: bool) -> Iterator[tuple[slice, int, int, int]]:
    """Yield rows of the batch, first and last query, and number of visible keys; in order within a row."""
    rows = max(1, SCORES // (heads * min(BLOCK, length) * length))
    for first in range(0, batch, rows):
        for start in range(0, length, BLOCK):
            end = min(start + BLOCK, length)
            yield slice(first, min(first + rows, batch)), start, end, end if is_causal else length


class FlattenedRows:
    """
    Row layout and mask of a training batch: all rows as one sequence, attention within each row.

    `TfmModel.run_blocks` calls `flatten_rows` and `unflatten_rows`. Padding tokens stay: the number of tokens does not
    depend on them, and a compiled block is compiled for a number of tokens.

    Args:
        shape: `(batch, length)`.
        mask: attention mask of the batch, `(batch or 1, 1, length, length)`, or None.
    """

    def __init__(self, shape: tuple[int, int], mask: torch.Tensor | None):
        self.shape, self.mask = shape, mask

    def flatten_rows(self, x: torch.Tensor) -> torch.Tensor:
        """`(batch, length, …)` to `(1, batch * length, …)`."""
        return x.reshape(1, -1, *x.shape[2:])

    def unflatten_rows(self, x: torch.Tensor) -> torch.Tensor:
        """`(1, batch * length, …)` to `(batch, length, …)`."""
        return x.view(*self.shape, *x.shape[2:])

    @torch.compiler.disable
    def attend(
        self, module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        """Attention of `(1, heads, batch * length, head_dim)`, or of the batch itself if it was not flattened."""
        if query.shape[0] == self.shape[0]:
            return blockwise_attention_forward(module, query, key, value, self.mask, **kwargs)
        query, key, value = (x[0].unflatten(1, self.shape).transpose(0, 1) for x in (query, key, value))
        output, _ = blockwise_attention_forward(module, query, key, value, self.mask, **kwargs)
        return output.flatten(0, 1).unsqueeze(0), None


def blockwise_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | FlattenedRows | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """
    transformers' attention interface: blockwise attention in training on a CPU.

    It serves whole sequences of at most `MAX_LENGTH` tokens without dropout: by `WindowedAttention` if a layer of this
    package has a narrow `sliding_window`, by `BlockwiseAttention` in bf16. Other calls use SDPA
    (`scaled_dot_product_attention`).

    Returns the states `(batch, length, heads, head_dim)`.
    """
    if isinstance(attention_mask, FlattenedRows):
        options = dict(scaling=scaling, dropout=dropout, is_causal=is_causal, **kwargs)
        return attention_mask.attend(module, query, key, value, **options)
    length = query.shape[2]
    in_bf16 = query.dtype == torch.bfloat16 or (
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    )
    # Layers of this package pass their window only if the mask hides everything outside it.
    window = kwargs.get("sliding_window") if isinstance(module, TfmAttention) else None
    is_causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    block = 0 if window is None or attention_mask is None else _narrow_block(length, window, is_causal)
    is_served = (
        (in_bf16 or block)
        and query.device.type == "cpu"
        and torch.is_grad_enabled()
        and query.requires_grad
        and dropout == 0.0
        and length == key.shape[2]
        and query.shape[3] == value.shape[3]
        and length <= MAX_LENGTH
        and (attention_mask is None or attention_mask.dtype == torch.bool)
    )
    if not is_served:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
        )
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if block:
        query, key, value = (x.to(torch.bfloat16 if in_bf16 else x.dtype) for x in (query, key, value))
        output = WindowedAttention.apply(query, key, value, attention_mask, is_causal, scaling, window, block)
    else:
        output = BlockwiseAttention.apply(query, key, value, attention_mask, is_causal, scaling)
    return output.transpose(1, 2), None


def _narrow_block(length: int, window: int, is_causal: bool) -> int:
    """Return the block size of `WindowedAttention`, or 0 if it would not save half of the keys."""
    block = -(-window // NARROW_BLOCK) * NARROW_BLOCK
    keys = block + window * (1 if is_causal else 2)
    return block if length % block == 0 and 2 * keys <= length else 0


def blockwise_mask(batch_size: int, q_length: int, *args: Any, **kwargs: Any) -> torch.Tensor | None:
    """
    transformers' mask interface: `sdpa_mask`, in training with a mask for every batch.

    A batch without padding and packed rows needs no mask, but a compiled model would be compiled again for it.
    """
    if not torch.is_grad_enabled() or q_length > MAX_LENGTH:
        return sdpa_mask(batch_size, q_length, *args, **kwargs)
    kwargs |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return sdpa_mask(batch_size, q_length, *args, **kwargs).contiguous()


def unpadded_blockwise_mask(
    batch_size: int, q_length: int, kv_length: int, **kwargs: Any
) -> torch.Tensor | FlattenedRows | None:
    """transformers' mask interface: `blockwise_mask`, in training as `FlattenedRows`."""
    mask = blockwise_mask(batch_size, q_length, kv_length, **kwargs)
    return FlattenedRows((batch_size, q_length), mask) if torch.is_grad_enabled() and q_length == kv_length else mask


AttentionInterface.register(BLOCKWISE, blockwise_attention_forward)
AttentionMaskInterface.register(BLOCKWISE, blockwise_mask)
AttentionInterface.register(BLOCKWISE_UNPADDED, blockwise_attention_forward)
AttentionMaskInterface.register(BLOCKWISE_UNPADDED, unpadded_blockwise_mask)


def enable_blockwise_attention(model: PreTrainedModel) -> bool:
    """
    Let a model (or the base model of a PEFT model) use blockwise attention in place of SDPA.

    The setting is not saved with the model.

    Returns:
        Whether it is enabled now: the model is on a CPU and looks its attention up in transformers' interface.
    """
    model = unwrap_adapter(model)
    if not isinstance(model, PreTrainedModel) or not model._supports_attention_backend:
        return False
    if next(model.parameters()).device.type != "cpu":
        return False
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(BLOCKWISE)
    return uses_blockwise_attention(model)


def uses_blockwise_attention(model: PreTrainedModel) -> bool:
    """Return whether blockwise attention is enabled for a model."""
    return model.config._attn_implementation in (BLOCKWISE, BLOCKWISE_UNPADDED)


def enable_unpadded_training(model: torch.nn.Module) -> bool:
    """
    Flatten the rows of a batch for everything but attention, in a model with blockwise attention.

    A compiler then sees the same number of tokens in long and in short rows, and the same code in layers with and
    without a window. It applies in training, without a cache, cross-attention, gradient checkpointing or recorded
    hidden states. The setting is not saved with the model; `disable_unpadded_training` reverts it.

    Returns:
        Whether it is enabled now: the model belongs to this package and uses blockwise attention.
    """
    return _switch(model, BLOCKWISE_UNPADDED)


def disable_unpadded_training(model: torch.nn.Module) -> None:
    """Revert `enable_unpadded_training`."""
    _switch(model, BLOCKWISE)


def supports_unpadded_training(model: torch.nn.Module) -> bool:
    """Return whether `enable_unpadded_training` would have an effect."""
    return any(isinstance(module, TfmModel) and uses_blockwise_attention(module) for module in model.modules())


def _switch(model: torch.nn.Module, implementation: str) -> bool:
    bases = [module for module in model.modules() if isinstance(module, TfmModel) and uses_blockwise_attention(module)]
    for base in bases:
        base.set_attn_implementation(implementation)
    return bool(bases)
