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


def is_bidirectional(model: Any) -> bool:
    """Return whether a token's output depends on later tokens, as an encoder's does; tested on a row of 8 tokens."""
    device = next(model.parameters()).device
    input_ids = torch.arange(1, 9, device=device)[None] % model.get_input_embeddings().weight.shape[0]
    changed_ids = torch.cat([input_ids[:, :4], input_ids[:, 4:].flip(1)], dim=1)
    with evaluation_mode(model):
        outputs, changed = (
            model(input_ids=ids, attention_mask=torch.ones_like(ids))[0][:, :4] for ids in (input_ids, changed_ids)
        )
    return not torch.allclose(outputs, changed, rtol=0, atol=1e-5 * float(outputs.abs().max()))
