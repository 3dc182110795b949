"""A stand-in for flash attention, which needs a GPU."""

import pytest
import torch
from transformers import modeling_flash_attention_utils


def flash_attn_func(
    q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), deterministic=False
):
    """`(batch, length, heads, head_dim)`; causal and windows count from the last key."""
    group = q.shape[2] // k.shape[2]
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k.repeat_interleave(group, 2)) * softmax_scale
    distance = torch.arange(k.shape[1])[None] - torch.arange(q.shape[1])[:, None] - (k.shape[1] - q.shape[1])
    left, right = window_size
    right = 0 if causal else right
    hidden = torch.zeros_like(distance, dtype=torch.bool)
    hidden |= (distance < -left) if left >= 0 else False
    hidden |= (distance > right) if right >= 0 else False
    probabilities = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", probabilities, v.repeat_interleave(group, 2))


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False,
    window_size=(-1, -1), deterministic=False,
):  # fmt: skip
    """`(tokens, heads, head_dim)`, each sequence between two of the cumulated lengths."""
    lengths_q, lengths_k = cu_seqlens_q.diff(), cu_seqlens_k.diff()
    assert (max_seqlen_q, max_seqlen_k) == (lengths_q.max(), lengths_k.max())
    assert cu_seqlens_q.dtype == torch.int32 and cu_seqlens_q[-1] == len(q) and cu_seqlens_k[-1] == len(k)
    parts = zip(q.split(lengths_q.tolist()), k.split(lengths_k.tolist()), v.split(lengths_k.tolist()))
    arguments = dict(softmax_scale=softmax_scale, causal=causal, window_size=window_size)
    return torch.cat([flash_attn_func(a[None], b[None], c[None], **arguments)[0] for a, b, c in parts])


@pytest.fixture
def flash(monkeypatch):
    """A function that switches a model over."""
    utils = modeling_flash_attention_utils
    functions = (flash_attn_func, flash_attn_varlen_func, None, utils._pad_input, utils._unpad_input)
    monkeypatch.setattr(utils, "_lazy_imports", lambda *args, **kwargs: functions)
    monkeypatch.setattr(utils, "_loaded_implementation", None)

    def switch(model: torch.nn.Module) -> torch.nn.Module:
        # Past the setter, which asks for a GPU.
        model.config._attn_implementation_internal = "flash_attention_2"
        return model

    return switch
