"""
Greedy search and sampling on a CPU with few operations per token.

`generate(model, …)` stands beside `model.generate(…)` and takes the same arguments. A plain `TfmDecoderForCausalLM`
runs the loop of this file, which gives the tokens that transformers gives, up to rounding; any other model, and any
option that this loop does not have, goes to `model.generate`. Nothing is attached to the model.

Of torch this file uses private operators, each behind `_can_pack`: `torch.ops.mkldnn._reorder_linear_weight`,
`torch.ops.mkldnn._linear_pointwise`, `torch.ops.mkldnn._is_mkldnn_bf16_supported`. Where one of them is missing the
products are `torch.nn.functional.linear`; `test_packed_products_are_those_of_torch` fails when one changes.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationConfig
from transformers.cache_utils import DynamicCache
from transformers.generation import GenerationMode

from ..models.modeling_tfm import CACHE_NAME, TfmAttention, TfmMLP, gated_heads
from ..models.modeling_tfm_decoder import TfmDecoderForCausalLM
from ..models.modeling_tfm_loss import soft_capped


# Fused weights are a copy; above this size they gain little, since the products dominate.
LARGEST_FUSED_BYTES = 2**29

# The modules that this loop replaces by its own operations. A module of another type under one of these names
# (quantized, wrapped by an adapter) sends the model to `model.generate`.
_REPLACED = {
    "self_attn": TfmAttention,
    "mlp": TfmMLP,
    **dict.fromkeys(
        ("q_proj", "k_proj", "v_proj", "head_gate", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"), nn.Linear
    ),
}
# Modules from elsewhere, a user's subclasses among them, may compute something else.
_KNOWN_SOURCES = (
    TfmAttention.__module__,
    TfmDecoderForCausalLM.__module__,
    "torch.nn.modules",
    "transformers.activations",
)

# Arguments of `generate` that are options of the loop below, or that its first forward pass handles.
_SUPPORTED = {"attention_mask", "position_ids", "prefix_mask", "logits_processor", "stopping_criteria", "streamer"}


def generate(model: nn.Module, input_ids: torch.Tensor, **options: Any) -> Any:
    """
    `model.generate(input_ids, **options)`, faster where it can be: up to twice on two cores (`training/LOG.md`).

    Args:
        model: any model that generates.
        input_ids: `(batch, length)`.
        options: those of transformers' `generate`.

    Returns:
        What `model.generate` returns. Tokens are the same up to rounding: in bf16, where this loop keeps keys and
        values in fp32, two tokens of nearly equal probability can change places.
    """
    if not _is_supported(model, options):
        return model.generate(input_ids=input_ids, **options)
    streamer = options.get("streamer")

    def decode(
        model: TfmDecoderForCausalLM,
        input_ids: torch.Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> torch.Tensor:
        return _decode(model, input_ids, logits_processor, stopping_criteria, generation_config, streamer, model_kwargs)

    return model.generate(input_ids=input_ids, custom_generate=decode, **options)


def _is_supported(model: nn.Module, options: dict[str, Any]) -> bool:
    """Whether the loop below gives what these options ask for, with every operation of this model."""
    if type(model) is not TfmDecoderForCausalLM:
        return False
    settings, others = copy.deepcopy(model.generation_config), dict(options)
    if (given := others.pop("generation_config", None)) is not None:
        settings.update(**{name: value for name, value in given.to_dict().items() if value is not None})
    others = settings.update(**others)
    if any(value is not None for name, value in others.items() if name not in _SUPPORTED):
        return False
    return (
        settings.get_generation_mode() in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
        and settings.use_cache is not False
        and settings.cache_implementation in (None, "dynamic", "dynamic_full")
        and settings.prefill_chunk_size is None
        and settings.stop_strings is None
        and not settings.return_dict_in_generate
        and not settings.token_healing
        and settings.guidance_scale in (None, 1)
        and _has_supported_shape(model)
        and not any(_is_modified(name, module) for name, module in model.named_modules())
    )


def _has_supported_shape(model: TfmDecoderForCausalLM) -> bool:
    config, rotary = model.config, model.model.rotary_emb
    weights = list(model.parameters())
    return (
        not model.training
        and config._attn_implementation in ("sdpa", "blockwise")
        and config.use_cache is not False
        and not config.add_cross_attention
        and not (config.qk_norm and config.norm_type != "rmsnorm")
        # Rotation of a part of the head's width is not written below.
        and all(
            getattr(rotary, f"{rotary.prefix(name)}inv_freq").shape[0] * 2 == config.head_dim
            for name in (rotary.layer_types if rotary is not None else [])
        )
        # Layers that were moved, removed or repeated share or skip places in the cache.
        and [block.self_attn.layer_idx for block in model.model.used_layers()] == list(range(config.num_hidden_layers))
        and all(p.device.type == "cpu" and type(p.data) is torch.Tensor for p in weights)
        and sum(p.nbytes for p in weights) <= LARGEST_FUSED_BYTES
        and not torch.is_autocast_enabled("cpu")
    )


def _is_modified(name: str, module: nn.Module) -> bool:
    """Whether a module does more or other than the loop below: hooks, another forward, a subclass, an adapter."""
    kind, last = type(module), name.rpartition(".")[2]
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._compiled_call_impl
        or {"forward", "prepare_inputs_for_generation"} & vars(module).keys()
        or kind is not _REPLACED.get(last, kind)
        or not kind.__module__.startswith(_KNOWN_SOURCES)
    )


@torch.no_grad()
def _decode(
    model: TfmDecoderForCausalLM,
    input_ids: torch.Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: GenerationConfig,
    streamer: Any,
    model_kwargs: dict[str, Any],
) -> torch.Tensor:
    """The decoding loop: transformers' `generate` prepares these arguments and calls it by `custom_generate`."""
    inputs = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **model_kwargs)
    outputs = model(**inputs, return_dict=True)
    cache = outputs[CACHE_NAME]
    if type(cache) is not DynamicCache:
        raise RuntimeError(f"generate prepared a {type(cache).__name__}; hf_tfm.cpu knows transformers' DynamicCache")
    logits = outputs.logits[:, -1]
    blocks = [DecodingBlock(b, x.keys, x.values) for b, x in zip(model.model.used_layers(), cache.layers)]
    head = FusedLinear(model.lm_head, rows=len(input_ids))
    del outputs, cache
    positions = inputs["position_ids"][:, -1:] + 1
    if bool((positions == positions[0]).all()):
        positions = positions[:1]
    attention_mask = model_kwargs.get("attention_mask")
    padding = None if attention_mask is None or bool(attention_mask.all()) else attention_mask == 0

    ids, length = F.pad(input_ids, (0, DecodingBlock.first_room)), input_ids.shape[1]
    unfinished = torch.ones(len(ids), dtype=torch.long)
    ends = any(hasattr(criteria, "eos_token_id") for criteria in stopping_criteria)
    pad_token_id = _pad_token_id(generation_config) if ends else None
    while True:
        scores = logits_processor(ids[:, :length], logits.to(torch.float32, copy=True))
        if generation_config.do_sample:
            tokens = torch.multinomial(F.softmax(scores, dim=-1), num_samples=1).squeeze(1)
        else:
            tokens = torch.argmax(scores, dim=-1)
        if pad_token_id is not None:
            tokens = tokens * unfinished + pad_token_id * (1 - unfinished)
        if length == ids.shape[1]:
            ids = F.pad(ids, (0, length))
        ids[:, length] = tokens
        length += 1
        if streamer is not None:
            streamer.put(tokens)
        unfinished = unfinished & ~stopping_criteria(ids[:, :length], None)
        if not unfinished.any():
            break
        if padding is not None and padding.shape[1] < length:
            padding = F.pad(padding, (0, length))
        logits = head(_next_states(model, tokens, positions, blocks, length, padding))
        logits = soft_capped(logits, model.config.final_logit_softcapping)
        positions = positions + 1
    if streamer is not None:
        streamer.end()
    return ids[:, :length].contiguous()


def _pad_token_id(settings: GenerationConfig) -> int | None:
    """What follows the end of a finished row: the padding token, or else the first end token, as in transformers."""
    if settings.pad_token_id is not None:
        return settings.pad_token_id
    end = settings.eos_token_id
    return end[0] if isinstance(end, list) else end


def _next_states(
    causal_lm: TfmDecoderForCausalLM,
    tokens: torch.Tensor,
    positions: torch.Tensor,
    blocks: "list[DecodingBlock]",
    length: int,
    padding: torch.Tensor | None,
) -> torch.Tensor:
    """Hidden states `(batch, hidden)` of one more token per row: `tokens` `(batch,)`, `positions` `(batch or 1, 1)`."""
    model, rotations, hidden = causal_lm.model, {}, {}
    embeds = model.embed_tokens(tokens.unsqueeze(1))
    positions = model.positions(positions, embeds, None, past_length=length - 1)
    states = model.embed(embeds, positions, None)
    for layer_type, block in zip(model.config.layer_types, blocks):
        if layer_type in hidden:
            continue
        hidden[layer_type] = None
        if padding is not None:
            hidden[layer_type] = padding[:, None, None, length - block.seen() : length]
        rotations[layer_type] = None
        if model.rotary_emb is not None:
            named = (layer_type,) if model.rotary_emb.layer_types != [None] else ()
            rotations[layer_type] = model.rotary_emb(states, positions, *named)
    states = states[:, 0]
    embedding_values = model.embedding_values(states)
    for layer_type, block in zip(model.config.layer_types, blocks):
        states = block.step(states, rotations[layer_type], hidden[layer_type], embedding_values)
    return model.norm(states)


class FusedLinear:
    """
    Linear layers with the same input as one matrix product, whose weights are laid out for a batch of `rows`: reading
    weights is the cost of a token. oneDNN packs them for its kernels; one fp32 row is fastest with the inputs first.
    """

    def __init__(self, *layers: nn.Linear, rows: int):
        weight = torch.cat([layer.weight for layer in layers])
        biases = [layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias for layer in layers]
        self.bias = None if all(layer.bias is None for layer in layers) else torch.cat(biases)
        self.product = F.linear
        if rows == 1 and weight.dtype == torch.float32:
            weight, self.product = weight.T.contiguous(), _product_inputs_first
        elif _can_pack(weight.dtype):
            weight, self.product = torch.ops.mkldnn._reorder_linear_weight(weight, rows), _product_packed
        self.weight = weight

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        return self.product(states, self.weight, self.bias)


def _can_pack(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    # A CPU without bf16 instructions refuses it.
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _product_packed(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")


def _product_inputs_first(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return states @ weight if bias is None else torch.addmm(bias, states, weight)


class DecodingBlock:
    """
    A block for one new token per row, with few operations: one product for all layers with the same input, and keys and
    values in buffers with room for later tokens, where transformers' `DynamicCache` copies them for each new one.
    """

    first_room = 256

    def __init__(self, block: nn.Module, keys: torch.Tensor, values: torch.Tensor):
        attention, mlp, rows = block.self_attn, block.mlp, len(keys)
        self.block, self.head_dim, self.scaling = block, attention.head_dim, attention.scaling
        self.window = attention.sliding_window
        self.key_value_heads, self.groups = keys.shape[1], attention.num_key_value_groups
        self.query_heads = self.key_value_heads * self.groups
        joined = [attention.q_proj, attention.k_proj, attention.v_proj]
        self.value_mix, self.head_gate = attention.value_mix, attention.head_gate is not None
        self.qkv = FusedLinear(*joined, *([attention.head_gate] if self.head_gate else []), rows=rows)
        self.out = FusedLinear(attention.o_proj, rows=rows)
        self.up = FusedLinear(*([mlp.gate_proj] if mlp.gated else []), mlp.up_proj, rows=rows)
        self.down = FusedLinear(mlp.down_proj, rows=rows)
        self.gated, self.act_fn = mlp.gated, mlp.act_fn
        self.attention_norm, self.mlp_norm = _norm(block.input_layernorm), _norm(block.post_attention_layernorm)
        self.query_key_norm = None
        if not isinstance(attention.q_norm, nn.Identity):
            repeats = torch.tensor([self.query_heads, self.key_value_heads])
            weights = torch.stack([attention.q_norm.weight, attention.k_norm.weight])
            self.query_key_norm = _rms_norm(weights.repeat_interleave(repeats, dim=0), attention.q_norm.eps)
        # In fp32, whose small products are faster, the keys with their positions last: so they are read in order.
        exact = torch.promote_types(keys.dtype, torch.float32)
        self.stored, self.keys, self.values = keys.shape[2], keys.mT.to(exact), values.to(exact)
        self._make_room(self.stored, self.first_room)

    def _make_room(self, kept: int, room: int) -> None:
        """Keep the last `kept` tokens, with space behind them."""
        first = self.stored - kept
        self.keys = F.pad(self.keys[..., first : self.stored], (0, room)).contiguous()
        self.values = F.pad(self.values[:, :, first : self.stored], (0, 0, 0, room)).contiguous()
        self.stored = kept

    def seen(self) -> int:
        """The number of tokens that the next token attends to, itself included."""
        return self.stored + 1 if self.window is None else min(self.stored + 1, self.window)

    def step(
        self,
        states: torch.Tensor,
        rotation: tuple | None,
        padding: torch.Tensor | None,
        embedding_values: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        The block's output for the new tokens' states, both `(batch, hidden)`.

        Args:
            rotation: cosines and sines `(batch or 1, 1, head_dim)`.
            padding: True where a token attended to is padding, `(batch, 1, 1, seen)`.
            embedding_values: added in part to the block's values, `(batch, key/value width)`.
        """
        if self.block.pre_norm:
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
        batch, seen = states.shape[0], self.seen()
        rotated_heads = self.query_heads + self.key_value_heads
        joined = self.qkv(states)
        if self.head_gate:
            joined, gate = joined[:, : -self.query_heads], joined[:, -self.query_heads :]
        heads = joined.view(batch, -1, self.head_dim)
        query_key, value = heads[:, :rotated_heads], heads[:, rotated_heads:]
        if self.value_mix is not None:
            value = value + self.value_mix * embedding_values.view(value.shape)
        if self.query_key_norm is not None:
            query_key = self.query_key_norm(query_key)
        if rotation is not None:
            cos, sin = rotation
            first, second = query_key.chunk(2, dim=-1)
            query_key = query_key * cos + torch.cat((-second, first), dim=-1) * sin
        if self.stored == self.keys.shape[-1]:
            # For all tokens the room doubles; for a window it is as much again as there was at first.
            self._make_room(*((self.stored, self.stored) if self.window is None else (seen - 1, self.first_room)))
        self.keys[..., self.stored] = query_key[:, self.query_heads :]
        self.values[:, :, self.stored] = value
        self.stored += 1
        some = slice(self.stored - seen, self.stored)
        query = query_key[:, : self.query_heads].view(batch, self.key_value_heads, self.groups, self.head_dim)
        scores = torch.matmul(query.to(self.keys.dtype), self.keys[..., some]) * self.scaling
        if padding is not None:
            scores.masked_fill_(padding, float("-inf"))
        output = torch.matmul(F.softmax(scores, dim=-1), self.values[:, :, some])
        output = output.view(batch, -1).to(states.dtype)
        return self.out(gated_heads(output, gate) if self.head_gate else output)

    def _feed_forward(self, states: torch.Tensor) -> torch.Tensor:
        states = self.up(states)
        if self.gated:
            gate, up = states.chunk(2, dim=-1)
            return self.down(self.act_fn(gate) * up)
        return self.down(self.act_fn(states))


def _norm(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    return _rms_norm(module.weight, module.eps) if type(module).__name__ == "TfmRMSNorm" else module


def _rms_norm(weight: torch.Tensor, eps: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """`TfmRMSNorm` in half the operations that torch takes for it on a CPU."""
    exact = torch.promote_types(weight.dtype, torch.float32)
    weight, eps, share = weight.to(exact), torch.tensor(eps, dtype=exact), 1 / weight.shape[-1]

    def norm(states: torch.Tensor) -> torch.Tensor:
        length = torch.linalg.vector_norm(states, dim=-1, keepdim=True, dtype=exact)
        scale = torch.addcmul(eps, length, length, value=share).rsqrt_()
        return (states * scale).mul_(weight).to(states.dtype)

    return norm
