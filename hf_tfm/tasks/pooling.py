"""Embeddings of texts: the hidden states of a model pooled to one vector, as sentence-transformers' folders say."""

import contextlib
import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..core.errors import InputError
from ..core.inference import is_bidirectional


POOLINGS = ("mean", "max", "cls", "last")
# sentence-transformers' names; older folders have `pooling_mode_` in front of them.
_SENTENCE_TRANSFORMERS_POOLINGS = {"mean_tokens": "mean", "max_tokens": "max", "cls_token": "cls", "lasttoken": "last"}


class PooledModel(torch.nn.Module):
    """A model whose output is one vector for each row, `(batch, hidden)`; rows are padded on the right."""

    def __init__(self, model: PreTrainedModel, pooling: str):
        super().__init__()
        self.model, self.pooling = model, pooling

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.model.get_input_embeddings()

    def forward(self, attention_mask: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        states = self.model(attention_mask=attention_mask, **inputs).last_hidden_state.float()
        if self.pooling == "cls":
            return states[:, 0]
        if self.pooling == "last":
            return states[torch.arange(len(states), device=states.device), attention_mask.sum(-1) - 1]
        if self.pooling == "max":
            return states.masked_fill(attention_mask[..., None] == 0, -torch.inf).amax(1)
        mask = attention_mask[..., None].to(states.dtype)
        return (states * mask).sum(1) / mask.sum(1)


def read_pooling(path: str, model: PreTrainedModel, pooling: str | None = None) -> dict[str, Any]:
    """
    Read `pooling` and `normalize` from sentence-transformers' files in a model's folder.

    A folder without them has the mean of all tokens, or the last token of a decoder.

    Args:
        pooling: replaces what the folder says.

    Raises:
        InputError: the folder's embeddings are made in another way.
    """
    folder = Path(path)
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        config = json.loads((folder / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"pooling": "mean" if is_bidirectional(model) else "last"}
    steps = [module["type"].rpartition(".")[2] for module in modules]
    if unknown_steps := [step for step in steps if step not in ("Transformer", "Pooling", "Normalize")]:
        raise InputError(
            f"{path}: its embeddings go through {unknown_steps[0]}, which only sentence-transformers computes"
        )
    transformer: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        transformer = json.loads((folder / "sentence_bert_config.json").read_text(encoding="utf-8"))
    if "message" in (transformer.get("modality_config") or {}):
        raise InputError(f"{path}: texts go through its chat template, which only sentence-transformers does")
    modes = config.get("pooling_mode") or [n for n, on in config.items() if n.startswith("pooling_mode_") and on]
    mode = "+".join([modes] if isinstance(modes, str) else modes).replace("pooling_mode_", "")
    chosen = pooling or _SENTENCE_TRANSFORMERS_POOLINGS.get(mode, mode)
    if chosen not in POOLINGS:
        raise InputError(
            f"{path}: is pooled by {mode!r}, known here are {', '.join(POOLINGS)}: choose one as --pooling"
        )
    return {"pooling": chosen, "normalize": "Normalize" in steps}
