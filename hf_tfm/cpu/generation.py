"""
Greedy search and sampling on a CPU with few operations per token.

`generate(model, …)` takes the same arguments as `model.generate(…)`. A plain `TfmDecoderForCausalLM` runs the decoding
loop of this file, which returns the tokens of transformers' loop up to rounding. Any other model, and any option that
this loop lacks, goes to `model.generate`. The model itself is not changed.

Private names of torch used here: `_forward_hooks`, `_forward_pre_hooks` and `_compiled_call_impl` of a module, which
show that a model was modified and must run as it is (`test_hooks_and_adapters_see_every_token` fails if they change).
"""

import copy
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.generation import GenerationMode

from ..models.modeling_tfm import TfmAttention, TfmMLP
from ..models.modeling_tfm_compat import CACHE_NAME
from ..models.modeling_tfm_decoder import TfmDecoderForCausalLM
from ..models.modeling_tfm_loss import cap_logits
from .attention import BLOCKWISE, BLOCKWISE_UNPADDED
from .decoding_block import DecodingBlock, FusedLinear


# Fused weights are a copy. Above this size they gain little, because the products dominate.
LARGEST_FUSED_BYTES = 2**29

# Modules that this loop replaces by operations of its own. If a module under one of these names has another type
# (quantized, wrapped by an adapter), the model goes to `model.generate`.
_REPLACED = {
    "self_attn": TfmAttention,
    "mlp": TfmMLP,
    **dict.fromkeys(
        ("q_proj", "k_proj", "v_proj", "head_gate", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"), nn.Linear
    ),
}
# Modules defined elsewhere, such as a user's subclasses, may compute something else.
_KNOWN_SOURCES = (
    TfmAttention.__module__,
    TfmDecoderForCausalLM.__module__,
    "torch.nn.modules",
    "transformers.activations",
)

# Arguments of `generate` that the loop below supports, or that the first forward pass handles.
_SUPPORTED = {"attention_mask", "position_ids", "prefix_mask", "logits_processor", "stopping_criteria", "streamer"}


def generate(model: PreTrainedModel, input_ids: torch.Tensor, **options: Any) -> Any:
    """
    Return `model.generate(input_ids, **options)`, up to twice as fast on two cores (`training/LOG.md`).

    Args:
        model: any model with a `generate` method.
        input_ids: `(batch, length)`.
        options: options of transformers' `generate`.

    Returns:
        The output of `model.generate`. Tokens are the same up to rounding: this loop keeps keys and values in fp32, so
        in bf16 two tokens of nearly equal probability can change places.
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


def _is_supported(model: Any, options: dict[str, Any]) -> bool:
    """Return whether the loop below supports these options and every operation of this model."""
    if type(model) is not TfmDecoderForCausalLM:
        return False
    settings, arguments = copy.deepcopy(model.generation_config), dict(options)
    if (generation_config := arguments.pop("generation_config", None)) is not None:
        settings.update(**{name: value for name, value in generation_config.to_dict().items() if value is not None})
    arguments = settings.update(**arguments)  # what remains is no setting
    if any(value is not None for name, value in arguments.items() if name not in _SUPPORTED):
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


def _has_supported_shape(model: Any) -> bool:
    """Return whether the loop below computes what this model does in its present state."""
    config, rotary = model.config, model.model.rotary_emb
    weights = list(model.parameters())
    return (
        not model.training
        and config._attn_implementation in ("sdpa", BLOCKWISE, BLOCKWISE_UNPADDED)
        and config.use_cache is not False
        and not config.add_cross_attention
        and not (config.qk_norm and config.norm_type != "rmsnorm")
        # The loop has no rotation of a part of a head.
        and all(
            getattr(rotary, f"{rotary.prefix(name)}inv_freq").shape[0] * 2 == config.head_dim
            for name in (rotary.layer_types if rotary is not None else [])
        )
        # Layers that were moved, removed or repeated share or skip entries of the cache.
        and [block.self_attn.layer_idx for block in _used_blocks(model)] == list(range(config.num_hidden_layers))
        and all(p.device.type == "cpu" and type(p.data) is torch.Tensor for p in weights)
        and sum(p.nbytes for p in weights) <= LARGEST_FUSED_BYTES
        and not torch.is_autocast_enabled("cpu")
    )


def _used_blocks(model: Any) -> Any:
    return model.model.layers[: model.config.num_hidden_layers]


def _is_modified(name: str, module: nn.Module) -> bool:
    """Return whether a module has hooks, a replaced forward, another class than expected, or an adapter."""
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
    """Run the decoding loop; `generate` of transformers calls it as `custom_generate`."""
    inputs = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **model_kwargs)
    outputs = model(**inputs, return_dict=True)
    cache = outputs[CACHE_NAME]
    if type(cache) is not DynamicCache:
        raise RuntimeError(f"generate prepared a {type(cache).__name__}; hf_tfm.cpu supports DynamicCache only")
    logits = outputs.logits[:, -1]
    blocks = [DecodingBlock(b, x.keys, x.values) for b, x in zip(_used_blocks(model), cache.layers)]
    head = FusedLinear(model.lm_head, rows=len(input_ids))
    del outputs, cache
    positions = inputs["position_ids"][:, -1:] + 1
    if bool((positions == positions[0]).all()):
        positions = positions[:1]
    attention_mask = model_kwargs.get("attention_mask")
    padding = None if attention_mask is None or bool(attention_mask.all()) else attention_mask == 0

    ids, length = F.pad(input_ids, (0, DecodingBlock.initial_capacity)), input_ids.shape[1]
    unfinished = torch.ones(len(ids), dtype=torch.long)
    stops_at_token = any(hasattr(criteria, "eos_token_id") for criteria in stopping_criteria)
    pad_token_id = _pad_token_id(generation_config) if stops_at_token else None
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
        logits = cap_logits(logits, model.config.final_logit_softcapping)
        positions = positions + 1
    if streamer is not None:
        streamer.end()
    return ids[:, :length].contiguous()


def _pad_token_id(settings: GenerationConfig) -> int | None:
    """Return the token that fills finished rows: padding, else the first end token, as in transformers."""
    if settings.pad_token_id is not None:
        return settings.pad_token_id
    eos_token_id = settings.eos_token_id
    return eos_token_id[0] if isinstance(eos_token_id, list) else eos_token_id


def _next_states(
    causal_lm: Any,
    tokens: torch.Tensor,
    positions: torch.Tensor,
    blocks: list[DecodingBlock],
    length: int,
    padding: torch.Tensor | None,
) -> torch.Tensor:
    """Return hidden states `(batch, hidden)` of a new token per row, at `positions` `(batch or 1, 1)`."""
    model = causal_lm.model
    embeds = model.embed_tokens(tokens.unsqueeze(1))
    positions = model.build_position_ids(positions, embeds, None, past_length=length - 1)
    states = model.embed(embeds, positions, None)
    rotations = model.position_embeddings(states, positions)
    layer_types = model.config.layer_types
    hidden: dict[str, torch.Tensor | None] = dict.fromkeys(layer_types)
    if padding is not None:
        for layer_type, block in zip(layer_types, blocks):
            if hidden[layer_type] is None:
                hidden[layer_type] = padding[:, None, None, length - block.visible_tokens() : length]
    states = states[:, 0]
    embedding_values = model.embedding_values(states)
    for layer_type, block in zip(layer_types, blocks):
        states = block.step(states, rotations[layer_type], hidden[layer_type], embedding_values)
    return model.norm(states)
