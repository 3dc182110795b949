"""
Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon/) and NorMuon, with AdamW for all other weights.

One `torch.optim.Optimizer` holds both, so Trainer, accelerate, schedulers and checkpoints treat it like any other.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from .orthogonalization import orthogonalization_dtype, orthogonalize
from .sharing import LocalPart, shard_like, share_out


ADAMW_BETAS = (0.9, 0.95)
ADAMW_EPS = 1e-8

# At most this many elements are orthogonalized together, which bounds the scratch memory of large models (64 MB in
# bf16).
_CHUNK_ELEMENTS = 2**25

# Of sharded weights a process updates at most this many elements at a time: enough for a few large communications.
_SHARED_ELEMENTS = 2**22


class Muon(torch.optim.Optimizer):
    """
    Muon for parameter groups with `algorithm="muon"`, AdamW (torch's own kernel) for those with `"adamw"`.

    A Muon group holds weights of one layout, matrices or (experts, out, in); its fields `transposed`, `blocks` and
    `turns` are those of `parameters.MatrixLayout`. Fused projections are orthogonalized one by one. An update is scaled
    by sqrt(max(1, out / in)). Momentum is Nesterov's. The state is one fp32 momentum per weight; a run resumed from
    `state_dict` is bit-identical.

    With `row_beta` the rows of an update (one per output) are divided by the running root of their mean square, and the
    update is rescaled to its former norm (NorMuon, https://arxiv.org/abs/2510.05491). With `cautious` only weights that
    the update shrinks decay (https://arxiv.org/abs/2510.12402).

    Each matrix of sharded parameters (FSDP2's DTensor) is orthogonalized by one process (see `sharing`); the state is
    sharded like the parameters.

    Args:
        groups: dictionaries with `params`, `algorithm`, and fields that differ from the defaults below.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float = 0.01,
        weight_decay: float = 0.0,
        momentum: float = 0.85,
        row_beta: float = 0.0,
        cautious: bool = False,
    ):
        defaults = {
            "algorithm": "adamw",
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "row_beta": row_beta,
            "cautious": cautious,
            "transposed": False,
            "blocks": None,
            "turns": 1,
            "betas": ADAMW_BETAS,
            "eps": ADAMW_EPS,
            "fused": True,  # load_state_dict reads this to keep AdamW's step count beside the parameter
        }
        super().__init__(groups, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a state; fields that an older version did not have get their defaults."""
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                (self._update_by_muon if group["algorithm"] == "muon" else self._update_by_adamw)(group, params)
        return loss

    def _update_by_adamw(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                self.state[p]["exp_avg"] = torch.zeros_like(p)
                self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
        states = [self.state[p] for p in params]
        adamw(
            params,
            [cast(Tensor, p.grad) for p in params],
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"] for s in states],
            fused=group["fused"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _update_by_muon(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for part in share_out(params, _SHARED_ELEMENTS):
            self._update_part(group, [params[position] for position in part.positions], part)

    def _update_part(self, group: dict[str, Any], params: list[Tensor], part: LocalPart) -> None:
        for p in params:
            self._initialize_muon_state(group, p)
        momentum = group["momentum"]
        gradients = [cast(Tensor, p.grad) for p in params]
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        updates = torch._foreach_lerp(gradients, buffers, momentum)
        self._orthogonalize_updates(group, params, updates, part)
        decay = group["lr"] * group["weight_decay"]
        if decay and group["cautious"]:
            for p, update in zip(params, updates, strict=True):
                p.mul_(1 - decay * (p * update > 0))
        elif decay:
            torch._foreach_mul_(params, 1 - decay)
        torch._foreach_add_(params, updates, alpha=-group["lr"])

    def _initialize_muon_state(self, group: dict[str, Any], p: Tensor) -> None:
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        if group["row_beta"] and "row_squares" not in state:
            shape = list(p.shape)
            shape[-2 if group["transposed"] else -1] = 1
            state["row_squares"] = shard_like(torch.zeros(shape, dtype=p.dtype, device=p.device), p)

    def _orthogonalize_updates(
        self, group: dict[str, Any], params: list[Tensor], updates: Sequence[Tensor], part: LocalPart
    ) -> None:
        """Orthogonalize updates in place, and with `row_beta` normalize their rows."""
        output_dim = -1 if group["transposed"] else -2
        # Updates are sent in the dtype of the products, to which their owners would round them anyway.
        dtype = orthogonalization_dtype(updates[0].device)
        gathered = part.gather(updates, dtype)
        matrices = gathered
        if group["turns"] > 1:
            order = _block_order(group["blocks"], group["turns"]).to(updates[0].device)
            matrices = [matrix.index_select(output_dim, order) for matrix in gathered]
        _orthogonalize_matrices(matrices, group, dtype)
        if group["row_beta"]:
            dtype = updates[0].dtype
            row_squares = [self.state[p]["row_squares"] for p in params]
            squares = part.gather(row_squares, dtype)
            for matrix, running in zip(matrices, squares, strict=True):
                _normalize_rows(matrix, running, group)
            part.scatter(squares, row_squares, dtype)
        if group["turns"] > 1:
            for whole, matrix in zip(gathered, matrices, strict=True):
                whole.index_copy_(output_dim, order, matrix)
        part.scatter(gathered, updates, dtype)


def _orthogonalize_matrices(updates: list[Tensor], group: dict[str, Any], dtype: torch.dtype) -> None:
    """Orthogonalize and scale every projection of whole updates, in place, equal shapes in one batch."""
    output_dim, input_dim = (-1, -2) if group["transposed"] else (-2, -1)
    by_shape: dict[torch.Size, list[tuple[Tensor, float]]] = defaultdict(list)
    for update in updates:
        for block in update.split(group["blocks"] or update.shape[output_dim], dim=output_dim):
            scale = math.sqrt(max(1.0, block.shape[output_dim] / block.shape[input_dim]))
            for matrix in block.unbind() if block.ndim == 3 else (block,):
                by_shape[matrix.shape].append((matrix, scale))
    for shape, matrices in by_shape.items():
        chunk_size = max(1, _CHUNK_ELEMENTS // shape.numel())
        for start in range(0, len(matrices), chunk_size):
            chunk = matrices[start : start + chunk_size]
            batch = torch.empty(len(chunk), *shape, dtype=dtype, device=chunk[0][0].device)
            torch._foreach_copy_(list(batch.unbind()), [matrix for matrix, _ in chunk])
            for (matrix, scale), result in zip(chunk, orthogonalize(batch, dtype), strict=True):
                torch.mul(result, scale, out=matrix)


def _normalize_rows(update: Tensor, running: Tensor, group: dict[str, Any]) -> None:
    """
    Divide the rows of an update, in place, by the running root of their mean square; its norm stays.

    Args:
        running: the running mean squares, updated in place: 1 in the dimension of the inputs.
    """
    output_dim, input_dim = (-1, -2) if group["transposed"] else (-2, -1)
    running.lerp_(update.square().mean(dim=input_dim, keepdim=True), 1 - group["row_beta"])
    scale = running.clamp_min(1e-20).rsqrt()
    blocks = group["blocks"] or update.shape[output_dim]
    pairs = zip(update.split(blocks, dim=output_dim), scale.split(blocks, dim=output_dim), strict=True)
    for block, factor in pairs:
        norm = torch.linalg.vector_norm(block, dim=(-2, -1), keepdim=True)
        block.mul_(factor)
        block.mul_(norm / torch.linalg.vector_norm(block, dim=(-2, -1), keepdim=True).clamp_min(1e-20))


def _block_order(blocks: tuple[int, ...], turns: int) -> Tensor:
    """Return the output rows of alternating blocks in the order of the blocks: (sum(blocks),)."""
    rows = torch.arange(sum(blocks)).view(turns, -1)
    return torch.cat([part.flatten() for part in rows.split([block // turns for block in blocks], dim=1)])
