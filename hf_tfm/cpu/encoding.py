"""
Encoding texts on a processor without their padding.

A batch of texts is filled up to its longest, and an encoder computes on what it was filled with. Here the blocks get
the real tokens of all rows in one row; attention alone sees rows again, as products over blocks that fit into the
cache, which for short rows are twice as fast as `scaled_dot_product_attention`. `training/LOG.md` has the figures.
"""

from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.utils.import_utils import is_tracing

from ..core.inference import unwrap_adapter


NAME = "unpadded"

# Attention scores worked on together: 2 MB of them in bf16.
SCORES = 2**20


class Rows:
    """
    Where the real tokens of a batch stand, and the attention among them.

    Args:
        mask: `(batch, length)`, 0 at padding.
    """

    def __init__(self, mask: torch.Tensor):
        self.shape = mask.shape
        self.row, self.column = mask.nonzero(as_tuple=True)
        self.is_padding = mask == 0
        self._buffers: list[torch.Tensor] = []
        self._biases: dict[tuple[int | None, torch.dtype], torch.Tensor] = {}

    def flatten(self, x: torch.Tensor) -> torch.Tensor:
        """`(batch, length, …)` to the real tokens `(1, tokens, …)`."""
        return x[self.row, self.column].unsqueeze(0)

    def unflatten(self, x: torch.Tensor) -> torch.Tensor:
        """The opposite; zeros where there is padding."""
        padded = x.new_zeros(*self.shape, *x.shape[2:])
        padded[self.row, self.column] = x[0]
        return padded

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, window: int | None
    ) -> torch.Tensor:
        """Softmax attention of `(1, heads, tokens, head_dim)`, each row for itself: `(1, tokens, heads, head_dim)`."""
        if not self._buffers:  # written over by every layer, so that padding stays zero
            batch, length = self.shape
            self._buffers = [query.new_zeros(batch, query.shape[1], length, query.shape[3]) for _ in range(3)]
        for buffer, states in zip(self._buffers, (query, key, value)):
            buffer[self.row, :, self.column] = states[0].transpose(0, 1)
        queries, keys, values = self._buffers
        output = attend(queries, keys, values, scaling, self._bias(window, query.dtype))
        return output[self.row, :, self.column].unsqueeze(0)

    def _bias(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """Added to the scores: the lowest number where a query may not look, `(batch, 1, 1 or length, length)`."""
        if (window, dtype) not in self._biases:
            hidden = self.is_padding[:, None, None, :]
            if window is not None:
                places = torch.arange(self.shape[1])
                hidden = hidden | ((places[:, None] - places).abs() >= window)
            lowest = torch.finfo(dtype).min / 2  # added to a score it must not become -inf
            self._biases[window, dtype] = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, lowest)
        return self._biases[window, dtype]


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, bias: torch.Tensor
) -> torch.Tensor:
    """Softmax attention of `(batch, heads, length, head_dim)`, as many rows at a time as fit into the cache."""
    batch, heads, length, width = query.shape
    output = torch.empty_like(query)
    together = max(1, SCORES // (heads * length * length))
    for start in range(0, batch, together):
        q, k, v = (x[start : start + together].reshape(-1, length, width) for x in (query, key, value))
        scores = torch.bmm(q, k.mT).mul_(scaling).view(-1, heads, length, length)
        scores += bias[start : start + together]
        weights = F.softmax(scores, dim=-1).view(-1, length, length)
        output[start : start + together] = torch.bmm(weights, v).view(-1, heads, length, width)
    return output


def unpadded_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | Rows | None,
    scaling: float | None = None,
    call_arguments: dict[str, Any] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """
    transformers' attention interface: among `Rows`, else `scaled_dot_product_attention`. By naming `call_arguments`,
    which `_hand_on` adds to a call, it makes the model accept them.
    """
    if not isinstance(attention_mask, Rows):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attention_mask.attend(query, key, value, scaling, getattr(module, "sliding_window", None)), None


AttentionInterface.register(NAME, unpadded_attention_forward)
AttentionMaskInterface.register(NAME, sdpa_mask)


def use_unpadded_encoding(model: nn.Module) -> bool:
    """
    Let a `TfmEncoder` model, with any head, encode without padding where it would use `scaled_dot_product_attention`
    on a CPU; whether it does now. The same outputs up to rounding, zeros at padding. It serves where there are no
    gradients; packed rows, hidden states and attentions are computed as before. Nothing of it is saved with the model.
    """
    model = unwrap_adapter(model)
    if not isinstance(model, PreTrainedModel) or model.config.model_type != "tfm_encoder":
        return False
    if next(model.parameters()).device.type != "cpu" or model.config._attn_implementation not in ("sdpa", NAME):
        return False
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)
        base = model.base_model
        base.register_forward_pre_hook(_hand_on, with_kwargs=True)
        base.run_blocks = MethodType(_run_blocks, base)  # a method, so that a copy of the model runs its own blocks
    return True


def _hand_on(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """The arguments of a call, by name, as one more argument, which goes on to `run_blocks`."""
    if module.config._attn_implementation != NAME:  # changed since
        return args, kwargs
    named = dict(zip(("input_ids", "attention_mask", "token_type_ids", "position_ids"), args), **kwargs)
    return args, {**kwargs, "call_arguments": named}


def _run_blocks(
    self: nn.Module,
    hidden_states: torch.Tensor,
    position_ids: torch.Tensor,
    masks: dict,
    call_arguments: dict[str, Any] | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    run_blocks = partial(type(self).run_blocks, self)
    rows = None
    if call_arguments is not None and not self.training:
        rows = rows_of(call_arguments, hidden_states, self.config)
    if rows is None:
        return run_blocks(hidden_states, position_ids, masks, **kwargs)
    states, position_ids = rows.flatten(hidden_states), rows.flatten(position_ids.expand(rows.shape))
    return rows.unflatten(run_blocks(states, position_ids, dict.fromkeys(masks, rows), **kwargs))


def rows_of(call_arguments: dict[str, Any], hidden_states: torch.Tensor, config: Any) -> Rows | None:
    """The rows of a call with these arguments, or None where it is to be computed as it stands."""
    mask = call_arguments.get("attention_mask")
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2 or call_arguments.get("position_ids") is not None:
        return None
    if not mask.any() or torch.is_grad_enabled() or hidden_states.device.type != "cpu" or is_tracing(hidden_states):
        return None
    if any(call_arguments.get(name, getattr(config, name)) for name in ("output_hidden_states", "output_attentions")):
        return None
    return Rows(mask)
