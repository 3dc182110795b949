"""The checkpoint that a model says it was loaded from, compared with the model: names, shapes, values."""

import copy
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from ...core.errors import unreadable
from ...core.quiet import quiet
from .model_parts import body_prefix, plain_name


COMPARED_ROWS = 64  # of each matrix


@dataclass(frozen=True)
class Comparison:
    """
    How a model differs from its checkpoint; names are those of the model without an adapter.

    Attributes:
        source: Folder or repository of the checkpoint.
        missing: Weights of the model that the checkpoint lacks.
        resized: Shapes in the checkpoint of weights that have another shape in the model.
        alike: Matrices whose values are close to the checkpoint's.
        unlike: Matrices whose values have nothing to do with the checkpoint's.
        is_loaded: Whether some weight is exactly the checkpoint's, so that the model was loaded from it.
    """

    source: str
    missing: frozenset[str]
    resized: dict[str, tuple[int, ...]]
    alike: list[str] = field(default_factory=list)
    unlike: list[str] = field(default_factory=list)
    is_loaded: bool = False


def compare_with_checkpoint(model: PreTrainedModel) -> Comparison | None:
    """
    Compare a model with the files it was loaded from, as far as they are on this machine.

    The names are compared by loading the checkpoint once more, without memory for weights, so that renamings and
    conversions of transformers are respected.

    Returns:
        None if the model names no checkpoint with safetensors on this machine.
    """
    source = model.name_or_path
    if not source or getattr(model, "is_quantized", False):
        return None
    try:
        with quiet():
            _, loading = type(model).from_pretrained(
                source,
                config=copy.deepcopy(model.config),
                device_map="meta",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                local_files_only=True,
                use_safetensors=True,
            )
    except unreadable():
        return None
    resized = {name: tuple(shape) for name, shape, _ in loading["mismatched_keys"]}
    alike, unlike, is_loaded = compare_values(model, Path(source))
    missing = frozenset(loading["missing_keys"])
    return Comparison(source, missing - find_renamed(model, Path(source), missing), resized, alike, unlike, is_loaded)


def find_renamed(model: PreTrainedModel, folder: Path, missing: Collection[str]) -> set[str]:
    """Returns those weights that a checkpoint has under another prefix, as after loading with a `key_mapping`."""
    weights = {plain_name(name): weight.detach() for name, weight in model.named_parameters()}
    suffixes = {name.partition(".")[2]: name for name in missing if name in weights}
    renamed = set()
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                name = suffixes.get(key) or suffixes.get(key.partition(".")[2])
                if name is None or list(weights[name].shape) != file.get_slice(key).get_shape():
                    continue
                saved = file.get_slice(key)[:COMPARED_ROWS].to(weights[name].dtype)
                if torch.equal(weights[name][:COMPARED_ROWS].cpu(), saved):
                    renamed.add(name)
    return renamed


def compare_values(model: PreTrainedModel, folder: Path) -> tuple[list[str], list[str], bool]:
    """
    Compare the first rows of the body's weights with tensors of the same name and size of rows in a folder.

    Returns:
        Names of matrices that are alike, names of those that are not, and whether any weight is exactly equal.
    """
    prefix = body_prefix(model)
    weights = {plain_name(name): weight for name, weight in model.named_parameters() if name.startswith(prefix)}
    alike, unlike, is_loaded = [], [], False
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                name = key if key in weights else prefix + key
                if name not in weights or not weights[name].is_floating_point():
                    continue
                weight, shape = weights[name].detach(), file.get_slice(key).get_shape()
                count = min(COMPARED_ROWS, len(weight), shape[0]) if shape and weight.dim() else 0
                if not count or list(weight.shape[1:]) != shape[1:]:
                    continue
                rows, saved = weight[:count].cpu(), file.get_slice(key)[:count].to(weight.dtype)
                if is_constant(saved):
                    continue
                is_loaded = is_loaded or torch.equal(rows, saved)
                if weight.dim() > 1:
                    is_alike = cosine(rows, saved) > 0.1 or have_same_norm(weight, file.get_tensor(key))
                    (alike if is_alike else unlike).append(name)
    return alike, unlike, is_loaded


def cosine(weight: torch.Tensor, other: torch.Tensor) -> float:
    """Returns the cosine of two tensors of the same shape."""
    return torch.nn.functional.cosine_similarity(weight.float().flatten(), other.float().flatten(), dim=0).item()


def have_same_norm(weight: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors may hold the same values in another order, as a converted checkpoint does."""
    return abs(weight.float().norm().item() / other.float().norm().item() - 1) < 1e-4


def is_constant(tensor: torch.Tensor) -> bool:
    """Whether all elements of a tensor are equal, as those of new norms and biases are."""
    return bool((tensor == tensor.flatten()[0]).all()) if tensor.numel() else True
