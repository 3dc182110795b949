"""Outputs of a model, for comparison with another model."""

from collections.abc import Callable
from typing import Any

import torch


Weights = dict[str, torch.Tensor]


def outputs_of(model: Callable[..., Any], **inputs: Any) -> Weights:
    """Return the outputs that two models with the same head have in common: logits, or hidden states without a head."""
    with torch.no_grad():
        outputs = model(**inputs)
    names = ("logits", "prediction_logits", "seq_relationship_logits", "start_logits", "end_logits")
    logits = {name: outputs[name] for name in names if outputs.get(name) is not None}
    return logits or {
        name: outputs[name] for name in ("last_hidden_state", "pooler_output") if outputs.get(name) is not None
    }
