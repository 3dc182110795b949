"""
A Transformer block that computes one new token per row on a CPU.

Private names of torch used here: `torch.ops.mkldnn._reorder_linear_weight`, `_linear_pointwise` and
`_is_mkldnn_bf16_supported` for packed matrix products (`test_packed_products_equal_torchs` fails if they change).
Without them the products are `torch.nn.functional.linear`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..models.modeling_tfm import TfmRMSNorm, gated_heads


class FusedLinear:
    """
    Linear layers with the same input as one matrix product.

    Reading weights is most of the work for a token, so they are stored in the layout that suits a batch of `rows`:
    packed for oneDNN's kernels, or transposed for one fp32 row.
    """

    def __init__(self, *layers: nn.Linear, rows: int):
        weight: torch.Tensor = torch.cat([layer.weight for layer in layers])
        self.bias: torch.Tensor | None = None
        if any(layer.bias is not None for layer in layers):
            zeros = (weight.new_zeros(layer.out_features) for layer in layers)
            self.bias = torch.cat([z if layer.bias is None else layer.bias for z, layer in zip(zeros, layers)])
        self.product: Callable[..., torch.Tensor] = F.linear
        if rows == 1 and weight.dtype == torch.float32:
            weight, self.product = weight.T.contiguous(), _transposed_product
        elif _can_pack(weight.dtype):
            weight, self.product = torch.ops.mkldnn._reorder_linear_weight(weight, rows), _packed_product
        self.weight = weight

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        return self.product(states, self.weight, self.bias)


def _can_pack(dtype: torch.dtype) -> bool:
    """Return whether oneDNN has packed matrix products for a dtype on this CPU."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    # oneDNN raises an error for bf16 on a CPU without bf16 instructions.
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _packed_product(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")


def _transposed_product(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return states @ weight if bias is None else torch.addmm(bias, states, weight)


class DecodingBlock:
    """
    A Transformer block for one new token per row, with few operations.

    Layers with the same input are one product. Keys and values have buffers with space for later tokens; transformers'
    `DynamicCache` copies them for each new token.
    """

    initial_capacity = 256

    def __init__(self, block: Any, keys: torch.Tensor, values: torch.Tensor):
        attention, mlp, rows = block.self_attn, block.mlp, len(keys)
        config = attention.config
        self.is_pre_norm = config.norm_position == "pre"
        self.head_dim, self.scaling, self.window = attention.head_dim, attention.scaling, attention.sliding_window
        self.key_value_heads, self.groups = keys.shape[1], attention.num_key_value_groups
        self.query_heads = self.key_value_heads * self.groups
        self.value_mix, self.has_head_gate = attention.value_mix, config.attention_gate
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.qkv = FusedLinear(*projections, *([attention.head_gate] if self.has_head_gate else []), rows=rows)
        self.out = FusedLinear(attention.o_proj, rows=rows)
        self.is_gated, self.act_fn = config.gated_mlp, mlp.act_fn
        self.up = FusedLinear(*([mlp.gate_proj] if self.is_gated else []), mlp.up_proj, rows=rows)
        self.down = FusedLinear(mlp.down_proj, rows=rows)
        self.attention_norm, self.mlp_norm = _norm(block.input_layernorm), _norm(block.post_attention_layernorm)
        self.query_key_norm = None
        if not isinstance(attention.q_norm, nn.Identity):
            repeats = torch.tensor([self.query_heads, self.key_value_heads])
            weights = torch.stack([attention.q_norm.weight, attention.k_norm.weight])
            self.query_key_norm = _rms_norm(weights.repeat_interleave(repeats, dim=0), attention.q_norm.eps)
        # In fp32, whose small products are faster; keys with their positions last, so that they are read in order.
        dtype = torch.promote_types(keys.dtype, torch.float32)
        self.stored, self.keys, self.values = keys.shape[2], keys.mT.to(dtype), values.to(dtype)
        self._grow_buffers(self.stored, self.initial_capacity)

    def _grow_buffers(self, tokens: int, capacity: int) -> None:
        """Keep the last `tokens` tokens, followed by space for `capacity` more."""
        first = self.stored - tokens
        self.keys = F.pad(self.keys[..., first : self.stored], (0, capacity)).contiguous()
        self.values = F.pad(self.values[:, :, first : self.stored], (0, 0, 0, capacity)).contiguous()
        self.stored = tokens

    def visible_tokens(self) -> int:
        """Return the number of tokens that the next token attends to, itself included."""
        return self.stored + 1 if self.window is None else min(self.stored + 1, self.window)

    def step(
        self,
        states: torch.Tensor,
        rotation: tuple | None,
        padding: torch.Tensor | None,
        embedding_values: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        Return the block's output for the states of the new tokens, both `(batch, hidden)`.

        Args:
            rotation: cosines and sines `(batch or 1, 1, head_dim)`.
            padding: True for visible tokens that are padding, `(batch, 1, 1, visible)`.
            embedding_values: values of `value_residual`, `(batch, key/value width)`.
        """
        if self.is_pre_norm:
            states = states + self._attend(self.attention_norm(states), rotation, padding, embedding_values)
            return states + self._feed_forward(self.mlp_norm(states))
        states = self.attention_norm(states + self._attend(states, rotation, padding, embedding_values))
        return self.mlp_norm(states + self._feed_forward(states))

    def _attend(
        self,
        states: torch.Tensor,
        rotation: tuple | None,
        padding: torch.Tensor | None,
        embedding_values: torch.Tensor | None,
    ) -> torch.Tensor:
        batch, visible = states.shape[0], self.visible_tokens()
        rotated_heads = self.query_heads + self.key_value_heads
        projected = self.qkv(states)
        if self.has_head_gate:
            projected, gate = projected[:, : -self.query_heads], projected[:, -self.query_heads :]
        heads = projected.view(batch, -1, self.head_dim)
        query_key, value = heads[:, :rotated_heads], heads[:, rotated_heads:]
        if self.value_mix is not None and embedding_values is not None:
            value = value + self.value_mix * embedding_values.view(value.shape)
        if self.query_key_norm is not None:
            query_key = self.query_key_norm(query_key)
        if rotation is not None:
            cos, sin = rotation
            first, second = query_key.chunk(2, dim=-1)
            query_key = query_key * cos + torch.cat((-second, first), dim=-1) * sin
        if self.stored == self.keys.shape[-1]:
            # The buffer of all tokens doubles; that of a window drops earlier tokens.
            if self.window is None:
                self._grow_buffers(self.stored, self.stored)
            else:
                self._grow_buffers(visible - 1, self.initial_capacity)
        self.keys[..., self.stored] = query_key[:, self.query_heads :]
        self.values[:, :, self.stored] = value
        self.stored += 1
        window = slice(self.stored - visible, self.stored)
        query = query_key[:, : self.query_heads].view(batch, self.key_value_heads, self.groups, self.head_dim)
        scores = torch.matmul(query.to(self.keys.dtype), self.keys[..., window]) * self.scaling
        if padding is not None:
            scores.masked_fill_(padding, float("-inf"))
        output = torch.matmul(F.softmax(scores, dim=-1), self.values[:, :, window])
        output = output.view(batch, -1).to(states.dtype)
        return self.out(gated_heads(output, gate) if self.has_head_gate else output)

    def _feed_forward(self, states: torch.Tensor) -> torch.Tensor:
        states = self.up(states)
        if self.is_gated:
            gate, up = states.chunk(2, dim=-1)
            return self.down(self.act_fn(gate) * up)
        return self.down(self.act_fn(states))


def _norm(module: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    return _rms_norm(module.weight, module.eps) if isinstance(module, TfmRMSNorm) else module


def _rms_norm(weight: torch.Tensor, eps: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return `TfmRMSNorm` as a function with half of torch's operations on a CPU."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    weight, epsilon, inverse_size = weight.to(dtype), torch.tensor(eps, dtype=dtype), 1 / weight.shape[-1]

    def norm(states: torch.Tensor) -> torch.Tensor:
        norms = torch.linalg.vector_norm(states, dim=-1, keepdim=True, dtype=dtype)
        scale = torch.addcmul(epsilon, norms, norms, value=inverse_size).rsqrt_()
        return (states * scale).mul_(weight).to(states.dtype)

    return norm
