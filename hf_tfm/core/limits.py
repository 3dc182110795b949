"""Limits of a model, its tokenizer and the hardware, and errors for inputs beyond them."""

from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig

from .errors import InputError


# The longest input, in tokens, of a model whose configuration does not limit it.
UNLIMITED = 1 << 20

# Model types whose positions start behind the pad token's id.
_POSITIONS_BEHIND_PADDING = (
    "camembert", "data2vec-text", "ibert", "lilt", "longformer", "luke", "markuplm", "mpnet", "roberta",
    "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip


def longest_input(config: PreTrainedConfig, default: int = UNLIMITED) -> int:
    """Returns the number of tokens that a model can take, or `default` if its configuration does not say."""
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return default
    if config.model_type == "mpnet":  # has the pad token's id in its code
        return positions - 2
    if config.model_type in _POSITIONS_BEHIND_PADDING:
        return positions - config.pad_token_id - 1
    return positions or default


def refuse_unknown_tokens(model: Any, input_ids: torch.Tensor) -> None:
    """Raise `InputError` for token ids beyond the model's embeddings, which torch reports as a bare IndexError."""
    try:
        rows = model.get_input_embeddings().weight.shape[0]
    except (AttributeError, NotImplementedError):  # CANINE hashes characters
        return
    if input_ids.numel() and (largest := int(input_ids.max())) >= rows:
        raise InputError(
            f"the text has token {largest}, and the model has embeddings of {rows}: another model's tokenizer made it"
        )


def refuse_diverged(logits: "np.ndarray[Any, Any] | torch.Tensor") -> None:
    """Raise `InputError` if a model's outputs are not finite."""
    is_finite = np.isfinite(logits) if isinstance(logits, np.ndarray) else torch.isfinite(logits)
    if not bool(is_finite.all()):
        raise InputError("the model's outputs are not finite, the training diverged: lower --learning_rate")


def has_fast_bf16() -> bool:
    """Whether this machine multiplies bf16 matrices in hardware."""
    return torch.cuda.is_bf16_supported(including_emulation=False) if torch.cuda.is_available() else cpu_has_fast_bf16()


def cpu_has_fast_bf16() -> bool:
    """Whether this machine's CPU multiplies bf16 matrices in hardware (AMX or AVX-512)."""
    # Private: torch has no public name for it. tests/train/test_trainer.py fails if one of them goes away.
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
