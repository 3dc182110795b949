"""Attention masks: padding, sliding windows, packed documents and bidirectional prefixes."""

from collections.abc import Callable

import torch
from torch.nn import functional as F
from transformers.cache_utils import Cache
from transformers.masking_utils import (
    create_bidirectional_mask,
    create_bidirectional_sliding_window_mask,
    create_causal_mask,
    create_sliding_window_causal_mask,
    packed_sequence_mask_function,
)
from transformers.utils.generic import is_flash_attention_requested
from transformers.utils.import_utils import is_tracing

from .configuration_tfm import TfmConfig
from .modeling_tfm_compat import CACHE_NAME, is_updated_by_attention


def is_padding_mask(attention_mask: torch.Tensor | dict | None) -> bool:
    """Return whether the mask is `(batch, length)`, not prepared: 4D, a `BlockMask` or a dict."""
    return isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2


def is_prepared_mask(config: TfmConfig, attention_mask: torch.Tensor | dict | None) -> bool:
    """Return whether the caller's mask alone decides what a token sees, beyond a layer's window too."""
    return (
        attention_mask is not None and not is_padding_mask(attention_mask) and not is_flash_attention_requested(config)
    )


def build_masks(
    config: TfmConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | dict | None,
    packing: dict,
    is_causal: bool,
    cache: Cache | None = None,
    past_length: int | torch.Tensor = 0,
    prefix_mask: torch.Tensor | None = None,
) -> dict[str, torch.Tensor | None]:
    """
    Build the attention mask of each layer type.

    Args:
        inputs_embeds: `(batch, length, hidden)` of the new tokens.
        attention_mask: `(batch, past + length)`, 0 at padding; a prepared mask is returned as it is.
        packing: the mask arguments of [`packing_arguments`].
        past_length: number of tokens in the cache.
        prefix_mask: `(batch, length)`, True for new tokens that see one another in both directions.

    Raises:
        ValueError: the attention implementation supports no `prefix_mask`.
    """
    if isinstance(attention_mask, dict):
        return attention_mask
    arguments = dict(config=config, inputs_embeds=inputs_embeds, attention_mask=attention_mask)
    if is_causal:
        create = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
        arguments[CACHE_NAME] = None if is_updated_by_attention(cache) else cache
    else:
        create = {
            "full_attention": create_bidirectional_mask,
            "sliding_attention": create_bidirectional_sliding_window_mask,
        }
    arguments.update(packing)
    masks = {}
    for layer_type in sorted(set(config.layer_types)):
        if prefix_mask is not None:
            window = config.sliding_window if layer_type == "sliding_attention" else None
            arguments["or_mask_function"] = bidirectional_prefix(prefix_mask, past_length, window)
        masks[layer_type] = create[layer_type](**arguments)
        # Flash attention and serving engines receive a padding mask at most.
        if prefix_mask is not None and (masks[layer_type] is None or is_padding_mask(masks[layer_type])):
            raise ValueError(
                f"attention by {config._attn_implementation!r} takes no prefix_mask: load the model with "
                "attn_implementation='sdpa'"
            )
    return masks


def bidirectional_prefix(prefix_mask: torch.Tensor, past_length: int | torch.Tensor, window: int | None) -> Callable:
    """
    Return a mask function that lets prefix tokens see one another, within a window on both sides.

    Args:
        prefix_mask: `(batch, length)` of the new tokens, which follow `past_length` earlier ones.
    """
    prefix, last = prefix_mask.bool(), prefix_mask.shape[1] - 1

    def both_in_prefix(batch_idx, head_idx, q_idx, kv_idx):
        query, key = q_idx - past_length, kv_idx - past_length
        # Causal attention sees earlier tokens anyway; a static cache has empty places after the last token.
        visible = prefix[batch_idx, query] & (prefix[batch_idx, key.clamp(0, last)] & (key <= last))
        return visible if window is None else visible & ((query - key).abs() < window)

    return both_in_prefix


def packed_documents(position_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
    """
    Number the documents of packed rows.

    Positions rise within a document, by one or more (tokens may be left out or masked). A new document begins where
    they do not rise. Padding on either side, or inside a row, has no influence.

    Args:
        position_ids: `(batch, length)`.
        attention_mask: `(batch, length)`, 0 at padding, or None.

    Returns:
        Document numbers `(batch, length)`, or None if no row holds two documents. Padding gets the number of the
        document before it, because some kernels return NaN for a row that sees nothing.
    """
    is_token = torch.ones_like(position_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    # Positions of the tokens without padding, from column 1 on; padding is written after the end.
    rank, length = is_token.cumsum(-1), position_ids.shape[1]
    compact = F.pad(position_ids, (1, 1), value=-1)
    compact = compact.scatter(1, torch.where(is_token, rank, length + 1), position_ids)
    starts = is_token & (position_ids <= compact.gather(1, rank - is_token.long()))
    documents = starts.cumsum(-1)
    if not is_tracing(documents) and not bool(starts.any()):
        return None
    return documents


def packing_arguments(
    config: TfmConfig, position_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, batch_size: int
) -> tuple[dict, dict]:
    """
    Return the arguments that keep packed documents apart, for mask functions and for attention.

    The first dict is for transformers' mask functions, the second for the attention function. Both are empty if no row
    holds two documents. Rows may be padded.
    """
    if position_ids is None:
        return {}, {}
    if attention_mask is not None:
        if not is_padding_mask(attention_mask) or attention_mask.shape[-1] != position_ids.shape[-1]:
            return {}, {}
    documents = packed_documents(position_ids.expand(batch_size, -1), attention_mask)
    if documents is None:
        return {}, {}
    if is_flash_attention_requested(config):
        # It takes the documents' boundaries in place of a mask, and finds them by itself in single rows only.
        return {"attention_mask": None}, flash_attention_boundaries(documents, attention_mask)
    return {"and_mask_function": packed_sequence_mask_function(documents)}, {}


def flash_attention_boundaries(documents: torch.Tensor, attention_mask: torch.Tensor | None) -> dict:
    """
    Return the boundaries of `documents` `(batch, length)` in the flattened rows, for flash attention.

    Padding is a document too.
    """
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    if attention_mask is not None:
        starts[:, 1:] |= attention_mask[:, 1:] != attention_mask[:, :-1]
    boundaries = F.pad(starts.flatten().nonzero().flatten(), (0, 1), value=starts.numel()).to(torch.int32)
    longest = int(boundaries.diff().max())
    return dict(cu_seq_lens_q=boundaries, cu_seq_lens_k=boundaries, max_length_q=longest, max_length_k=longest)
