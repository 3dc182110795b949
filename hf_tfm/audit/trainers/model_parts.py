"""The parts of a model, behind the wrappers of PEFT: body, head, embeddings, layers."""

import re
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .subject import find_layers


# PEFT puts these names between a module and its weights: `q_proj.base_layer.weight`.
_WRAPPERS = re.compile(r"\.(?:base_layer|original_module|token_adapter|modules_to_save\.[^.]+)(?=\.|$)")


def plain_name(name: str) -> str:
    """Returns a weight's name in the model without an adapter."""
    return _WRAPPERS.sub("", name.removeprefix("base_model.model."))


def body_prefix(model: PreTrainedModel) -> str:
    """Returns what names of the body's weights begin with; empty if the whole model is a body."""
    prefix = model.base_model_prefix
    if prefix and hasattr(model, prefix):
        return f"{prefix}."
    layers = find_layers(model)
    if layers is None:
        return ""
    path = next(name for name, module in model.named_modules() if module is layers[1])
    return path.split(".")[0] + "." if "." in path else ""


def head_weights(model: PreTrainedModel) -> dict[str, list[nn.Parameter]]:
    """Returns the weights outside of the body by their plain names; an adapter may hold several of one name."""
    prefix = body_prefix(model)
    weights: dict[str, list[nn.Parameter]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        if prefix and not name.startswith(prefix):
            weights.setdefault(plain_name(name), []).append(weight)
    return weights


def layer_prefixes(model: nn.Module) -> list[str]:
    """Returns the names of a model's layers, with a dot behind each: `model.layers.0.`."""
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 1 and len({type(layer) for layer in module}) == 1
    ]
    outer = [(name, module) for name, module in lists if not any(name.startswith(f"{other}.") for other, _ in lists)]
    return [f"{name}.{number}." for name, module in outer for number in range(len(module))]


def input_embeddings(model: PreTrainedModel) -> nn.Module | None:
    """Returns the module of the input embeddings, in the wrapper of an adapter; None if there is none."""
    try:
        return model.get_input_embeddings()
    except NotImplementedError:
        return None


def base_weight(module: Any) -> torch.Tensor | None:
    """Returns the matrix of a module, or of the module that an adapter wraps."""
    while module is not None and (inner := getattr(module, "original_module", getattr(module, "base_layer", None))):
        module = inner
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, torch.Tensor) else None
