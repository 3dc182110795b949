"""A model as it is measured: without its adapter's wrapper, in evaluation mode, without gradients."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


def unwrap_adapter(model: Any) -> Any:
    """Return the model inside a PEFT wrapper, its adapter layers in place; any other model as it is."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextlib.contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Switch dropout and gradients off inside the block, and restore the model's mode behind it."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
