"""A smaller model out of some layers of a larger one."""

import copy
import re
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ..core.errors import InputError


def choose_layers(config: PreTrainedConfig, keep: Sequence[int]) -> list[int]:
    """
    Return the numbers, from 0, of the layers to keep.

    Args:
        keep: how many, which are then evenly spaced from the first to the last one; or several numbers of layers.

    Raises:
        InputError: the model has no such layers, or its configuration does not count them.
    """
    total = getattr(config, "num_hidden_layers", None)
    given = " ".join(map(str, keep))
    if total is None:
        raise InputError(
            f"keep_layers {given}: the configuration of this {config.model_type} does not count its layers"
        )
    if len(keep) == 1:
        [count] = keep
        if not 1 <= count <= total:
            raise InputError(f"keep_layers {count}: this {config.model_type} has {total} layers")
        return [number * (total - 1) // max(count - 1, 1) for number in range(count)]
    if sorted(set(keep)) != list(keep) or not 0 <= keep[0] <= keep[-1] < total:
        raise InputError(
            f"keep_layers {given}: the numbers of layers must rise and lie between 0 and {total - 1}, the last layer "
            f"of this {config.model_type}"
        )
    return list(keep)


def keep_layers(auto_class: Any, model: PreTrainedModel, numbers: Sequence[int], trust_remote_code: bool) -> Any:
    """
    Return a model with some of another one's layers and all of its other weights.

    It is built from its own configuration, so that it is the model that its saved folder gives.

    Args:
        auto_class: Auto class of the model.
        numbers: numbers of the layers, see [`choose_layers`].

    Raises:
        InputError: the layers are not interchangeable: a layer has weights that its new place does not have.
    """
    total = model.config.num_hidden_layers
    config = shorten_config(model.config, numbers)
    lists = [
        re.escape(name)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == total
    ]
    place = re.compile(rf"({'|'.join(lists) or '$'})\.(\d+)\.")
    new_numbers = {str(number): str(new) for new, number in enumerate(numbers)}
    weights = {}
    for name, weight in model.state_dict().items():
        layer = place.match(name)
        if layer is None:
            weights[name] = weight
        elif layer[2] in new_numbers:
            weights[f"{layer[1]}.{new_numbers[layer[2]]}.{name[layer.end() :]}"] = weight
    shorter = auto_class.from_config(config, trust_remote_code=trust_remote_code)
    if shorter.state_dict().keys() != weights.keys():
        differing = sorted(shorter.state_dict().keys() ^ weights.keys())
        raise InputError(
            f"keep_layers {' '.join(map(str, numbers))}: the layers of this {config.model_type} are not "
            f"interchangeable, they differ in {differing[0]}: keep others, such as the first ones"
        )
    shorter.load_state_dict(weights)
    # The folder has other layers under the names of moved ones: nobody shall compare or load them by name.
    shorter.name_or_path = model.name_or_path if list(numbers) == list(range(len(numbers))) else ""
    return shorter


def shorten_config(config: PreTrainedConfig, numbers: Sequence[int]) -> PreTrainedConfig:
    """Return a copy of a configuration with some layers, also in all lists that have an entry for each layer."""
    shorter = copy.deepcopy(config)
    for name, value in config.to_dict().items():
        if "layer" in name and isinstance(value, list) and len(value) == config.num_hidden_layers:  # as layer_types
            setattr(shorter, name, [value[number] for number in numbers])
    shorter.num_hidden_layers = len(numbers)
    return shorter
