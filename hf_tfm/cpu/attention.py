"""
Attention for training on a processor, for any model that takes its attention from transformers' interface.

torch's `scaled_dot_product_attention` has a fast forward pass on a CPU and a slow backward pass. At the lengths that
small models are trained at, both are matrix products over blocks that fit into the cache; and where a layer has a
narrow window, most of the products are with tokens that it does not see. `training/LOG.md` has the figures.
`use_blockwise_attention(model)` turns it on.

Attention is also what makes layers differ for a compiler, by window, mask and length. `lay_rows_end_to_end` leaves it
out of what is compiled.
"""

from types import MethodType
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from ..core.inference import unwrap_adapter


NAME = "blockwise"

# Beyond this length the probabilities, which are kept for the backward pass, take too much memory.
MAX_LENGTH = 1024

# Queries in a block, and attention scores worked on together: 2 MB of them in bf16.
BLOCK = 128
SCORES = 2**20

# Queries in a block of a layer with a window are as many as this, or a multiple that is no smaller than the window.
NARROW_BLOCK = 32


class BlockwiseAttention(torch.autograd.Function):
    """
    Softmax attention in bf16, block of queries after block of queries, causal blocks above the diagonal left out.

    Inputs `(batch, heads, length, head_dim)` and a boolean mask `(batch or 1, heads or 1, length, length)`, True where
    a query may look, or None; `is_causal` says that nothing above the diagonal is seen, with a mask or without.
    Returns `(batch, heads, length, head_dim)`.
    """

    @staticmethod
    def forward(ctx, query, key, value, mask, is_causal, scaling):
        with torch.autocast("cpu", enabled=False):
            batch, heads, length, width = query.shape
            query, key, value = (x.to(torch.bfloat16).reshape(-1, length, width) for x in (query, key, value))
            query = query * scaling  # rather than the scores, which are more
            output = torch.empty_like(query)
            probabilities = []
            above = query.new_full((BLOCK, BLOCK), float("-inf")).triu(1) if is_causal and mask is None else None
            hidden = None if mask is None else ~mask.expand(batch, -1, -1, -1)
            for rows, start, end, seen in _blocks(batch, heads, length, is_causal):
                some = slice(rows.start * heads, rows.stop * heads)
                scores = torch.bmm(query[some, start:end], key[some, :seen].mT)
                if hidden is not None:
                    # The lowest number instead of -inf: a row that sees nothing (padding) stays a number.
                    lowest = torch.finfo(scores.dtype).min
                    by_row = scores.view(-1, heads, end - start, seen)
                    by_row.masked_fill_(hidden[rows, :, start:end, :seen], lowest)
                elif above is not None:
                    scores[:, :, start:] += above[: end - start, : end - start]
                weights = F.softmax(scores, dim=-1)
                output[some, start:end] = torch.bmm(weights, value[some, :seen])
                probabilities.append(weights)
        ctx.save_for_backward(query, key, value, output, *probabilities)
        ctx.settings = (batch, heads, length, is_causal, scaling)
        return output.view(batch, heads, length, width)

    @staticmethod
    def backward(ctx, output_grad):
        query, key, value, output, *probabilities = ctx.saved_tensors
        batch, heads, length, is_causal, scaling = ctx.settings
        output_grad = output_grad.to(output.dtype).reshape(output.shape)
        mean_grad = (output_grad.float() * output).sum(-1, keepdim=True).to(output.dtype)
        query_grad, key_grad, value_grad = (torch.empty_like(x) for x in (query, key, value))
        blocks = zip(_blocks(batch, heads, length, is_causal), probabilities, strict=True)
        # Backwards, so that the last block, which sees all keys, writes their gradients, and the others add to them.
        for (rows, start, end, seen), weights in reversed(list(blocks)):
            some = slice(rows.start * heads, rows.stop * heads)
            gradient = output_grad[some, start:end]
            scores_grad = torch.bmm(gradient, value[some, :seen].mT).sub_(mean_grad[some, start:end])
            scores_grad.mul_(weights)
            query_grad[some, start:end] = torch.bmm(scores_grad, key[some, :seen]).mul_(scaling)
            for total, part in (
                (value_grad[some, :seen], torch.bmm(weights.mT, gradient)),
                (key_grad[some, :seen], torch.bmm(scores_grad.mT, query[some, start:end])),
            ):
                total.copy_(part) if end == length else total.add_(part)
        shape = (batch, heads, length, -1)
        return query_grad.view(shape), key_grad.view(shape), value_grad.view(shape), None, None, None


class WindowedAttention(torch.autograd.Function):
    """
    Softmax attention to the tokens near by: blocks of queries, each with the keys of its own block and of those that
    reach into it, all blocks at once. The work grows with the window in place of the length.

    Inputs `(batch, heads, length, head_dim)`, in whose dtype it is computed; a boolean mask `(batch or 1, heads or 1,
    length, length)`, True where a query may look, which is nowhere further than `window` tokens away; `is_causal` says
    that nothing above the diagonal is seen. `length` is a multiple of `block`, and `block` no smaller than `window`.
    Returns `(batch, heads, length, head_dim)`.
    """

    @staticmethod
    def forward(ctx, query, key, value, mask, is_causal, scaling, window, block):
        with torch.autocast("cpu", enabled=False):
            batch, heads, length, width = query.shape
            before, behind = window, 0 if is_causal else window
            seen = before + block + behind  # keys of a block of queries
            hidden = F.pad(~mask, (before, behind), value=True)
            # Of rows in blocks and all places where a block's keys can begin, those that belong together.
            hidden = hidden.unflatten(2, (-1, block)).unfold(-1, seen, block).diagonal(dim1=2, dim2=4).movedim(-1, 2)
            query = query.reshape(-1, block, width) * scaling
            key, value = (
                F.pad(x, (0, 0, before, behind)).unfold(2, seen, block).mT.reshape(-1, seen, width)
                for x in (key, value)
            )
            scores = torch.bmm(query, key.mT)
            scores.view(batch, heads, -1, block, seen).masked_fill_(hidden, torch.finfo(scores.dtype).min)
            weights = F.softmax(scores, dim=-1)
            output = torch.bmm(weights, value)
        ctx.save_for_backward(query, key, value, output, weights)
        ctx.settings = (batch, heads, length, before, behind, scaling)
        return output.view(batch, heads, length, width)

    @staticmethod
    def backward(ctx, output_grad):
        query, key, value, output, weights = ctx.saved_tensors
        batch, heads, length, before, behind, scaling = ctx.settings
        block = query.shape[1]
        output_grad = output_grad.to(output.dtype).reshape(output.shape)
        mean_grad = (output_grad.float() * output).sum(-1, keepdim=True).to(output.dtype)
        scores_grad = torch.bmm(output_grad, value.mT).sub_(mean_grad).mul_(weights)

        def in_line(parts: torch.Tensor) -> torch.Tensor:
            """The gradients of each block's keys, those of a key that several blocks see added up."""
            parts = parts.unflatten(0, (batch * heads, -1))
            total = parts[:, :, before : before + block].clone()
            total[:, :-1, block - before :] += parts[:, 1:, :before]
            if behind:
                total[:, 1:, :behind] += parts[:, :-1, before + block :]
            return total.view(batch, heads, length, -1)

        query_grad = torch.bmm(scores_grad, key).mul_(scaling).view(batch, heads, length, -1)
        key_grad, value_grad = in_line(torch.bmm(scores_grad.mT, query)), in_line(torch.bmm(weights.mT, output_grad))
        return query_grad, key_grad, value_grad, None, None, None, None, None


def _blocks(batch: int, heads: int, length: int, is_causal: bool):
    """Rows of the batch, first and last query, and number of keys these see; for each row the last queries last."""
    together = max(1, SCORES // (heads * min(BLOCK, length) * length))
    for first in range(0, batch, together):
        for start in range(0, length, BLOCK):
            end = min(start + BLOCK, length)
            yield slice(first, min(first + together, batch)), start, end, end if is_causal else length


def blockwise_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: "torch.Tensor | EndToEnd | None",
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """
    transformers' attention interface: in training on a CPU, for whole sequences of at most `MAX_LENGTH` tokens and
    without dropout, `WindowedAttention` where a layer of this package has a narrow `sliding_window`, and
    `BlockwiseAttention` in bf16; else `scaled_dot_product_attention`.

    Returns the states `(batch, length, heads, head_dim)`.
    """
    if isinstance(attention_mask, EndToEnd):
        options = dict(scaling=scaling, dropout=dropout, is_causal=is_causal, **kwargs)
        return attention_mask.attend_by_row(module, query, key, value, **options)
    length = query.shape[2]
    in_bf16 = query.dtype == torch.bfloat16 or (
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    )
    window = kwargs.get("sliding_window") if getattr(module, "keeps_to_window", False) else None
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    block = 0 if window is None or attention_mask is None else _narrow_block(length, window, bool(is_causal))
    serves = (
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
    if not serves:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
        )
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if block:
        query, key, value = (x.to(torch.bfloat16 if in_bf16 else x.dtype) for x in (query, key, value))
        output = WindowedAttention.apply(query, key, value, attention_mask, bool(is_causal), scaling, window, block)
        return output.transpose(1, 2), None
    output = BlockwiseAttention.apply(query, key, value, attention_mask, bool(is_causal), scaling)
    return output.transpose(1, 2), None


def blockwise_mask(batch_size: int, q_length: int, *args: Any, **kwargs: Any) -> torch.Tensor | None:
    """
    transformers' mask interface: `sdpa_mask`, and in training a mask of its own for every row. A batch without padding
    or packed rows needs none, but to a compiled model it would be one of another kind, for which it is compiled again.
    """
    if not torch.is_grad_enabled() or q_length > MAX_LENGTH:
        return sdpa_mask(batch_size, q_length, *args, **kwargs)
    kwargs |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    return sdpa_mask(batch_size, q_length, *args, **kwargs).contiguous()


def _narrow_block(length: int, window: int, is_causal: bool) -> int:
    """Queries in a block of `WindowedAttention`, or 0 where it would not save half of the keys."""
    block = -(-window // NARROW_BLOCK) * NARROW_BLOCK
    seen = block + window * (1 if is_causal else 2)
    return block if length % block == 0 and 2 * seen <= length else 0


AttentionInterface.register(NAME, blockwise_attention_forward)
AttentionMaskInterface.register(NAME, blockwise_mask)


class EndToEnd:
    """
    The rows of a batch laid end to end as one long row, and attention to each of them by itself.

    Args:
        shape: of the batch, `(batch, length)`.
        mask: of the batch, as attention takes it.
    """

    def __init__(self, shape: torch.Size, mask: torch.Tensor | None):
        self.shape, self.mask = shape, mask

    @torch.compiler.disable
    def attend_by_row(
        self, layer: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        """A layer's attention for `(1, heads, batch * length, head_dim)`: `(1, batch * length, heads, head_dim)`."""
        query, key, value = (x[0].unflatten(1, self.shape).transpose(0, 1) for x in (query, key, value))
        output, _ = blockwise_attention_forward(layer, query, key, value, self.mask, **kwargs)
        return output.flatten(0, 1).unsqueeze(0), None


def lay_rows_end_to_end(model: torch.nn.Module) -> bool:
    """
    Let a model of this package that attends blockwise compute everything else on the rows of a batch laid end to end.
    So many tokens are the same to a compiler in long and in short rows, and so are layers with and without a window.

    Returns:
        Whether it does now. Nothing of it is saved with the model; `lay_rows_side_by_side` takes it back.
    """
    parts = _parts_for_long_rows(model)
    for part in parts:
        part.run_blocks = MethodType(_run_blocks_end_to_end, part)  # a method: a copy of the model runs its own blocks
    return bool(parts)


def can_lay_rows_end_to_end(model: torch.nn.Module) -> bool:
    """Whether `lay_rows_end_to_end` would do something."""
    return bool(_parts_for_long_rows(model))


def _parts_for_long_rows(model: torch.nn.Module) -> list[torch.nn.Module]:
    return [part for part in model.modules() if hasattr(part, "run_blocks") and attends_blockwise(part)]


def lay_rows_side_by_side(model: torch.nn.Module) -> None:
    """Undo `lay_rows_end_to_end`."""
    for part in model.modules():
        if getattr(vars(part).get("run_blocks"), "__func__", None) is _run_blocks_end_to_end:
            del part.run_blocks


def _run_blocks_end_to_end(
    self: torch.nn.Module,
    hidden_states: torch.Tensor,
    position_ids: torch.Tensor,
    masks: dict[str, torch.Tensor | None],
    encoder_hidden_states: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    config, run_blocks = self.config, type(self).run_blocks
    # A layer that is computed again in the backward pass is compiled whole, or not at all.
    checkpointed = any(getattr(block, "gradient_checkpointing", False) for block in self.layers)
    as_they_are = (
        not attends_blockwise(self)
        or encoder_hidden_states is not None
        or kwargs.get("cache") is not None
        or any(mask is not None and mask.ndim != 4 for mask in masks.values())
        or any(kwargs.get(name, getattr(config, name)) for name in ("output_hidden_states", "output_attentions"))
        or checkpointed
    )
    if as_they_are:
        return run_blocks(self, hidden_states, position_ids, masks, encoder_hidden_states, **kwargs)
    shape = hidden_states.shape[:2]
    in_line = {name: EndToEnd(shape, mask) for name, mask in masks.items()}
    positions = position_ids.expand(shape).reshape(1, -1)
    return run_blocks(self, hidden_states.reshape(1, -1, hidden_states.shape[2]), positions, in_line, **kwargs).view(
        *shape, -1
    )


def attends_blockwise(model: torch.nn.Module) -> bool:
    """Whether `use_blockwise_attention` holds for it."""
    return model.config._attn_implementation == NAME


def use_blockwise_attention(model: torch.nn.Module) -> bool:
    """
    Let a model (or the one inside a PEFT model) use it where it would use `scaled_dot_product_attention` on a CPU;
    whether it does now. Nothing of it is saved with the model.
    """
    model = unwrap_adapter(model)
    if not isinstance(model, PreTrainedModel) or not model._supports_attention_backend:
        return False
    if next(model.parameters()).device.type != "cpu" or model.config._attn_implementation not in ("sdpa", NAME):
        return False
    model.set_attn_implementation(NAME)
    return True
