"""
The Transformer block and what both models share: norms, positions, attention, feed-forward, embeddings, masks.

This file and its neighbours travel inside saved folders and run with whatever versions are installed there. This is
all that they use of other packages; `tests/test_public_api.py` fails when a use is missing here or a signature changes.

| module | names | since | what we do about versions |
|---|---|---|---|
| transformers | PreTrainedConfig | 5.0 | |
| transformers | EncoderDecoderConfig, EncoderDecoderModel | 5.0 | no default halves before 5.20: set here |
| transformers | initialization: normal_, constant_, copy_ | 5.0 | |
| transformers.activations | ACT2FN | 5.0 | |
| transformers.cache_utils | Cache, DynamicCache, EncoderDecoderCache | 5.0 | `update` takes `kwargs` since 5.24 |
| transformers.generation | GenerationMixin | 5.0 | takes `cache` since 5.24: `CACHE_NAME` |
| transformers.loss.loss_utils | fixed_cross_entropy | 5.0 | |
| transformers.masking_utils | create_causal_mask | 5.0 | takes `cache` since 5.24: `CACHE_NAME` |
| transformers.masking_utils | create_sliding_window_causal_mask | 5.0 | takes `cache` since 5.24: `CACHE_NAME` |
| transformers.masking_utils | create_bidirectional_mask, packed_sequence_mask_function | 5.0 | |
| transformers.masking_utils | create_bidirectional_sliding_window_mask | 5.1 | |
| transformers.modeling_layers | GradientCheckpointingLayer | 5.0 | takes the cache away by its name: `CACHE_NAME` |
| transformers.modeling_outputs | CausalLMOutputWithCrossAttentions | 5.0 | `cache` since 5.24: `BothCacheNames` |
| transformers.modeling_outputs | SequenceClassifierOutputWithPast | 5.0 | `cache` since 5.24: `BothCacheNames` |
| transformers.modeling_outputs | Seq2SeqLMOutput | 5.0 | `cache` since 5.24: `BothCacheNames` |
| transformers.modeling_outputs | BaseModelOutputWithPastAndCrossAttentions | 5.0 | as the three above |
| transformers.modeling_outputs | BaseModelOutputWithPooling, MaskedLMOutput, MultipleChoiceModelOutput | 5.0 | |
| transformers.modeling_outputs | NextSentencePredictorOutput, QuestionAnsweringModelOutput | 5.0 | |
| transformers.modeling_outputs | SequenceClassifierOutput, TokenClassifierOutput | 5.0 | |
| transformers.modeling_rope_utils | ROPE_INIT_FUNCTIONS, RopeParameters, dynamic_rope_update | 5.0 | |
| transformers.modeling_utils | ALL_ATTENTION_FUNCTIONS, PreTrainedModel | 5.0 | |
| transformers.processing_utils | Unpack | 5.0 | |
| transformers.utils | ModelOutput, TransformersKwargs, is_peft_available, logging | 5.0 | |
| transformers.utils.generic | can_return_tuple, is_flash_attention_requested | 5.0 | |
| transformers.utils.generic | merge_with_config_defaults | 5.2 | |
| transformers.utils.import_utils | is_tracing | 5.0 | |
| transformers.utils.output_capturing | OutputRecorder, capture_outputs | 5.2 | |
| huggingface_hub.dataclasses | strict | 1.0 | |
| huggingface_hub.errors | StrictDataclassClassValidationError | 1.0 | |
| huggingface_hub.errors | StrictDataclassFieldValidationError | 1.0 | |
| peft.utils | constants | 0.7 | where PEFT is installed: `register_with_peft` |

Private names: `PreTrainedModel._init_weights`, `PreTrainedModel._from_config`, `config._attn_implementation`, used as
transformers' own models use them; `torch.nn.Module._apply`, by which `.to()` reaches buffers.
"""

import functools
import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.loss.loss_utils import fixed_cross_entropy
from transformers.masking_utils import create_causal_mask, packed_sequence_mask_function
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import TransformersKwargs, is_peft_available
from transformers.utils.generic import is_flash_attention_requested
from transformers.utils.import_utils import is_tracing
from transformers.utils.output_capturing import OutputRecorder

from .configuration_tfm import TfmConfig
from .modeling_tfm_loss import compute_dtype


# The name of the key/value cache in transformers' functions and outputs: `cache` since 5.24, `past_key_values` before.
CACHE_NAME = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"

# Keyword arguments that a forward may receive beyond its own parameters, to hand on to the loss and to attention:
# transformers' list, shifted labels, what continuous batching (`generate_batch`) adds, and the tokenizer, which
# `generate` needs for `stop_strings` and passes on.
HANDED_ON = frozenset(TransformersKwargs.__annotations__) | {
    "shift_labels",
    "block_table",
    "logits_indices",
    "logits_processor_args",
    "read_index",
    "tokenizer",
    "write_index",
}


def accepts_both_cache_names(forward: Callable) -> Callable:
    """
    Decorator for a method with a parameter `cache`: it accepts `past_key_values` as well, the name before
    transformers 5.24. Since then it warns, as transformers does. Raises `ValueError` if both are given.
    """

    @functools.wraps(forward)
    def renamed(self: Any, *args: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        if past_key_values is not None:
            if kwargs.get("cache") is not None:
                raise ValueError("`cache` and `past_key_values` are two names of one argument: pass one of them")
            if CACHE_NAME == "cache" and not is_tracing():
                message = f"`past_key_values` is deprecated for `{type(self).__name__}`. Use `cache` instead."
                warnings.warn(message, FutureWarning, stacklevel=2)
            kwargs["cache"] = past_key_values
        return forward(self, *args, **kwargs)

    # PEFT looks for the old name in the signature.
    signature = inspect.signature(forward)
    parameters = list(signature.parameters.values())
    by_name = inspect.Parameter("past_key_values", inspect.Parameter.KEYWORD_ONLY, default=None)
    parameters.insert(len(parameters) - (parameters[-1].kind is inspect.Parameter.VAR_KEYWORD), by_name)
    renamed.__signature__ = signature.replace(parameters=parameters)
    return renamed


class BothCacheNames:
    """Mixin for outputs with a cache: they answer to `cache` and to `past_key_values` on every version."""

    if CACHE_NAME == "past_key_values":  # since 5.24 transformers' own outputs do

        @property
        def cache(self) -> Cache | None:
            return self.past_key_values

        def __getitem__(self, key: Any) -> Any:
            return super().__getitem__("past_key_values" if key == "cache" else key)

        def __contains__(self, key: object) -> bool:
            return super().__contains__("past_key_values" if key == "cache" else key)

        def get(self, key: str, default: Any = None) -> Any:
            return super().get("past_key_values" if key == "cache" else key, default)


def refuse_unknown_arguments(config: TfmConfig, arguments: dict[str, Any], has_positions: bool = True) -> None:
    """
    Nothing may disappear in `**kwargs`: a renamed cache or a misspelt mask would change the result without an error.

    Args:
        arguments: keyword arguments beyond the forward's parameters. None and False ask for nothing and may stay.
        has_positions: whether `position_ids` are given, which tell packed documents apart.

    Raises:
        TypeError: neither this model, nor transformers, nor the attention function in use knows one of them.
        ValueError: only `cu_seq_lens_q` tells packed documents apart, and the attention in use does not read it.
    """
    if arguments.get("cu_seq_lens_q") is not None and not has_positions and not is_flash_attention_requested(config):
        raise ValueError("cu_seq_lens_q is read by flash attention only: pass position_ids, from 0 in each document")
    unknown = [name for name in arguments if name not in HANDED_ON]
    unknown = [name for name in unknown if arguments[name] is not None and arguments[name] is not False]
    if unknown:
        # Engines such as vLLM bring an attention function, and name its arguments.
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, eager_attention_forward)
        named = inspect.signature(attention).parameters
        unknown = [name for name in unknown if name not in named]
    if unknown:
        raise TypeError(f"forward() got an unexpected keyword argument {unknown[0]!r}")


class TfmRMSNorm(nn.Module):
    """Divide by the root mean square over the last dimension, then scale (https://huggingface.co/papers/1910.07467)."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(hidden_states, self.weight.shape, self.weight.to(hidden_states.dtype), self.eps)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.eps}"


def build_norm(config: TfmConfig, size: int | None = None) -> nn.Module:
    """The configured norm over the last dimension, `hidden_size` wide unless told otherwise."""
    size = config.hidden_size if size is None else size
    if config.norm_type == "rmsnorm":
        return TfmRMSNorm(size, eps=config.norm_eps)
    return nn.LayerNorm(size, eps=config.norm_eps, bias=config.norm_bias)


class TfmRotaryEmbedding(nn.Module):
    """
    Cosines and sines of the rotary positions (https://huggingface.co/papers/2104.09864), by any of transformers' RoPE
    types. With one set of parameters for all layers the buffers are called `inv_freq` and `original_inv_freq`; with a
    set for each layer type, the names carry the type in front.
    """

    def __init__(self, config: TfmConfig):
        super().__init__()
        self.config = config
        self.max_seq_len_cached = config.max_position_embeddings
        self.original_max_seq_len = config.max_position_embeddings
        layer_types = config.nested_rope_parameter_keys(config.rope_parameters)
        self.layer_types = layer_types or [None]
        if layer_types:
            self.rope_type = {name: config.rope_parameters[name]["rope_type"] for name in layer_types}
        else:
            self.rope_type = config.rope_parameters["rope_type"]
        for layer_type in self.layer_types:
            prefix = self.prefix(layer_type)
            inv_freq, attention_scaling = self.initial_frequencies(layer_type)
            self.register_buffer(f"{prefix}inv_freq", inv_freq, persistent=False)
            self.register_buffer(f"{prefix}original_inv_freq", inv_freq.clone(), persistent=False)
            setattr(self, f"{prefix}attention_scaling", attention_scaling)

    @staticmethod
    def prefix(layer_type: str | None) -> str:
        return "" if layer_type is None else f"{layer_type}_"

    def initial_frequencies(self, layer_type: str | None = None) -> tuple[torch.Tensor, float]:
        rope_type = self.rope_type if layer_type is None else self.rope_type[layer_type]
        compute = self.compute_default_rope_parameters if rope_type == "default" else ROPE_INIT_FUNCTIONS[rope_type]
        return compute(self.config) if layer_type is None else compute(self.config, layer_type=layer_type)

    @staticmethod
    def compute_default_rope_parameters(
        config: TfmConfig, device=None, layer_type: str | None = None, **kwargs
    ) -> tuple[torch.Tensor, float]:
        """Inverse frequencies `(rotated width / 2,)` and the scaling of the cosines and sines, here 1."""
        parameters = config.rope_parameters if layer_type is None else config.rope_parameters[layer_type]
        width = int(config.head_dim * parameters.get("partial_rotary_factor", 1.0))
        exponents = torch.arange(0, width, 2, dtype=torch.float, device=device) / width
        return 1.0 / (parameters["rope_theta"] ** exponents), 1.0

    def _apply(self, fn: Callable, recurse: bool = True) -> "TfmRotaryEmbedding":
        """Follows `.to()` to another device, but frequencies stay in fp32: rounded, they misplace distant tokens."""
        exact = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in self._buffers.items():
            if buffer.dtype != exact[name].dtype:
                self._buffers[name] = exact[name].to(buffer.device)
        return self

    @torch.no_grad()
    @dynamic_rope_update
    def forward(
        self, x: torch.Tensor, position_ids: torch.Tensor, layer_type: str | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines `(batch, length, rotated width)` of `position_ids`, in the dtype of `x`."""
        prefix = self.prefix(layer_type)
        inv_freq = getattr(self, f"{prefix}inv_freq").to(device=x.device, dtype=torch.float)
        scaling = getattr(self, f"{prefix}attention_scaling")
        angles = position_ids[..., None].float() * inv_freq
        angles = torch.cat((angles, angles), dim=-1)
        return (angles.cos() * scaling).to(x.dtype), (angles.sin() * scaling).to(x.dtype)


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    """`(…, width)`: the second half negated in front of the first."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def apply_rotary_pos_emb(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Rotate queries and keys `(batch, heads, length, head_dim)` by their positions, `cos` and `sin` `(batch, length,
    rotated width)`. Where the rotated width is below `head_dim` (partial rotation), the rest passes through.
    """
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    width = cos.shape[-1]
    if width == query.shape[-1]:
        return query * cos + rotate_half(query) * sin, key * cos + rotate_half(key) * sin
    rotated = [torch.cat((x[..., :width] * cos + rotate_half(x[..., :width]) * sin, x[..., width:]), -1)
               for x in (query, key)]  # fmt: skip
    return rotated[0], rotated[1]


class TfmSinusoidalPositions(nn.Module):
    """Sines in the first half of the width, cosines in the second, over geometric wavelengths (Vaswani et al. 2017)."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.hidden_size = hidden_size

    def forward(self, position_ids: torch.Tensor) -> torch.Tensor:
        # Computed where it is used: a table would be a buffer that loading has to fill again, and would have an end.
        half = self.hidden_size // 2
        exponents = torch.arange(half, dtype=torch.float, device=position_ids.device) / half
        angles = position_ids[..., None].float() * torch.exp(exponents * -math.log(10_000.0))
        return torch.cat((angles.sin(), angles.cos()), dim=-1)


def repeat_kv(hidden_states: torch.Tensor, repeats: int) -> torch.Tensor:
    """`(batch, key/value heads, length, head_dim)` with every head repeated for the queries that share it."""
    return hidden_states if repeats == 1 else hidden_states.repeat_interleave(repeats, dim=1)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out; returns the states `(batch, length, heads, head_dim)` and the probabilities."""
    key = repeat_kv(key, module.num_key_value_groups)
    value = repeat_kv(value, module.num_key_value_groups)
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    probabilities = F.dropout(probabilities, p=dropout, training=module.training)
    return torch.matmul(probabilities, value).transpose(1, 2).contiguous(), probabilities


# How much of the embeddings' values a layer adds to its own before it has learned that (`value_residual`).
VALUE_MIX = 0.5


class TfmAttention(nn.Module):
    """
    Multi-head attention (Vaswani et al. 2017), multi-query and grouped-query by the number of key/value heads: to the
    sequence itself, or as cross-attention to an encoder's states.
    """

    # With a `sliding_window` passed on, the mask lets nothing be seen that is further away.
    keeps_to_window = True

    def __init__(self, config: TfmConfig, layer_idx: int, is_causal: bool, is_cross_attention: bool = False):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = is_causal and not is_cross_attention
        self.is_cross_attention = is_cross_attention
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.sliding_window = None
        if config.layer_types[layer_idx] == "sliding_attention" and not is_cross_attention:
            # Flash attention counts the token itself; a bidirectional window is given by its half.
            self.sliding_window = config.sliding_window if is_causal else config.sliding_window + 1

        query_width = config.num_attention_heads * self.head_dim
        key_value_width = config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_width, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_value_width, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_value_width, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_width, config.hidden_size, bias=config.attention_bias)
        self.o_proj.writes_to_residual_stream = True
        self.q_norm = build_norm(config, self.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm = build_norm(config, self.head_dim) if config.qk_norm else nn.Identity()
        self.head_gate = None
        if config.attention_gate:
            self.head_gate = nn.Linear(config.hidden_size, config.num_attention_heads, bias=False)
            self.head_gate.starts_at_zero = True
        self.value_mix = None
        if config.value_residual and not is_cross_attention:
            self.value_mix = nn.Parameter(torch.full((1,), VALUE_MIX))

    @accepts_both_cache_names
    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        embedding_values: torch.Tensor | None = None,
        mask_is_ready: bool = False,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The output `(batch, length, hidden)`, and the attention probabilities where the function in use has them."""
        input_shape = hidden_states.shape[:-1]
        query = self.q_norm(self.q_proj(hidden_states).view(*input_shape, -1, self.head_dim)).transpose(1, 2)
        if self.is_cross_attention:
            key, value = self._encoder_keys_and_values(encoder_hidden_states, cache)
            kwargs["is_causal"] = False
        else:
            key, value = self._keys_and_values(hidden_states, embedding_values)
            if position_embeddings is not None:
                query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
            if isinstance(cache, EncoderDecoderCache):
                cache = cache.self_attention_cache
            if is_updated_by_attention(cache):
                kwargs["cache"] = cache
            elif cache is not None:
                key, value = cache.update(key, value, self.layer_idx, kwargs=kwargs)

        # vLLM looks for this lookup and this call in the source of `forward`.
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, probabilities = attention_interface(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=None if mask_is_ready else self.sliding_window,
            **kwargs,
        )
        output = output.reshape(*input_shape, -1).contiguous()
        if self.head_gate is not None:
            output = gated_heads(output, self.head_gate(hidden_states))
        return self.o_proj(output), probabilities

    def _keys_and_values(
        self, states: torch.Tensor, embedding_values: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (*states.shape[:-1], -1, self.head_dim)
        key, value = self.k_norm(self.k_proj(states).view(shape)).transpose(1, 2), self.v_proj(states)
        if self.value_mix is not None:
            value = value + self.value_mix.to(value.dtype) * embedding_values
        return key, value.view(shape).transpose(1, 2)

    def _encoder_keys_and_values(
        self, encoder_hidden_states: torch.Tensor, cache: EncoderDecoderCache | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The encoder's states do not change while decoding: computed at the first step, then read from the cache."""
        if cache is None:
            return self._keys_and_values(encoder_hidden_states)
        cross = cache.cross_attention_cache
        if cache.is_updated.get(self.layer_idx):
            return cross.layers[self.layer_idx].keys, cross.layers[self.layer_idx].values
        key, value = cross.update(*self._keys_and_values(encoder_hidden_states), self.layer_idx)
        cache.is_updated[self.layer_idx] = True
        return key, value


def is_updated_by_attention(cache: Any) -> bool:
    """Before transformers 5.24 attention functions, not models, updated the paged cache of `generate_batch`."""
    return cache is not None and CACHE_NAME == "past_key_values" and not isinstance(cache, Cache)


def gated_heads(heads: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """`(…, heads * head_dim)`, each head multiplied by twice the sigmoid of its number in `gate`, `(…, heads)`."""
    return (heads.unflatten(-1, (gate.shape[-1], -1)) * (2 * torch.sigmoid(gate)).unsqueeze(-1)).flatten(-2)


class TfmMLP(nn.Module):
    """The feed-forward layer, gated or not."""

    def __init__(self, config: TfmConfig):
        super().__init__()
        if config.gated_mlp:
            self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.down_proj.writes_to_residual_stream = True
        self.act_fn = ACT2FN[config.hidden_act]
        self.gated = config.gated_mlp

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.gated:
            return self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))
        return self.down_proj(self.act_fn(self.up_proj(hidden_states)))


class TfmBlock(GradientCheckpointingLayer):
    """
    Self-attention, cross-attention where configured, feed-forward; around each of them the residual connection and the
    norm, which stands before the sublayer or after the sum.
    """

    def __init__(self, config: TfmConfig, layer_idx: int, is_causal: bool):
        super().__init__()
        self.pre_norm = config.norm_position == "pre"
        # A normalised embedding needs no second norm in front of the first attention (as in ModernBERT).
        skip_first_norm = self.pre_norm and config.embedding_norm and layer_idx == 0
        self.input_layernorm = nn.Identity() if skip_first_norm else build_norm(config)
        self.self_attn = TfmAttention(config, layer_idx, is_causal)
        self.has_cross_attention = getattr(config, "add_cross_attention", False)
        if self.has_cross_attention:
            self.cross_attn_layernorm = build_norm(config)
            self.cross_attn = TfmAttention(config, layer_idx, is_causal, is_cross_attention=True)
        self.post_attention_layernorm = build_norm(config)
        self.mlp = TfmMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout)

    @accepts_both_cache_names
    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        embedding_values: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> torch.Tensor:
        hidden_states = self._residual(
            hidden_states,
            self.input_layernorm,
            lambda x: self.self_attn(
                x,
                position_embeddings=position_embeddings,
                attention_mask=attention_mask,
                cache=cache,
                embedding_values=embedding_values,
                **kwargs,
            )[0],
        )
        if self.has_cross_attention and encoder_hidden_states is not None:
            hidden_states = self._residual(
                hidden_states,
                self.cross_attn_layernorm,
                lambda x: self.cross_attn(
                    x,
                    attention_mask=encoder_attention_mask,
                    cache=cache,
                    encoder_hidden_states=encoder_hidden_states,
                    **kwargs,
                )[0],
            )
        return self._residual(hidden_states, self.post_attention_layernorm, self.mlp)

    def _residual(self, hidden_states: torch.Tensor, norm: nn.Module, sublayer: Callable) -> torch.Tensor:
        # Autocast would cast what a sublayer reads once for every projection that reads it.
        dtype = compute_dtype(hidden_states)
        if self.pre_norm:
            return hidden_states + self.dropout(sublayer(norm(hidden_states).to(dtype)))
        return norm(hidden_states + self.dropout(sublayer(hidden_states.to(dtype))))


class TfmPreTrainedModel(PreTrainedModel):
    """What transformers needs to know of both models."""

    config: TfmConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["TfmBlock"]
    _skip_keys_device_placement = ["cache", "past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": TfmBlock,
        "attentions": OutputRecorder(TfmAttention, index=1, layer_name="self_attn"),
        "cross_attentions": OutputRecorder(TfmAttention, index=1, layer_name="cross_attn"),
    }

    def __init__(self, config: TfmConfig, *args: Any, **kwargs: Any):
        super().__init__(config, *args, **kwargs)
        register_with_peft()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear) and getattr(module, "writes_to_residual_stream", False):
            std = self.config.initializer_range / math.sqrt(2 * self.config.num_hidden_layers)
            init.normal_(module.weight, mean=0.0, std=std)
        elif isinstance(module, TfmAttention) and module.value_mix is not None:
            init.constant_(module.value_mix, VALUE_MIX)
        elif isinstance(module, TfmRotaryEmbedding):
            for layer_type in module.layer_types:
                inv_freq, _ = module.initial_frequencies(layer_type)
                init.copy_(getattr(module, f"{module.prefix(layer_type)}inv_freq"), inv_freq)
                init.copy_(getattr(module, f"{module.prefix(layer_type)}original_inv_freq"), inv_freq)


class TfmModel(TfmPreTrainedModel):
    """Embeddings, blocks and last norm; the decoder and the encoder add their masks and outputs."""

    is_causal: bool

    def __init__(self, config: TfmConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.embedding_scale = math.sqrt(config.hidden_size) if config.scale_embeddings else None
        self.embed_positions = None
        if config.position_embedding_type == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        elif config.position_embedding_type == "sinusoidal":
            self.embed_positions = TfmSinusoidalPositions(config.hidden_size)
        self.embed_token_types = (
            nn.Embedding(config.type_vocab_size, config.hidden_size) if config.type_vocab_size else None
        )
        self.embed_norm = build_norm(config) if config.embedding_norm else nn.Identity()
        self.embed_dropout = nn.Dropout(config.embedding_dropout)
        self.rotary_emb = TfmRotaryEmbedding(config) if config.position_embedding_type == "rope" else None
        self.embed_values = None
        if config.value_residual:
            self.embed_values = nn.Linear(config.hidden_size, config.num_key_value_heads * config.head_dim, bias=False)
            self.embed_values.is_layer_matrix = True
        self.layers = nn.ModuleList(
            TfmBlock(config, layer_idx, self.is_causal) for layer_idx in range(config.num_hidden_layers)
        )
        # After post-norm blocks the states are normalised already.
        self.norm = build_norm(config) if config.norm_position == "pre" else nn.Identity()
        self.gradient_checkpointing = False

    def positions(
        self,
        position_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        past_length: int | torch.Tensor = 0,
    ) -> torch.Tensor:
        """
        Position of each new token, `(1 or batch, length)`: as given, or counted. Rotary positions count from the row's
        first column: only distances matter to them. Absolute ones count the tokens that are not padding, so that a row
        means the same whichever side is padded.

        Raises:
            ValueError: a row has more tokens than there are learned positions.
        """
        length = inputs_embeds.shape[1]
        if position_ids is None:
            if self.embed_positions is not None and marks_padding(attention_mask):
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
            else:
                position_ids = (torch.arange(length, device=inputs_embeds.device) + past_length).unsqueeze(0)
        if isinstance(self.embed_positions, nn.Embedding) and not is_tracing(position_ids):
            # The width comes first: to look at the positions themselves, a GPU has to be waited for.
            width = attention_mask.shape[1] if marks_padding(attention_mask) else past_length + length
            limit = self.embed_positions.num_embeddings
            if width > limit and position_ids.max() >= limit:
                raise ValueError(
                    f"a row of {int(position_ids.max()) + 1} tokens is too long for this model: its learned positions "
                    f"end at max_position_embeddings={limit}; cut the text or the number of new tokens"
                )
        return position_ids

    def embed(
        self, inputs_embeds: torch.Tensor, position_ids: torch.Tensor, token_type_ids: torch.Tensor | None
    ) -> torch.Tensor:
        """Token embeddings `(batch, length, hidden)` to the input of the first block."""
        hidden_states = inputs_embeds if self.embedding_scale is None else inputs_embeds * self.embedding_scale
        if self.embed_token_types is not None:
            if token_type_ids is None:
                token_type_ids = torch.zeros_like(position_ids)
            hidden_states = hidden_states + self.embed_token_types(token_type_ids)
        if self.embed_positions is not None:
            hidden_states = hidden_states + self.embed_positions(position_ids).to(hidden_states.dtype)
        return self.embed_dropout(self.embed_norm(hidden_states))

    def embedding_values(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """With `value_residual` the values `(…, key/value width)` of the first block's input `(…, hidden)`."""
        if self.embed_values is None:
            return None
        normal = F.rms_norm(hidden_states, hidden_states.shape[-1:], eps=self.config.norm_eps)
        return self.embed_values(normal.to(compute_dtype(hidden_states)))

    def used_layers(self) -> nn.ModuleList:
        """All blocks, or the first `num_hidden_layers` where somebody lowers it (a draft by early exit does)."""
        return self.layers[: self.config.num_hidden_layers]

    def run_blocks(
        self,
        hidden_states: torch.Tensor,
        position_ids: torch.Tensor,
        masks: dict[str, torch.Tensor | None],
        encoder_hidden_states: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """The blocks and the last norm; `masks` holds the attention mask for each layer type."""
        if cache is not None:
            kwargs[CACHE_NAME] = cache  # the name by which transformers' gradient checkpointing takes it away
        rotations = dict.fromkeys(masks)
        if self.rotary_emb is not None:
            like = hidden_states.to(compute_dtype(hidden_states))
            nested = self.rotary_emb.layer_types != [None]
            if nested:
                rotations = {name: self.rotary_emb(like, position_ids, name) for name in masks}
            else:
                rotations = dict.fromkeys(masks, self.rotary_emb(like, position_ids))
        embedding_values = self.embedding_values(hidden_states)
        for layer_type, block in zip(self.config.layer_types, self.used_layers()):
            hidden_states = block(
                hidden_states,
                masks[layer_type],
                encoder_hidden_states,  # not by name: reentrant checkpointing takes gradients of these alone
                embedding_values,
                position_embeddings=rotations[layer_type],
                position_ids=position_ids,
                **kwargs,
            )
        return self.norm(hidden_states)


def marks_padding(attention_mask: torch.Tensor | dict | None) -> bool:
    """Whether it is `(batch, length)`, rather than none or masks made ready: 4D, a `BlockMask`, one per layer type."""
    return isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2


def mask_is_ready(config: TfmConfig, attention_mask: torch.Tensor | dict | None) -> bool:
    """Whether the caller's mask alone says what is seen, further away than a layer's window too."""
    return attention_mask is not None and not marks_padding(attention_mask) and not is_flash_attention_requested(config)


def packed_documents(position_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
    """
    Which document each token of a packed row belongs to.

    Within a document positions rise, by one or more (tokens may be left out, or masked); where they do not, another one
    begins. Padding on either side, or between, changes nothing.

    Args:
        position_ids: `(batch, length)`.
        attention_mask: `(batch, length)`, 0 at padding, or None.

    Returns:
        Numbers `(batch, length)`, equal within a document, or None where no row holds two documents. Padding has that
        of the document before it: a row that sees nothing at all is not a number in some kernels.
    """
    real = torch.ones_like(position_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    # Positions of the tokens alone, in line from column 1 on; padding falls behind the end.
    rank, length = real.cumsum(-1), position_ids.shape[1]
    in_line = F.pad(position_ids, (1, 1), value=-1)
    in_line = in_line.scatter(1, torch.where(real, rank, length + 1), position_ids)
    starts = real & (position_ids <= in_line.gather(1, rank - real.long()))
    documents = starts.cumsum(-1)
    if not is_tracing(documents) and not bool(starts.any()):
        return None
    return documents


def packing_arguments(
    config: TfmConfig, position_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, batch_size: int
) -> tuple[dict, dict]:
    """
    What keeps packed documents apart, with padding or without: arguments for transformers' mask functions, and
    arguments for the attention itself. Both are empty where no row holds two documents.
    """
    if position_ids is None:
        return {}, {}
    if attention_mask is not None:
        if not marks_padding(attention_mask) or attention_mask.shape[-1] != position_ids.shape[-1]:
            return {}, {}
    documents = packed_documents(position_ids.expand(batch_size, -1), attention_mask)
    if documents is None:
        return {}, {}
    if is_flash_attention_requested(config):
        # It takes no mask but the places where documents start, and alone looks for them in single rows only.
        return {"attention_mask": None}, flash_attention_boundaries(documents, attention_mask)
    return {"and_mask_function": packed_sequence_mask_function(documents)}, {}


def flash_attention_boundaries(documents: torch.Tensor, attention_mask: torch.Tensor | None) -> dict:
    """Where each document of `documents` `(batch, length)` starts, rows in line; padding is a document of its own."""
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    if attention_mask is not None:
        starts[:, 1:] |= attention_mask[:, 1:] != attention_mask[:, :-1]
    boundaries = F.pad(starts.flatten().nonzero().flatten(), (0, 1), value=starts.numel()).to(torch.int32)
    longest = int(boundaries.diff().max())
    return dict(cu_seq_lens_q=boundaries, cu_seq_lens_k=boundaries, max_length_q=longest, max_length_k=longest)


def sequence_classification_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    config: TfmConfig,
    num_items_in_batch: torch.Tensor | None = None,
    **kwargs,
) -> torch.Tensor:
    """
    Loss of a sentence head, `logits` `(batch, num_labels)`, by `config.problem_type` (guessed from the labels the first
    time, as transformers does). `num_items_in_batch` is the number of labels over all accumulated batches.
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


@functools.cache
def register_with_peft() -> None:
    """
    Give PEFT default target modules for this package's model types, in the table of each of its methods (LoRA, IA3, …).

    Modules here are named as in Qwen3, so its rows hold. PEFT has no interface for this: its tables of
    `peft.utils.constants` are the only place where it looks if a user names no `target_modules`. Called when the first
    model is built, because PEFT is slow to import.
    """
    if not is_peft_available():
        return
    from peft.utils import constants

    tables = [table for name, table in vars(constants).items() if name.startswith("TRANSFORMERS_MODELS_TO_")]
    for table in tables:
        for model_type in ("tfm_decoder", "tfm_encoder", "tfm_encoder_decoder"):
            if "qwen3" in table:
                table.setdefault(model_type, table["qwen3"])


__all__ = ["TfmModel", "TfmPreTrainedModel"]
