"""
The Transformer block and the base of both models.

This file and its neighbours travel inside saved folders and run with the versions installed there. The table lists
everything they use of other packages; `tests/test_public_api.py` fails if a use is missing or a signature changes.

| module | names | since | version differences handled here |
|---|---|---|---|
| transformers | PreTrainedConfig | 5.0 | |
| transformers | EncoderDecoderConfig, EncoderDecoderModel | 5.0 | no default sub-configs before 5.20: set here |
| transformers | initialization: normal_, constant_, copy_ | 5.0 | |
| transformers.activations | ACT2FN | 5.0 | |
| transformers.cache_utils | Cache, DynamicCache, EncoderDecoderCache | 5.0 | `update` takes `kwargs` since 5.24 |
| transformers.generation | GenerationMixin | 5.0 | takes `cache` since 5.24: `CACHE_NAME` |
| transformers.loss.loss_utils | fixed_cross_entropy | 5.0 | |
| transformers.masking_utils | create_causal_mask | 5.0 | takes `cache` since 5.24: `CACHE_NAME` |
| transformers.masking_utils | create_sliding_window_causal_mask | 5.0 | takes `cache` since 5.24: `CACHE_NAME` |
| transformers.masking_utils | create_bidirectional_mask, packed_sequence_mask_function | 5.0 | |
| transformers.masking_utils | create_bidirectional_sliding_window_mask | 5.1 | |
| transformers.modeling_layers | GradientCheckpointingLayer | 5.0 | removes the cache by its name: `CACHE_NAME` |
| transformers.modeling_outputs | CausalLMOutputWithCrossAttentions | 5.0 | `cache` since 5.24: `BothCacheNames` |
| transformers.modeling_outputs | SequenceClassifierOutputWithPast | 5.0 | `cache` since 5.24: `BothCacheNames` |
| transformers.modeling_outputs | Seq2SeqLMOutput | 5.0 | `cache` since 5.24: `BothCacheNames` |
| transformers.modeling_outputs | BaseModelOutputWithPastAndCrossAttentions | 5.0 | same as above |
| transformers.modeling_outputs | BaseModelOutputWithPooling, MaskedLMOutput, MultipleChoiceModelOutput | 5.0 | |
| transformers.modeling_outputs | NextSentencePredictorOutput, QuestionAnsweringModelOutput | 5.0 | |
| transformers.modeling_outputs | SequenceClassifierOutput, TokenClassifierOutput | 5.0 | |
| transformers.modeling_rope_utils | ROPE_INIT_FUNCTIONS, RopeParameters, dynamic_rope_update | 5.0 | |
| transformers.modeling_utils | ALL_ATTENTION_FUNCTIONS, PreTrainedModel | 5.0 | |
| transformers.models.auto | modeling_auto | 5.0 | tables of class names: `register_class_name` |
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

Private names: `PreTrainedModel._init_weights`, `PreTrainedModel._from_config` and `config._attn_implementation`, used
as in transformers' own models; `torch.nn.Module._apply`, through which `.to()` reaches buffers.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, EncoderDecoderCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils.import_utils import is_tracing
from transformers.utils.output_capturing import OutputRecorder

from .configuration_tfm import TfmConfig
from .modeling_tfm_compat import (
    CACHE_NAME,
    accepts_both_cache_names,
    is_updated_by_attention,
    register_class_name,
    register_with_peft,
)
from .modeling_tfm_loss import compute_dtype, linear_cross_entropy
from .modeling_tfm_masks import is_padding_mask


class TfmRMSNorm(nn.Module):
    """Root mean square norm over the last dimension (https://huggingface.co/papers/1910.07467)."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(hidden_states, self.weight.shape, self.weight.to(hidden_states.dtype), self.eps)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.eps}"


def build_norm(config: TfmConfig, size: int | None = None) -> nn.Module:
    """Return the configured norm for a last dimension of `size` (`hidden_size` by default)."""
    size = config.hidden_size if size is None else size
    if config.norm_type == "rmsnorm":
        return TfmRMSNorm(size, eps=config.norm_eps)
    return nn.LayerNorm(size, eps=config.norm_eps, bias=config.norm_bias)


class TfmRotaryEmbedding(nn.Module):
    """
    Cosines and sines of rotary positions (https://huggingface.co/papers/2104.09864).

    All RoPE types of transformers are supported. The buffers are `inv_freq` and `original_inv_freq`; if each layer type
    has its own RoPE parameters, the type is a prefix of their names.
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
        """Return inverse frequencies `(rotated width / 2,)` and the factor of the cosines and sines, here 1."""
        parameters = config.rope_parameters if layer_type is None else config.rope_parameters[layer_type]
        width = int(config.head_dim * parameters.get("partial_rotary_factor", 1.0))
        exponents = torch.arange(0, width, 2, dtype=torch.float, device=device) / width
        return 1.0 / (parameters["rope_theta"] ** exponents), 1.0

    def _apply(self, fn: Callable, recurse: bool = True) -> "TfmRotaryEmbedding":
        """Follow `.to()` to another device, but keep fp32: rounded frequencies misplace distant tokens."""
        fp32_buffers = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in self._buffers.items():
            if buffer.dtype != fp32_buffers[name].dtype:
                self._buffers[name] = fp32_buffers[name].to(buffer.device)
        return self

    @torch.no_grad()
    @dynamic_rope_update
    def forward(
        self, x: torch.Tensor, position_ids: torch.Tensor, layer_type: str | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and sines `(batch, length, rotated width)` of `position_ids`, in the dtype of `x`."""
        prefix = self.prefix(layer_type)
        inv_freq = getattr(self, f"{prefix}inv_freq").to(device=x.device, dtype=torch.float)
        scaling = getattr(self, f"{prefix}attention_scaling")
        angles = position_ids[..., None].float() * inv_freq
        angles = torch.cat((angles, angles), dim=-1)
        return (angles.cos() * scaling).to(x.dtype), (angles.sin() * scaling).to(x.dtype)


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    """Return `x` `(…, width)` with the negated second half in front of the first half."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def apply_rotary_pos_emb(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Rotate queries and keys `(batch, heads, length, head_dim)` by their positions.

    `cos` and `sin` are `(batch, length, rotated width)`. If the rotated width is below `head_dim` (partial rotation),
    the remaining features pass unchanged.
    """
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    width = cos.shape[-1]
    if width == query.shape[-1]:
        return query * cos + rotate_half(query) * sin, key * cos + rotate_half(key) * sin
    rotated = [torch.cat((x[..., :width] * cos + rotate_half(x[..., :width]) * sin, x[..., width:]), -1)
               for x in (query, key)]  # fmt: skip
    return rotated[0], rotated[1]


class TfmSinusoidalPositions(nn.Module):
    """Sines and cosines of geometric wavelengths, side by side (https://huggingface.co/papers/1706.03762)."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.hidden_size = hidden_size

    def forward(self, position_ids: torch.Tensor) -> torch.Tensor:
        # Computed in each call: a table would be a buffer that loading must fill again, and it would end somewhere.
        half = self.hidden_size // 2
        exponents = torch.arange(half, dtype=torch.float, device=position_ids.device) / half
        angles = position_ids[..., None].float() * torch.exp(exponents * -math.log(10_000.0))
        return torch.cat((angles.sin(), angles.cos()), dim=-1)


def repeat_kv(hidden_states: torch.Tensor, repeats: int) -> torch.Tensor:
    """Repeat each head of `(batch, key/value heads, length, head_dim)` for the query heads that share it."""
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
    """Plain attention: return the states `(batch, length, heads, head_dim)` and the probabilities."""
    key = repeat_kv(key, module.num_key_value_groups)
    value = repeat_kv(value, module.num_key_value_groups)
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    probabilities = F.dropout(probabilities, p=dropout, training=module.training)
    return torch.matmul(probabilities, value).transpose(1, 2).contiguous(), probabilities


# Initial factor of the embedding values that each layer adds to its own values (`value_residual`).
VALUE_MIX = 0.5


class TfmAttention(nn.Module):
    """Multi-head, grouped-query or multi-query attention, to the sequence or to an encoder's states."""

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
            # Flash attention counts the token itself; a bidirectional window is given by its one side.
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
        has_prepared_mask: bool = False,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the output `(batch, length, hidden)`, and the attention probabilities or None."""
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
            sliding_window=None if has_prepared_mask else self.sliding_window,
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
        """Return the encoder's keys and values: computed in the first step, then from the cache."""
        if cache is None:
            return self._keys_and_values(encoder_hidden_states)
        cross = cache.cross_attention_cache
        if cache.is_updated.get(self.layer_idx):
            return cross.layers[self.layer_idx].keys, cross.layers[self.layer_idx].values
        key, value = cross.update(*self._keys_and_values(encoder_hidden_states), self.layer_idx)
        cache.is_updated[self.layer_idx] = True
        return key, value


def gated_heads(heads: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """Multiply the heads `(…, heads * head_dim)` by `2 * sigmoid(gate)` for a gate `(…, heads)`."""
    return (heads.unflatten(-1, (gate.shape[-1], -1)) * (2 * torch.sigmoid(gate)).unsqueeze(-1)).flatten(-2)


class TfmMLP(nn.Module):
    """Feed-forward layer, gated (SwiGLU, GeGLU) or plain."""

    def __init__(self, config: TfmConfig):
        super().__init__()
        if config.gated_mlp:
            self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.down_proj.writes_to_residual_stream = True
        self.act_fn = ACT2FN[config.hidden_act]
        self.is_gated = config.gated_mlp

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.is_gated:
            return self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))
        return self.down_proj(self.act_fn(self.up_proj(hidden_states)))


class TfmBlock(GradientCheckpointingLayer):
    """
    Transformer block: self-attention, cross-attention if configured, feed-forward layer.

    Each sublayer has a residual connection and a norm, before the sublayer (`norm_position="pre"`) or after the sum.
    """

    def __init__(self, config: TfmConfig, layer_idx: int, is_causal: bool):
        super().__init__()
        self.is_pre_norm = config.norm_position == "pre"
        # A normalised embedding needs no second norm in front of the first attention (as in ModernBERT).
        skip_first_norm = self.is_pre_norm and config.embedding_norm and layer_idx == 0
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
        output_positions: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        residual = hidden_states
        hidden_states, _ = self.self_attn(
            self._norm_before(self.input_layernorm, hidden_states),
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            cache=cache,
            embedding_values=embedding_values,
            **kwargs,
        )
        hidden_states = self._norm_after(self.input_layernorm, residual + self.dropout(hidden_states))

        if self.has_cross_attention and encoder_hidden_states is not None:
            residual = hidden_states
            hidden_states, _ = self.cross_attn(
                self._norm_before(self.cross_attn_layernorm, hidden_states),
                attention_mask=encoder_attention_mask,
                cache=cache,
                encoder_hidden_states=encoder_hidden_states,
                **kwargs,
            )
            hidden_states = self._norm_after(self.cross_attn_layernorm, residual + self.dropout(hidden_states))

        residual = hidden_states = gather_positions(hidden_states, output_positions)
        hidden_states = self.mlp(self._norm_before(self.post_attention_layernorm, hidden_states))
        return self._norm_after(self.post_attention_layernorm, residual + self.dropout(hidden_states))

    def _norm_before(self, norm: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
        # Cast once here: autocast would cast the input of a sublayer once for each projection that reads it.
        dtype = compute_dtype(hidden_states)
        return (norm(hidden_states) if self.is_pre_norm else hidden_states).to(dtype)

    def _norm_after(self, norm: nn.Module, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states if self.is_pre_norm else norm(hidden_states)


def gather_positions(hidden_states: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
    """Return the states at flat positions, `(positions, hidden)`; without positions all of them."""
    return hidden_states if positions is None else hidden_states.flatten(0, 1)[positions]


class TfmPreTrainedModel(PreTrainedModel):
    """Class attributes that transformers reads, and the initialization of weights, for both models."""

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
    # The loss of `skip_logits`; a trainer may set another one, as transformers lets it set `loss_function`.
    linear_loss_function = staticmethod(linear_cross_entropy)

    def __init__(self, config: TfmConfig, *args: Any, **kwargs: Any):
        super().__init__(config, *args, **kwargs)
        register_with_peft()
        register_class_name(config.model_type, type(self).__name__)

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
    """Embeddings, blocks and final norm; the decoder and the encoder add masks and outputs."""

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
        self.layers = nn.ModuleList(
            TfmBlock(config, layer_idx, self.is_causal) for layer_idx in range(config.num_hidden_layers)
        )
        # Post-norm blocks return normalised states.
        self.norm = build_norm(config) if config.norm_position == "pre" else nn.Identity()
        self.gradient_checkpointing = False

    def embed_ids(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None) -> torch.Tensor:
        """Return token embeddings `(batch, length, hidden)`; raises `ValueError` without or with both."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        return self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds

    def build_position_ids(
        self,
        position_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        past_length: int | torch.Tensor = 0,
    ) -> torch.Tensor:
        """
        Return the position of each new token, `(1 or batch, length)`: the given ones, or counted.

        Rotary positions are counted from the first column of a row, because only distances matter. Absolute positions
        count the tokens without padding, so that the side of the padding makes no difference.

        Raises:
            ValueError: a row has more tokens than there are learned positions.
        """
        length = inputs_embeds.shape[1]
        if position_ids is None:
            if self.embed_positions is not None and is_padding_mask(attention_mask):
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
            else:
                position_ids = (torch.arange(length, device=inputs_embeds.device) + past_length).unsqueeze(0)
        if isinstance(self.embed_positions, nn.Embedding) and not is_tracing(position_ids):
            # The width is compared first: reading the positions themselves would wait for a GPU.
            width = attention_mask.shape[1] if is_padding_mask(attention_mask) else past_length + length
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
        """Return the input of the first block, `(batch, length, hidden)`, for token embeddings of that shape."""
        hidden_states = inputs_embeds if self.embedding_scale is None else inputs_embeds * self.embedding_scale
        if self.embed_token_types is not None:
            if token_type_ids is None:
                token_type_ids = torch.zeros_like(position_ids)
            hidden_states = hidden_states + self.embed_token_types(token_type_ids)
        if self.embed_positions is not None:
            hidden_states = hidden_states + self.embed_positions(position_ids).to(hidden_states.dtype)
        return self.embed_dropout(self.embed_norm(hidden_states))

    def embedding_values(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Return the values `(…, key/value width)` that `value_residual` derives from the first block's input."""
        if self.embed_values is None:
            return None
        normalised = F.rms_norm(hidden_states, hidden_states.shape[-1:], eps=self.config.norm_eps)
        return self.embed_values(normalised.to(compute_dtype(hidden_states)))

    def position_embeddings(
        self, hidden_states: torch.Tensor, position_ids: torch.Tensor
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor] | None]:
        """Return cosines and sines of rotary positions (or None) for each layer type."""
        layer_types = sorted(set(self.config.layer_types))
        if self.rotary_emb is None:
            return dict.fromkeys(layer_types)
        hidden_states = hidden_states.to(compute_dtype(hidden_states))
        if self.rotary_emb.layer_types == [None]:
            return dict.fromkeys(layer_types, self.rotary_emb(hidden_states, position_ids))
        return {layer_type: self.rotary_emb(hidden_states, position_ids, layer_type) for layer_type in layer_types}

    def run_blocks(
        self,
        hidden_states: torch.Tensor,
        position_ids: torch.Tensor,
        masks: dict[str, torch.Tensor | None],
        encoder_hidden_states: torch.Tensor | None = None,
        cache: Cache | None = None,
        output_positions: torch.Tensor | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """
        Run all blocks and the final norm.

        Args:
            hidden_states: `(batch, length, hidden)`.
            position_ids: `(1 or batch, length)`.
            masks: the attention mask of each layer type. An attention implementation that somebody registered with
                transformers may use masks that bring a row layout, see [`row_layout`].
            output_positions: `(positions,)`, `row * length + column` of the states to return, `(positions, hidden)`;
                the last block computes its feed-forward layer for these only.
        """
        layout = None
        if cache is None and encoder_hidden_states is None and not self.gradient_checkpointing:
            layout = row_layout(masks, self.config, **kwargs)
        if layout is not None:
            position_ids = layout.flatten_rows(position_ids.expand(hidden_states.shape[:2]))
            hidden_states = layout.flatten_rows(hidden_states)
        if cache is not None:
            kwargs[CACHE_NAME] = cache  # the name by which transformers' gradient checkpointing removes it
        position_embeddings = self.position_embeddings(hidden_states, position_ids)
        embedding_values = self.embedding_values(hidden_states)
        blocks = self.layers[: self.config.num_hidden_layers]  # assisted generation by early exit lowers the number
        for layer_type, block in zip(self.config.layer_types, blocks):
            # Compiled blocks have a row layout: they would be compiled again for each number of positions.
            is_reduced = block is blocks[-1] and layout is None and output_positions is not None
            hidden_states = block(
                hidden_states,
                masks[layer_type],
                encoder_hidden_states,  # positional: reentrant checkpointing computes gradients of these only
                embedding_values,
                position_embeddings=position_embeddings[layer_type],
                position_ids=position_ids,
                **({"output_positions": output_positions} if is_reduced else {}),
                **kwargs,
            )
        hidden_states = self.norm(hidden_states)
        return (
            hidden_states
            if layout is None
            else gather_positions(layout.unflatten_rows(hidden_states), output_positions)
        )


def row_layout(masks: dict[str, Any], config: TfmConfig, **kwargs) -> Any | None:
    """
    Return the row layout that the masks bring, or None.

    The mask function of an attention implementation (transformers' `AttentionMaskInterface`) may return an object in
    place of a tensor, and its attention function then receives that object. If it has the methods `flatten_rows`
    (`(batch, length, …)` to `(1, tokens, …)`) and `unflatten_rows` (the inverse), the blocks run on the flattened rows,
    which may leave padding out. `hidden_states` and `attentions` are recorded in the usual layout only.
    """
    mask = masks[config.layer_types[0]]
    if mask is None or isinstance(mask, torch.Tensor) or not hasattr(mask, "flatten_rows"):
        return None
    recorded = (kwargs.get(name, getattr(config, name)) for name in ("output_hidden_states", "output_attentions"))
    return None if any(recorded) else mask


__all__ = ["TfmModel", "TfmPreTrainedModel"]
