"""Greedy search and sampling on a processor, with few operations a token; the rest of `generate` is transformers'."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.cache_utils import DynamicCache

from .modeling_tfm import TfmAttention, TfmMLP, gated_heads, soft_capped


# What the loop here takes apart; a stand-in of another type (quantized, wrapped, left out) is run as it stands.
_TAKEN_APART = {
    "self_attn": TfmAttention,
    "mlp": TfmMLP,
    **dict.fromkeys(
        ("q_proj", "k_proj", "v_proj", "head_gate", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"), nn.Linear
    ),
}


class TfmDecodingLinear:
    """
    Linear layers that read the same states, as one product, their weights laid out anew for so few `rows`: reading them
    is what a token costs. oneDNN packs them for its kernels; a single fp32 row is fastest with the inputs first.
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
    # A processor without the instructions for bf16 refuses it.
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _product_packed(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")


def _product_inputs_first(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return states @ weight if bias is None else torch.addmm(bias, states, weight)


class TfmDecodingLayer:
    """
    A block for one new token a row, with few operations: all that reads the same states in one product, keys and values
    in buffers with room for the tokens to come, where transformers' cache copies all of them for each new one.
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
        self.qkv = TfmDecodingLinear(*joined, *([attention.head_gate] if self.head_gate else []), rows=rows)
        self.out = TfmDecodingLinear(attention.o_proj, rows=rows)
        self.up = TfmDecodingLinear(*([mlp.gate_proj] if mlp.gated else []), mlp.up_proj, rows=rows)
        self.down = TfmDecodingLinear(mlp.down_proj, rows=rows)
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
        """How many tokens the next one sees, itself included."""
        return self.stored + 1 if self.window is None else min(self.stored + 1, self.window)

    def step(
        self,
        states: torch.Tensor,
        rotation: tuple | None,
        padding: torch.Tensor | None,
        embedding_values: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """
        States of the new tokens `(batch, hidden)` to those behind the block.

        Args:
            rotation: cosines and sines `(batch or 1, 1, head_dim)`.
            padding: which of the tokens seen are padding, `(batch, 1, 1, seen)`.
            embedding_values: that the block's values get some of, `(batch, key/value width)`.
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
    """`TfmRMSNorm` in half the operations that torch takes for it on a processor."""
    exact = torch.promote_types(weight.dtype, torch.float32)
    weight, eps, share = weight.to(exact), torch.tensor(eps, dtype=exact), 1 / weight.shape[-1]

    def norm(states: torch.Tensor) -> torch.Tensor:
        length = torch.linalg.vector_norm(states, dim=-1, keepdim=True, dtype=exact)
        scale = torch.addcmul(eps, length, length, value=share).rsqrt_()
        return (states * scale).mul_(weight).to(states.dtype)

    return norm


class TfmGenerationMixin:
    """
    Stands before transformers' `GenerationMixin`, whose `generate` calls it. Where nothing is asked for but tokens,
    greedy search and sampling on a processor run a loop of their own, which gives the same ones.
    """

    # Joined weights are a copy, and spare little time where the products take long.
    largest_joined_bytes = 2**29

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,
        next_sequence_length: int | None = None,
        past_key_values: Any = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        prefix_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict:
        """transformers' own, with as much of the prompt's `prefix_mask` `(batch, prompt)` as is read in this step."""
        inputs = super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
        if prefix_mask is None or (inputs_embeds is not None and not is_first_iteration):
            return inputs
        read = inputs["input_ids"] if inputs.get("inputs_embeds") is None else inputs["inputs_embeds"]
        written = max(input_ids.shape[1] - prefix_mask.shape[1], 0) if read is inputs["input_ids"] else 0
        first = prefix_mask.shape[1] + written - read.shape[1]
        if read is inputs["input_ids"] and input_ids.shape[1] < prefix_mask.shape[1]:  # a chunk of the prompt, alone
            first = int(past_key_values.get_seq_length())
        if first < prefix_mask.shape[1]:
            first, end = max(first, 0), first + read.shape[1]
            if first > 0 or end < prefix_mask.shape[1]:
                before, now, behind = (part.any(1) for part in prefix_mask.bool().tensor_split((first, end), dim=1))
                if bool((now & (before | behind)).any()):
                    raise ValueError("a prefix sees all of itself, so it is read at once: leave prefill_chunk_size out")
            inputs["prefix_mask"] = F.pad(prefix_mask, (0, written))[:, first:end]
            # For a static cache it was made into one without the prefix.
            inputs["attention_mask"] = attention_mask
        return inputs

    def _sample(
        self,
        input_ids: torch.LongTensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        synced_gpus: bool = False,
        streamer: Any = None,
        **model_kwargs: Any,
    ) -> Any:
        if synced_gpus or not self._only_tokens_wanted(generation_config, model_kwargs):
            return super()._sample(
                input_ids, logits_processor, stopping_criteria, generation_config, synced_gpus, streamer, **model_kwargs
            )
        outputs = self._prefill(input_ids, generation_config, model_kwargs, is_first_iteration=True)
        logits = outputs.logits[:, -1]
        filled = outputs.past_key_values.layers
        layers = [TfmDecodingLayer(b, x.keys, x.values) for b, x in zip(self.model.used_layers(), filled)]
        head = TfmDecodingLinear(self.lm_head, rows=len(input_ids))
        del outputs, filled
        positions = model_kwargs["position_ids"][:, -1:] + 1
        if bool((positions == positions[0]).all()):
            positions = positions[:1]
        attention_mask = model_kwargs.get("attention_mask")
        padding = None if attention_mask is None or bool(attention_mask.all()) else attention_mask == 0

        ids, length = F.pad(input_ids, (0, TfmDecodingLayer.first_room)), input_ids.shape[1]
        unfinished = torch.ones(len(ids), dtype=torch.long)
        ends = any(hasattr(criteria, "eos_token_id") for criteria in stopping_criteria)
        pad_token_id = generation_config._pad_token_tensor
        while True:
            scores = logits_processor(ids[:, :length], logits.to(torch.float32, copy=True))
            if generation_config.do_sample:
                tokens = torch.multinomial(F.softmax(scores, dim=-1), num_samples=1).squeeze(1)
            else:
                tokens = torch.argmax(scores, dim=-1)
            if ends:
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
            logits = head(self._next_states(tokens, positions, layers, length, padding))
            logits = soft_capped(logits, self.config.final_logit_softcapping)
            positions = positions + 1
        if streamer is not None:
            streamer.end()
        return ids[:, :length].contiguous()

    def _next_states(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        layers: list[TfmDecodingLayer],
        length: int,
        padding: torch.Tensor | None,
    ) -> torch.Tensor:
        """States `(batch, hidden)` of one more token a row, `(batch,)`, at `positions` `(batch or 1, 1)`."""
        model, rotations, hidden = self.model, {}, {}
        embeds = model.embed_tokens(tokens.unsqueeze(1))
        positions = model.positions(positions, embeds, None, past_length=length - 1)
        states = model.embed(embeds, positions, None)
        for layer_type, layer in zip(self.config.layer_types, layers):
            if layer_type in hidden:
                continue
            hidden[layer_type] = None
            if padding is not None:
                hidden[layer_type] = padding[:, None, None, length - layer.seen() : length]
            rotations[layer_type] = None
            if model.rotary_emb is not None:
                named = (layer_type,) if model.rotary_emb.layer_types != [None] else ()
                rotations[layer_type] = model.rotary_emb(states, positions, *named)
        states = states[:, 0]
        embedding_values = model.embedding_values(states)
        for layer_type, layer in zip(self.config.layer_types, layers):
            states = layer.step(states, rotations[layer_type], hidden[layer_type], embedding_values)
        return model.norm(states)

    def _only_tokens_wanted(self, generation_config: Any, model_kwargs: dict) -> bool:
        """Whether nothing is asked for that the loop here does not give, and nobody looks into the model meanwhile."""
        cache, given = model_kwargs.get("past_key_values"), {k for k, v in model_kwargs.items() if v is not None}
        weights = list(self.parameters())
        rotated = self.model.rotary_emb is None or all(
            getattr(self.model.rotary_emb, f"{self.model.rotary_emb.prefix(name)}inv_freq").shape[0] * 2
            == self.config.head_dim
            for name in self.model.rotary_emb.layer_types
        )
        return (
            not generation_config.return_dict_in_generate
            and type(cache) is DynamicCache
            and not getattr(cache, "_is_user_defined", False)
            and cache.get_seq_length() == 0
            and model_kwargs.get("use_cache")
            and "position_ids" in given
            and model_kwargs["position_ids"].ndim == 2
            and not given & {"inputs_embeds", "token_type_ids", "encoder_outputs", "encoder_hidden_states"}
            and ("attention_mask" not in given or model_kwargs["attention_mask"].ndim == 2)
            and not self.training
            and self.config._attn_implementation in ("sdpa", "blockwise")
            and not self.config.add_cross_attention
            and not (self.config.qk_norm and self.config.norm_type != "rmsnorm")
            and rotated
            and all(p.device.type == "cpu" and type(p.data) is torch.Tensor for p in weights)
            and sum(p.nbytes for p in weights) <= self.largest_joined_bytes
            and not torch.is_autocast_enabled("cpu")
            and not any(_is_watched(name, module) for name, module in self.named_modules())
        )


def _is_watched(name: str, module: nn.Module) -> bool:
    """Whether a module does more or other than the loop here would: hooks, a forward or inputs of its own or a compiled
    one, a subclass, a stand-in, an adapter."""
    kind, last = type(module), name.rpartition(".")[2]
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._compiled_call_impl
        or {"forward", "prepare_inputs_for_generation"} & vars(module).keys()
        or kind is not _TAKEN_APART.get(last, kind)
        or not (
            kind.__module__.rpartition(".")[0] == __package__
            or kind.__module__.startswith(("torch.nn.modules.", "transformers.activations"))
        )
    )
