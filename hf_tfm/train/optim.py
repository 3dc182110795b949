"""
Optimizers for pretraining any transformers model: Muon, NorMuon and AdamW.

`build_optimizer` sorts the parameters of a model into four kinds. With `name="muon"` the matrices inside the layers get
Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon/) and everything else gets AdamW, all inside one
`torch.optim.Optimizer`, so Trainer, accelerate, schedulers and checkpoints treat it like any other.
"""

from typing import Any

import torch
from torch import nn

from ..core.errors import InputError
from .muon import ADAMW_BETAS, ADAMW_EPS, Muon
from .parameters import matrix_layout, parameter_kinds


# Defaults of `build_optimizer`; training/LOG.md has the measurements.
DEFAULTS: dict[str, dict[str, Any]] = {
    "muon": {"lr": 0.01, "embedding_lr": 6e-3, "weight_decay": 0.0},
    "normuon": {"lr": 0.01, "embedding_lr": 6e-3, "weight_decay": 0.1},
    "adamw": {"lr": 1e-3, "embedding_lr": None, "weight_decay": 0.1},
}


def build_optimizer(
    model: nn.Module,
    name: str = "muon",
    *,
    lr: float | None = None,
    embedding_lr: float | None = None,
    weight_decay: float | None = None,
    momentum: float | None = None,
) -> torch.optim.Optimizer:
    """
    Return the optimizer of a pretraining run, with one named parameter group per kind (see `parameter_kinds`).

    Args:
        name: "muon" (matrices by `Muon`, the rest by AdamW), "normuon" (the same with normalized rows and cautious
            decay, for longer runs), or "adamw" (`torch.optim.AdamW` for everything).
        lr: learning rate of the matrices; with "adamw" also of head, norms and biases.
        embedding_lr: learning rate of the embeddings; with Muon also of head, norms and biases, because Muon's own
            rates are on another scale.
        weight_decay: of the matrices; with "adamw" also of embeddings and head. Norms and biases never decay.
        momentum: Muon's.

    Raises:
        InputError: the name is unknown, a rate is not positive, or AdamW is given a momentum.
    """
    if name not in DEFAULTS:
        raise InputError(f"optimizer {name!r} is unknown: choose one of {', '.join(DEFAULTS)}")
    if name == "adamw" and momentum is not None:
        raise InputError("momentum belongs to the optimizer muon: leave it out or choose muon, not adamw")
    default = DEFAULTS[name]
    lr = default["lr"] if lr is None else lr
    embedding_lr = (default["embedding_lr"] or lr) if embedding_lr is None else embedding_lr
    other_lr = lr if name == "adamw" else embedding_lr
    rates = {"matrices": lr, "embeddings": embedding_lr, "head": other_lr, "scalars": other_lr}
    for kind, rate in rates.items():
        if rate <= 0:
            raise InputError(f"the learning rate of the {kind} is {rate}: it must be above 0")
    weight_decay = default["weight_decay"] if weight_decay is None else weight_decay
    decaying_kinds = {"matrices", "embeddings", "head"} if name == "adamw" else {"matrices"}

    kinds = parameter_kinds(model)
    parameters = dict(model.named_parameters())
    groups: dict[str, dict[str, Any]] = {}
    for kind, rate in rates.items():  # matrices first: Trainer logs the rate of the first group
        for parameter_name, parameter in parameters.items():
            if kinds.get(parameter_name) != kind:
                continue
            label, fields = kind, {"lr": rate, "weight_decay": weight_decay if kind in decaying_kinds else 0.0}
            if kind == "matrices" and name != "adamw":
                layout = matrix_layout(model, parameter_name, parameter)
                fields |= {"algorithm": "muon", **layout._asdict()}
                label += " transposed" if layout.transposed else ""
                label += f" {'+'.join(map(str, layout.blocks))}" if layout.blocks else ""
                label += f" in {layout.turns} turns" if layout.turns > 1 else ""
            groups.setdefault(label, {"name": label, "params": [], **fields})["params"].append(parameter)
    if name == "adamw":
        return torch.optim.AdamW(list(groups.values()), betas=ADAMW_BETAS, eps=ADAMW_EPS, fused=True)
    settings: dict[str, Any] = {} if momentum is None else {"momentum": momentum}
    if name == "normuon":
        settings |= {"row_beta": 0.95, "cautious": True}
    return Muon(list(groups.values()), **settings)


def describe_optimizer(optimizer: torch.optim.Optimizer) -> str:
    """Return one line per parameter group: algorithm, tensors, parameters, learning rate and decay."""
    lines = []
    for group in optimizer.param_groups:
        count = sum(p.numel() for p in group["params"])
        algorithm = {"muon": "Muon", "adamw": "AdamW"}[group.get("algorithm", "adamw")]
        lines.append(
            f"{algorithm:5}  {len(group['params']):4} tensors {count:>12,} parameters  lr {group['lr']:g}  "
            f"decay {group['weight_decay']:g}  {group['name']}"
        )
    return "\n".join(lines)
