"""Encoders that turn texts into unit vectors."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...artifacts.open import auto_class_of, open_model
from ...core.inference import is_bidirectional
from ...core.limits import longest_input
from ...data.records import Records
from ...evaluate.predict import Predictor, open_predictor


def open_encoder(path: str, trust_remote_code: bool = False, **batching: Any) -> Predictor:
    """
    Open an encoder of texts with the pooling that its folder names.

    Without one, bidirectional models are pooled by the mean and causal models by the last token.

    Args:
        path: folder or Hub name of any model, language models included.
        batching: `batch_tokens`, `bf16`.
    """
    if auto_class_of(path, trust_remote_code) == "AutoModel":
        encoder = open_predictor(path, trust_remote_code=trust_remote_code)
    else:
        model, tokenizer = open_model(path, "AutoModel", trust_remote_code=trust_remote_code)
        if torch.accelerator.is_available():
            model = model.to(torch.accelerator.current_accelerator())
        encoder = Predictor(model, tokenizer, "AutoModel", pooling="mean" if is_bidirectional(model) else "last")
        encoder.max_length = min(tokenizer.model_max_length, longest_input(model.config, 512), 512)
    return replace(encoder, normalize=True, batching=batching)


def embed(encoder: Predictor, texts: Sequence[str], prompt: str = "") -> np.ndarray:
    """Return unit vectors (texts, width) in fp32; `prompt` is prepended to each text."""
    records = Records(({"text": text} for text in texts), map(str, range(len(texts))), "texts")
    return np.array([output["embedding"] for output in replace(encoder, prompt=prompt)(records)], np.float32)


def read_prompts(path: str) -> dict[str, str]:
    """Return the prompts for a `query` and a `passage`, or the default one, from sentence-transformers' file."""
    file = Path(path) / "config_sentence_transformers.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    prompts = settings.get("prompts") or {}
    names = {"query": ("query",), "passage": ("passage", "document")}
    found = {kind: [prompts[name] for name in keys if name in prompts] for kind, keys in names.items()}
    default = prompts.get(settings.get("default_prompt_name")) or ""
    return {kind: next(filter(None, texts), "") if texts else default for kind, texts in found.items()}


def embedding_width(encoder: Predictor) -> int:
    """Return the width of the encoder's vectors."""
    return len(encoder(Records([{"text": "a"}], ["a text"], "a text"))[0]["embedding"])
