"""Rows of a classification head follow the names of their labels when a model is trained further on other labels."""

import copy
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from .report import print_line


_MAX_NAMED = 8  # labels that a line of the report names


def carry_head_rows(model: PreTrainedModel, saved: PreTrainedModel, names: list[str]) -> bool:
    """
    Set each row of a head to the saved model's row for the label of the same name, or draw it anew; print which.

    A row that stayed at its number would mean another label whenever the labels have another order. `LABEL_0`, which
    transformers writes where nobody named a label, has the name "0".

    Args:
        model: the model to train, with its labels in `config.id2label`.
        saved: the same weights with the labels that they were trained on.
        names: the parameters with a row for each label, see [`head_parameters`].

    Returns: whether there is a new row.
    """
    old_labels, new_labels = label_names(saved.config), label_names(model.config)
    number_of = {name: number for number, name in enumerate(old_labels)}
    sources = [number_of.get(name) for name in new_labels]
    old_weights, weights = saved.state_dict(), model.state_dict()
    for name in names:
        rows = _new_parameter(model, name, weights[name])
        for number, source in enumerate(sources):
            if source is not None:
                rows[number] = old_weights[name][source]
        weights[name].copy_(rows)
    matched_names = [name for name, source in zip(new_labels, sources) if source is not None]
    new_names = [name for name, source in zip(new_labels, sources) if source is None]
    lines = [f"the base's rows for {_listed(matched_names)}, found by name"] if matched_names else []
    if new_names:
        lines.append(f"new rows for {_listed(new_names)}")
        if not matched_names:
            lines.append(f"those of the base are for {_listed(old_labels)}")
    print_line("head", "; ".join(lines))
    return bool(new_names)


def label_names(config: PreTrainedConfig) -> list[str]:
    """Return the names of a configuration's labels by their ids; a regression's only output has the name "number"."""
    if config.num_labels == 1 and config.problem_type in (None, "regression"):
        return ["number"]
    names = (str(config.id2label[number]) for number in range(config.num_labels))
    return [str(number) if name == f"LABEL_{number}" else name for number, name in enumerate(names)]


def head_parameters(auto_class: Any, model: PreTrainedModel, trust_remote_code: bool) -> list[str]:
    """Return the names of the parameters that have a row for each label: their length follows `num_labels`."""
    larger = copy.deepcopy(model.config)
    larger.num_labels = model.config.num_labels + 1
    with torch.device("meta"):
        shapes = {
            name: weight.shape
            for name, weight in auto_class.from_config(larger, trust_remote_code=trust_remote_code).named_parameters()
        }
    return [
        name
        for name, weight in model.named_parameters()
        if name in shapes and weight.shape[0] == model.config.num_labels != shapes[name][0]
    ]


def _new_parameter(model: PreTrainedModel, name: str, reference: torch.Tensor) -> torch.Tensor:
    """Return a parameter of a linear layer as the model initializes it."""
    rows = torch.nn.Linear(reference.shape[-1], reference.shape[0], device=reference.device)
    model._init_weights(rows)
    return getattr(rows, name.rpartition(".")[2]).detach().to(reference.dtype)


def _listed(names: list[str]) -> str:
    num_remaining = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {num_remaining} more" if num_remaining > 0 else "")
