"""Runs a model and returns its outputs, so that two models can be compared."""

from collections.abc import Callable
from typing import Any

import torch


Weights = dict[str, torch.Tensor]


def outputs_of(model: Callable[..., Any], **inputs: Any) -> Weights:
    """What two models of the same head must agree on: logits of every kind, last states where there is no head."""
    with torch.no_grad():
        outputs = model(**inputs)
    names = ("logits", "prediction_logits", "seq_relationship_logits", "start_logits", "end_logits")
    found = {name: outputs[name] for name in names if outputs.get(name) is not None}
    return found or {
        name: outputs[name] for name in ("last_hidden_state", "pooler_output") if outputs.get(name) is not None
    }
