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


def is_bidirectional(model: torch.nn.Module) -> bool:
    """Return whether a token's output depends on later tokens, as an encoder's does; found out by a forward pass."""
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]], device=next(model.parameters()).device)
    with evaluation_mode(model):
        first = model(input_ids=ids, attention_mask=torch.ones_like(ids))[0][:, 0]
    return not torch.equal(first[0], first[1])
