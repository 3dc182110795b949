"""
Encoding texts on a CPU without computing on padding.

A batch is padded to its longest row, and an encoder spends time on the padding. With `enable_unpadded_encoding(model)`
the blocks receive the tokens of all rows as one row without padding. Only attention restores the rows, as matrix
products over blocks that fit into the cache; for short rows they are twice as fast as `scaled_dot_product_attention`.
`training/LOG.md` has the figures.

The attention implementation is registered with transformers (`AttentionInterface`, `AttentionMaskInterface`). Its mask
brings the row layout, which `TfmModel.run_blocks` applies.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.utils.import_utils import is_tracing

from ..core.inference import unwrap_adapter


UNPADDED = "unpadded"

# Attention scores computed together: 2 MB of them in bf16.
SCORES = 2**20


class UnpaddedRows:
    """
    Row layout and attention mask of a padded batch: the tokens of all rows as one row, without padding.

    Args:
        attention_mask: `(batch, length)`, False at padding.
        visible: True for keys that a query may attend to, `(batch, 1, 1 or length, length)`.
    """

    def __init__(self, attention_mask: torch.Tensor, visible: torch.Tensor):
        self.shape = attention_mask.shape
        self.visible = visible
        self._row, self._column = attention_mask.nonzero(as_tuple=True)
        self._buffers: list[torch.Tensor] = []
        self._bias: torch.Tensor | None = None

    def is_flattened(self, query: torch.Tensor) -> bool:
        """Return whether queries are in the flat layout; a single row without padding is in both."""
        return query.shape[0] == 1 and query.shape[2] == len(self._row)

    def flatten_rows(self, x: torch.Tensor) -> torch.Tensor:
        """`(batch, length, …)` to the tokens without padding, `(1, tokens, …)`."""
        return x[self._row, self._column].unsqueeze(0)

    def unflatten_rows(self, x: torch.Tensor) -> torch.Tensor:
        """`(1, tokens, …)` to `(batch, length, …)`, with zeros at padding."""
        padded = x.new_zeros(*self.shape, *x.shape[2:])
        padded[self._row, self._column] = x[0]
        return padded

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, dropout: float
    ) -> torch.Tensor:
        """Softmax attention within each row, `(1, heads, tokens, head_dim)` to `(1, tokens, heads, head_dim)`."""
        if not self._buffers:  # every layer overwrites the tokens, so padding stays zero
            batch, length = self.shape
            self._buffers = [query.new_zeros(batch, query.shape[1], length, query.shape[3]) for _ in range(3)]
        for buffer, states in zip(self._buffers, (query, key, value)):
            buffer[self._row, :, self._column] = states[0].transpose(0, 1)
        if self._bias is None or self._bias.dtype != query.dtype:
            lowest = torch.finfo(query.dtype).min / 2  # a score plus this must not become -inf
            self._bias = torch.zeros(self.visible.shape, dtype=query.dtype).masked_fill_(~self.visible, lowest)
        queries, keys, values = self._buffers
        output = attend(queries, keys, values, scaling, self._bias, dropout)
        return output[self._row, :, self._column].unsqueeze(0)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    bias: torch.Tensor,
    dropout: float,
) -> torch.Tensor:
    """Softmax attention of `(batch, heads, length, head_dim)`, by groups of rows that fit into the cache."""
    batch, heads, length, width = query.shape
    output = torch.empty_like(query)
    rows = max(1, SCORES // (heads * length * length))
    for start in range(0, batch, rows):
        q, k, v = (x[start : start + rows].reshape(-1, length, width) for x in (query, key, value))
        scores = torch.bmm(q, k.mT).mul_(scaling).view(-1, heads, length, length)
        scores += bias[start : start + rows]
        probabilities = F.dropout(F.softmax(scores, dim=-1), dropout, training=dropout > 0).view(-1, length, length)
        output[start : start + rows] = torch.bmm(probabilities, v).view(-1, heads, length, width)
    return output


def unpadded_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | UnpaddedRows | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: attention within `UnpaddedRows`, else SDPA."""
    if isinstance(attention_mask, UnpaddedRows) and attention_mask.is_flattened(query):
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        return attention_mask.attend(query, key, value, scaling, dropout), None
    if isinstance(attention_mask, UnpaddedRows):
        attention_mask = attention_mask.visible
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)


def unpadded_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    attention_mask: torch.Tensor | None = None,
    local_size: int | None = None,
    allow_is_bidirectional_skip: bool = False,
    **kwargs: Any,
) -> torch.Tensor | UnpaddedRows | None:
    """transformers' mask interface: `UnpaddedRows` for a padded batch without gradients, else `sdpa_mask`."""
    arguments = dict(kwargs, attention_mask=attention_mask, local_size=local_size)
    if (
        attention_mask is None
        or attention_mask.shape != (batch_size, q_length)
        or q_length != kv_length
        or attention_mask.device.type != "cpu"
        or torch.is_grad_enabled()
        or is_tracing(attention_mask)
        or not attention_mask.any()
    ):
        arguments["allow_is_bidirectional_skip"] = allow_is_bidirectional_skip
        return sdpa_mask(batch_size, q_length, kv_length, **arguments)
    if allow_is_bidirectional_skip and local_size is None:  # only padding is hidden
        return UnpaddedRows(attention_mask, attention_mask[:, None, None, :])
    return UnpaddedRows(attention_mask, sdpa_mask(batch_size, q_length, kv_length, **arguments))


AttentionInterface.register(UNPADDED, unpadded_attention_forward)
AttentionMaskInterface.register(UNPADDED, unpadded_mask)


def enable_unpadded_encoding(model: PreTrainedModel) -> bool:
    """
    Let a `TfmEncoder` model with any head encode without padding where it uses SDPA on a CPU.

    Outputs are the same up to rounding, with zeros at padding. It applies to batches with an attention mask, without
    gradients and without recorded hidden states or attentions. The setting is not saved with the model.

    Returns:
        Whether it is enabled now.
    """
    model = unwrap_adapter(model)
    if not isinstance(model, PreTrainedModel) or model.config.model_type != "tfm_encoder":
        return False
    if next(model.parameters()).device.type != "cpu" or model.config._attn_implementation not in ("sdpa", UNPADDED):
        return False
    model.set_attn_implementation(UNPADDED)
    return True
