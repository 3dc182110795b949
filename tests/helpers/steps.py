"""A training step, and the distance of two gradients."""

import torch


def relative_error(ours: torch.Tensor, reference: torch.Tensor) -> float:
    return float((ours.float() - reference.float()).norm() / reference.float().norm())


def step(model, inputs, bf16=True):
    """Returns the loss and all gradients as one vector."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
