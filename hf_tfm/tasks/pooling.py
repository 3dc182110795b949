"""Embeddings of texts: the hidden states of a model pooled to one vector, as sentence-transformers' folders say."""

import contextlib
import json
from pathlib import Path
from typing import Any, NamedTuple

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
    Read `pooling`, `normalize` and `max_length` from sentence-transformers' files in a model's folder.

    A folder without them has the mean of all tokens, or the last token of a decoder, and no `max_length`. A folder
    whose embeddings are made in a further step (see [`further_step`]) is read by sentence-transformers alone.

    Args:
        pooling: replaces what the folder says.

    Raises:
        InputError: the folder's pooling is unknown.
    """
    files = _read_files(path)
    if files is None:
        return {"pooling": pooling or ("mean" if is_bidirectional(model) else "last")}
    chosen = pooling or files.mode
    if chosen not in POOLINGS:
        raise InputError(
            f"{path}: is pooled by {chosen!r}, known here are {', '.join(POOLINGS)}: choose one as --pooling"
        )
    length = files.transformer.get("max_seq_length")
    return {"pooling": chosen, "normalize": "Normalize" in files.steps, "max_length": length}


def further_step(path: str, pooling: str | None = None) -> str | None:
    """
    Return what [`PooledModel`] does not do of the embeddings of a sentence-transformers folder; None if it does all.

    Such a step is a prompt in front of every text, a module behind the pooling, another way of pooling, or lower case.

    Args:
        pooling: replaces what the folder says.
    """
    files = _read_files(path)
    if files is None:
        return None
    if others := [step for step in files.steps if step not in ("Transformer", "Pooling", "Normalize")]:
        return f"its embeddings go through {others[0]}"
    if (pooling or files.mode) not in POOLINGS:
        return f"its embeddings are pooled by {files.mode!r}"
    if "message" in (files.transformer.get("modality_config") or {}):
        return "texts go through its chat template"
    if files.transformer.get("do_lower_case"):
        return "texts become lower case"
    if files.settings.get("truncate_dim"):
        return f"its embeddings are cut to {files.settings['truncate_dim']} numbers"
    prompts = files.settings.get("prompts") or {}
    if prompts.get(files.settings.get("default_prompt_name")):
        return f"it puts the prompt {files.settings['default_prompt_name']!r} in front of every text"
    if any(prompts.values()) and not files.pools_prompts:
        return "it leaves prompts out of the pooling"
    return None


class _Files(NamedTuple):
    """What the files of a sentence-transformers folder say."""

    steps: list[str]
    mode: str
    pools_prompts: bool
    transformer: dict[str, Any]
    settings: dict[str, Any]


def _read_files(path: str) -> _Files | None:
    def read(name: str) -> Any:
        with contextlib.suppress(OSError, ValueError):
            return json.loads((Path(path) / name).read_text(encoding="utf-8"))
        return None

    modules = read("modules.json")
    if modules is None:
        return None
    steps = [module["type"].rpartition(".")[2] for module in modules]
    place = next((module.get("path", "") for module in modules if module["type"].endswith(".Pooling")), "1_Pooling")
    config = read(f"{place}/config.json") or {}
    modes = config.get("pooling_mode") or [n for n, on in config.items() if n.startswith("pooling_mode_") and on]
    mode = "+".join([modes] if isinstance(modes, str) else modes).replace("pooling_mode_", "")
    mode = _SENTENCE_TRANSFORMERS_POOLINGS.get(mode, mode)
    transformer, settings = read("sentence_bert_config.json"), read("config_sentence_transformers.json")
    return _Files(steps, mode, config.get("include_prompt", True), transformer or {}, settings or {})
