"""Optimizers, learning-rate schedules and initialisation for pretraining any transformers model.

`build_optimizer` sorts the parameters of a model into four kinds. With `name="muon"` the matrices inside the layers get
Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon/) and everything else AdamW, all inside one
`torch.optim.Optimizer`, so Trainer, accelerate, schedulers and checkpoints treat it like any other.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.lr_scheduler import LambdaLR
from transformers.pytorch_utils import Conv1D

from ..core.errors import InputError


# What `build_optimizer` uses where the caller says nothing; training/LOG.md has the measurements.
DEFAULTS = {
    "muon": {"lr": 0.01, "embedding_lr": 6e-3, "weight_decay": 0.0},
    "normuon": {"lr": 0.01, "embedding_lr": 6e-3, "weight_decay": 0.1},
    "adamw": {"lr": 1e-3, "embedding_lr": None, "weight_decay": 0.1},
}

# Minimax quintics (Polar Express, https://arxiv.org/abs/2505.16932): applied one after the other, x -> ax + bx^3 + cx^5
# takes singular values close to 1: two of them [0.05, 1] to within 23 %, three [0.02, 1] to within 11 %. Each but the
# first is fitted up to 3 % above the range it should see, because bf16 rounding does push values above it, where the
# polynomials explode.
POLAR_COEFFICIENTS = {
    2: ((6.75238, -18.35097, 13.26326), (2.49785, -1.7584, 0.39191)),
    3: ((7.71097, -22.11375, 16.24874), (3.14914, -2.23609, 0.43887), (2.20185, -1.51856, 0.36986)),
}

# Orthogonalised together at most this many elements: bounds the scratch memory (64 MB in bf16) for large models.
_CHUNK_ELEMENTS = 2**25


def orthogonalization_dtype(device: torch.device) -> torch.dtype:
    """bf16 where the hardware multiplies bf16 matrices faster than fp32 ones, else fp32."""
    if device.type != "cpu":
        return torch.bfloat16
    fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast else torch.float32


def orthogonalize(matrices: Tensor, steps: int = 2, dtype: torch.dtype | None = None) -> Tensor:
    """The nearest semi-orthogonal matrices, U Vᵀ for each U S Vᵀ, their singular values only roughly 1.

    How roughly: see `POLAR_COEFFICIENTS`. Values too small for that are raised by one common factor, zero stays zero.

    Args:
        matrices: (batch, rows, columns).
        steps: 2, or 3 for a closer result at 1.5 times the cost.
        dtype: what the products are computed in; by default `orthogonalization_dtype`.

    Returns:
        (batch, rows, columns) in `dtype`.
    """
    x = matrices.to(dtype or orthogonalization_dtype(matrices.device))
    tall = x.shape[-2] > x.shape[-1]  # then Xᵀ X is the small product, and polynomials in it stand to the right of X
    oblong = max(x.shape[-2:]) > 1.5 * min(x.shape[-2:])

    # The iteration wants singular values up to 1. |X| brings numbers of any size into range; a power of two is exact in
    # bf16. The fourth root of |(XXᵀ)²| then bounds the largest singular value much closer, which saves a step.
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True, dtype=torch.float32).clamp_min(1e-30)
    x = x * torch.exp2(-norm.log2().ceil()).to(x.dtype)
    pending = None
    for step, (a, b, c) in enumerate(POLAR_COEFFICIENTS[steps]):
        if pending is None:
            gram = x.mT @ x if tall else x @ x.mT
        square = gram @ gram
        if step == 0:
            bound = torch.linalg.vector_norm(square, dim=(-2, -1), keepdim=True, dtype=torch.float32).clamp_min(1e-12)
            a, b, c = ((k * (0.99 * bound**-0.25) ** power).to(x.dtype) for k, power in ((a, 1), (b, 3), (c, 5)))
        polynomial = (b * gram).add_(c * square)
        polynomial.diagonal(dim1=-2, dim2=-1).add_(a.squeeze(-1) if step == 0 else a)
        if oblong and pending is None and step + 1 < steps:
            # XXᵀ is small, so two polynomials are multiplied there and then with X. Not more than two: the small
            # eigenvalues of XXᵀ drown in bf16 rounding, turn negative and grow with every polynomial.
            gram, pending = polynomial @ gram @ polynomial, polynomial
        else:
            factor = polynomial if pending is None else polynomial @ pending
            x, pending = x @ factor if tall else factor @ x, None
    return x


def momentum_warmup(step: int, steps: int, start: float, end: float) -> float:
    """Muon's momentum after `step` of `steps`: linear from `start` to `end`, `end` from then on."""
    return end if step >= steps else start + (end - start) * step / steps


class Muon(torch.optim.Optimizer):
    """Muon for parameter groups with `algorithm="muon"`, AdamW (torch's own kernel) for those with `"adamw"`.

    A Muon group holds weights of one layout, matrices or (experts, out, in): `transposed` says that they are stored
    (in, out), as GPT-2's Conv1D does, `blocks` gives the output rows of projections fused into one matrix, which are
    orthogonalised one by one, and `turns` how often these take turns, the rows of each being spread over all turns.
    An update is scaled by sqrt(max(1, out / in)). Momentum is Nesterov's, warmed up from `momentum_start` over
    `momentum_warmup_steps`. The state is a fp32 momentum per weight; a run resumed from `state_dict` is bit-identical.

    With `row_beta` the rows of an update (what each output gets) are divided by the running root of their mean square,
    and the update has its norm again then (NorMuon, https://arxiv.org/abs/2510.05491). With `cautious` decay is for
    weights alone that the update makes smaller too (https://arxiv.org/abs/2510.12402).

    Sharded parameters (FSDP2's DTensor) are gathered and orthogonalised by every process.

    Args:
        groups: dictionaries with `params` and `algorithm`, and whatever differs from the defaults that follow.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float = DEFAULTS["muon"]["lr"],
        weight_decay: float = 0.0,
        momentum: float = 0.85,
        momentum_start: float = 0.85,
        momentum_warmup_steps: int = 0,
        polar_steps: int = 2,
        row_beta: float = 0.0,
        cautious: bool = False,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ):
        defaults = {
            "algorithm": "adamw",
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "momentum_start": momentum_start,
            "momentum_warmup_steps": momentum_warmup_steps,
            "polar_steps": polar_steps,
            "row_beta": row_beta,
            "cautious": cautious,
            "step": 0,
            "transposed": False,
            "blocks": None,
            "turns": 1,
            "betas": betas,
            "eps": eps,
            "fused": True,  # load_state_dict looks here to keep AdamW's step count beside the parameter
        }
        super().__init__(groups, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also for the state of an older version, which lacks what was added since."""
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                (self._muon if group["algorithm"] == "muon" else self._adamw)(group, params)
        return loss

    def _adamw(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                self.state[p]["exp_avg"] = torch.zeros_like(p)
                self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
        states = [self.state[p] for p in params]
        adamw(
            params,
            [p.grad for p in params],
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

    def _muon(self, group: dict[str, Any], params: list[Tensor]) -> None:
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        momentum = momentum_warmup(
            group["step"], group["momentum_warmup_steps"], group["momentum_start"], group["momentum"]
        )
        group["step"] += 1
        gradients = [p.grad for p in params]
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        updates = [whole(u) for u in torch._foreach_lerp(gradients, buffers, momentum)]
        dtype = orthogonalization_dtype(updates[0].device)
        outputs, inputs = (-1, -2) if group["transposed"] else (-2, -1)
        if group["turns"] > 1:
            order = _rows_block_by_block(group["blocks"], group["turns"]).to(updates[0].device)
            updates = [update.index_select(outputs, order) for update in updates]

        same_shape: dict[torch.Size, list[tuple[Tensor, float]]] = defaultdict(list)
        for update in updates:
            for block in update.split(group["blocks"] or update.shape[outputs], dim=outputs):
                scale = math.sqrt(max(1.0, block.shape[outputs] / block.shape[inputs]))
                for matrix in block.unbind() if block.ndim == 3 else (block,):
                    same_shape[matrix.shape].append((matrix, scale))
        for shape, matrices in same_shape.items():
            together = max(1, _CHUNK_ELEMENTS // shape.numel())
            for start in range(0, len(matrices), together):
                chunk = matrices[start : start + together]
                batch = torch.empty(len(chunk), *shape, dtype=dtype, device=updates[0].device)
                torch._foreach_copy_(list(batch.unbind()), [matrix for matrix, _ in chunk])
                for (matrix, scale), result in zip(
                    chunk, orthogonalize(batch, group["polar_steps"], dtype), strict=True
                ):
                    torch.mul(result, scale, out=matrix)

        if group["row_beta"]:
            for p, update in zip(params, updates, strict=True):
                self._even_rows(group, p, update)
        if group["turns"] > 1:
            updates = [update.index_select(outputs, order.argsort()) for update in updates]
        updates = [sharded_like(u, p) for u, p in zip(updates, params, strict=True)]
        decay = group["lr"] * group["weight_decay"]
        if decay and group["cautious"]:
            for p, update in zip(params, updates, strict=True):
                p.mul_(1 - decay * (p * update > 0))
        elif decay:
            torch._foreach_mul_(params, 1 - decay)
        torch._foreach_add_(params, updates, alpha=-group["lr"])

    def _even_rows(self, group: dict[str, Any], p: Tensor, update: Tensor) -> None:
        """Divides the rows of an update, in place, by the running root of their mean square; its norm stays."""
        outputs, inputs = (-1, -2) if group["transposed"] else (-2, -1)
        squares = update.square().mean(dim=inputs, keepdim=True)
        before = self.state[p].get("row_squares")
        running = torch.zeros_like(squares) if before is None else whole(before)
        running = running.lerp(squares, 1 - group["row_beta"])
        self.state[p]["row_squares"] = sharded_like(running, p)
        scale = running.clamp_min(1e-20).rsqrt()
        blocks = group["blocks"] or update.shape[outputs]
        for block, factor in zip(update.split(blocks, dim=outputs), scale.split(blocks, dim=outputs), strict=True):
            norm = torch.linalg.vector_norm(block, dim=(-2, -1), keepdim=True)
            block.mul_(factor)
            block.mul_(norm / torch.linalg.vector_norm(block, dim=(-2, -1), keepdim=True).clamp_min(1e-20))


def _rows_block_by_block(blocks: tuple[int, ...], turns: int) -> Tensor:
    """Numbers of the output rows in the order of their blocks, which take `turns` turns: (sum(blocks),)."""
    rows = torch.arange(sum(blocks)).view(turns, -1)
    return torch.cat([part.flatten() for part in rows.split([block // turns for block in blocks], dim=1)])


def whole(tensor: Tensor) -> Tensor:
    """The full matrix of a sharded tensor (FSDP2's DTensor), gathered from all processes; a plain one as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def sharded_like(tensor: Tensor, like: Tensor) -> Tensor:
    """The opposite of `whole`: every process keeps its own shard of the full matrix it holds."""
    if not hasattr(like, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def _fused_blocks(name: str, rows: int, columns: int, config: Any) -> tuple[int, ...] | None:
    """Output rows of the projections that families store fused in one weight; None if it is a single one."""
    module = name.removesuffix(".weight").rpartition(".")[2]
    if module in ("Wi", "gate_up_proj"):  # ModernBERT, Phi-3, experts: the two halves of a gated feed-forward layer
        return (rows // 2,) * 2
    heads = getattr(config, "num_attention_heads", None)
    if module == "query_key_value":  # GPT-NeoX, Bloom
        return (columns,) * 3 if rows == 3 * columns and heads else None
    if module not in ("Wqkv", "qkv_proj", "c_attn"):
        return None
    key_value_heads = getattr(config, "num_key_value_heads", None) or heads
    if heads and key_value_heads != heads:  # grouped queries: k and v have fewer rows than q
        head_dim, rest = divmod(rows, heads + 2 * key_value_heads)
        # Some families keep as many keys as queries whatever the configuration says (MiniMax's lightning attention).
        if not rest and head_dim == (getattr(config, "head_dim", None) or columns // heads):
            return (heads * head_dim, key_value_heads * head_dim, key_value_heads * head_dim)
    if rows % columns == 0:
        return (columns,) * (rows // columns)
    return (rows // 3,) * 3 if rows % 3 == 0 else None


def _turns(name: str, module: nn.Module, rows: int, config: Any) -> int:
    """How often the blocks of a fused weight take turns in its output rows."""
    if name.endswith("query_key_value.weight"):
        return config.num_attention_heads
    return 1 if getattr(module, "is_concatenated", True) else rows // 2  # GPT-OSS: gate, up, gate, up, …


def _is_experts(module: nn.Module) -> bool:
    """Whether a module holds the weights of all experts of a layer, (experts, out, in) or (experts, in, out)."""
    return "Experts" in type(module).__name__


def _is_transposed(module: nn.Module) -> bool:
    """Whether a module's weights are stored (in, out). Experts': if what is read first is what is written last."""
    if isinstance(getattr(module, "gate_up_proj", None), nn.Parameter):
        return module.gate_up_proj.shape[-2] == module.down_proj.shape[-1]
    return isinstance(module, Conv1D)


def _is_layer_matrix(name: str, module: nn.Module, parameter: Tensor) -> bool:
    """Weights that map hidden states to hidden states: inside the numbered layers those of Linear and Conv1D modules,
    of experts and of routers, and outside square ones (poolers, the transform of a prediction head) and those that say
    so.
    """
    # Routers too: Moonlight (https://arxiv.org/abs/2502.16982) gains most from Muon there (section 3.4), and GLM-4.5
    # (https://arxiv.org/abs/2508.06471) has it for all but word embeddings, biases and norms.
    inside = re.search(r"\.\d+\.", f".{name}") is not None
    if _is_experts(module):
        return inside and parameter.ndim == 3
    if parameter.ndim != 2:
        return False
    if not isinstance(module, (nn.Linear, Conv1D)):
        return inside and name.endswith((".gate.weight", ".router.weight"))
    return inside or parameter.shape[0] == parameter.shape[1] or getattr(module, "is_layer_matrix", False)


def parameter_kinds(model: nn.Module) -> dict[str, str]:
    """The kind of every trainable parameter by name, a tied one under its first name only.

    Kinds: "matrices" (inside the layers, also those of all experts in one weight), "embeddings" (tied output layers
    included), "head" (untied output layers, classifiers and any other weight of two or more dimensions), "scalars"
    (norms, biases).
    """
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    embedded = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    kinds = {}
    for name, parameter in model.named_parameters():
        module = model.get_submodule(name.rpartition(".")[0])
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2 or (_is_experts(module) and name.endswith("bias")):
            kinds[name] = "scalars"
        elif id(parameter) in embedded:
            kinds[name] = "embeddings"
        elif module is not output and _is_layer_matrix(name, module, parameter):
            kinds[name] = "matrices"
        else:
            kinds[name] = "head"
    return kinds


def build_optimizer(
    model: nn.Module,
    name: str = "muon",
    *,
    lr: float | None = None,
    embedding_lr: float | None = None,
    head_lr: float | None = None,
    scalar_lr: float | None = None,
    weight_decay: float | None = None,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    **muon: Any,
) -> torch.optim.Optimizer:
    """The optimizer of a pretraining run, with one named parameter group per kind (see `parameter_kinds`).

    Args:
        name: "muon" (matrices by `Muon`, the rest by AdamW), "normuon" (the same with even rows and cautious decay, for
            longer runs), or "adamw" (`torch.optim.AdamW` for everything).
        lr: of the matrices. `embedding_lr`, `head_lr`, `scalar_lr`: of the other kinds; those left out take the
            embeddings' with Muon, whose own rates are on another scale, and `lr` with AdamW.
        weight_decay: of the matrices; with "adamw" also of embeddings and head. Norms and biases never decay.
        betas, eps: AdamW's.
        muon: `momentum`, `momentum_start`, `momentum_warmup_steps`, `polar_steps`, `row_beta`, `cautious` of `Muon`.

    Raises:
        InputError: an unknown name, a rate that is not positive, or a Muon setting given to AdamW.
    """
    if name not in DEFAULTS:
        raise InputError(f"optimizer {name!r} is unknown: choose one of {', '.join(DEFAULTS)}")
    if name == "adamw" and muon:
        raise InputError(f"{', '.join(muon)} belongs to the optimizer muon: leave it out or choose muon, not adamw")
    if name == "normuon":
        muon = {"row_beta": 0.95, "cautious": True, **muon}
    default = DEFAULTS[name]
    lr = default["lr"] if lr is None else lr
    embedding_lr = (default["embedding_lr"] or lr) if embedding_lr is None else embedding_lr
    other = lr if name == "adamw" else embedding_lr
    rates = {
        "matrices": lr,
        "embeddings": embedding_lr,
        "head": other if head_lr is None else head_lr,
        "scalars": other if scalar_lr is None else scalar_lr,
    }
    for kind, rate in rates.items():
        if rate <= 0:
            raise InputError(f"the learning rate of the {kind} is {rate}: it must be above 0")
    weight_decay = default["weight_decay"] if weight_decay is None else weight_decay
    decaying = {"matrices", "embeddings", "head"} if name == "adamw" else {"matrices"}

    kinds = parameter_kinds(model)
    parameters = dict(model.named_parameters())
    groups: dict[tuple, dict[str, Any]] = {}
    for kind in rates:  # matrices first: Trainer logs the rate of the first group
        for parameter_name, parameter in parameters.items():
            if kinds.get(parameter_name) != kind:
                continue
            layout = _layout(model, parameter_name, parameter) if kind == "matrices" and name != "adamw" else {}
            label = " ".join([kind, *(["transposed"] if layout.get("transposed") else [])])
            label += f" {'+'.join(map(str, layout['blocks']))}" if layout.get("blocks") else ""
            label += f" in {layout['turns']} turns" if layout.get("turns", 1) > 1 else ""
            group = groups.setdefault(
                label,
                {
                    "name": label,
                    "params": [],
                    "lr": rates[kind],
                    "weight_decay": weight_decay if kind in decaying else 0.0,
                    **layout,
                },
            )
            group["params"].append(parameter)
    if name == "adamw":
        return torch.optim.AdamW(list(groups.values()), betas=betas, eps=eps, fused=True)
    return Muon(list(groups.values()), betas=betas, eps=eps, **muon)


def _layout(model: nn.Module, name: str, weight: Tensor) -> dict[str, Any]:
    """How `Muon` has to read a weight: see its docstring."""
    module, config = model.get_submodule(name.rpartition(".")[0]), getattr(model, "config", None)
    transposed = _is_transposed(module)
    rows, columns = weight.shape[-2:][::-1] if transposed else weight.shape[-2:]
    blocks = _fused_blocks(name, rows, columns, config)
    turns = _turns(name, module, rows, config) if blocks else 1
    return {"algorithm": "muon", "transposed": transposed, "blocks": blocks, "turns": turns}


def describe_optimizer(optimizer: torch.optim.Optimizer) -> str:
    """One line a parameter group, for a person to read: algorithm, tensors, parameters, rate and decay."""
    lines = []
    for group in optimizer.param_groups:
        count = sum(p.numel() for p in group["params"])
        algorithm = {"muon": "Muon", "adamw": "AdamW"}[group.get("algorithm", "adamw")]
        lines.append(
            f"{algorithm:5}  {len(group['params']):4} tensors {count:>12,} parameters  lr {group['lr']:g}  "
            f"decay {group['weight_decay']:g}  {group['name']}"
        )
    return "\n".join(lines)


def schedule(
    name: str,
    total_steps: int,
    *,
    warmup: float = 0.05,
    decay: float = 0.5,
    final: float = 0.02,
    shape: str = "linear",
) -> Callable[[int], float]:
    """The factor on every learning rate as a pure function of the step.

    Args:
        name: "wsd" (warm-up, stable, decay; https://arxiv.org/abs/2405.18392), "cosine" or "constant".
        total_steps: length of the run in optimizer steps.
        warmup, decay: below 1 a share of the run, from 1 on a number of steps. Only "wsd" has a `decay`.
        final: factor at the end of "wsd" and "cosine".
        shape: of the decay of "wsd": "linear", or "sqrt" (1 - sqrt of the share gone by, faster at first).

    Raises:
        InputError: an unknown name or shape, or phases that do not fit into the run.
    """
    if name not in ("wsd", "cosine", "constant"):
        raise InputError(f"schedule {name!r} is unknown: choose wsd, cosine or constant")
    if shape not in ("linear", "sqrt"):
        raise InputError(f"decay shape {shape!r} is unknown: choose linear or sqrt")
    if total_steps < 1:
        raise InputError(f"a schedule over {total_steps} steps is empty: give it at least one")
    warmup_steps, decay_steps = (round(x * total_steps) if x < 1 else round(x) for x in (warmup, decay))
    used = warmup_steps + (decay_steps if name == "wsd" else 0)
    if min(warmup_steps, decay_steps) < 0 or used > total_steps:
        raise InputError(
            f"warm-up ({warmup:g}) and decay ({decay:g}) do not fit into {total_steps} steps: shorten them"
        )

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps  # the first step already moves
        if name == "constant":
            return 1.0
        if name == "cosine":
            gone = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
            return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * gone))
        gone = min(1.0, max(0.0, (step - (total_steps - decay_steps)) / max(1, decay_steps)))
        return final + (1 - final) * (1 - (gone if shape == "linear" else math.sqrt(gone)))

    return factor


def build_scheduler(optimizer: torch.optim.Optimizer, name: str, total_steps: int, **settings: Any) -> LambdaLR:
    """`schedule` applied to every parameter group, each from its own rate. Arguments and errors: see `schedule`."""
    return LambdaLR(optimizer, schedule(name, total_steps, **settings))


# Weights that write into the residual stream, by the name families give them: Llama, most since and their experts;
# GPT-2; ModernBERT; GPT-NeoX, Bloom; OPT; GPT-J; DistilBERT, XLM; ALBERT; Granite. BERT calls several modules `dense`,
# so its two are told apart by their parent, like those of Bloom and Phi.
_OUTPUT_PROJECTION = re.compile(
    r"\.(o_proj|down_proj|c_proj|Wo|out_proj|fc2|fc_out|dense_4h_to_h|out_lin|lin2|ffn_output|output_linear)$"
    r"|\.(output|attention|self_attention|self_attn)\.dense$"
)


@torch.no_grad()
def zero_init_output_projections(model: nn.Module, std: float = 0.6, embedding_std: float = 0.02) -> list[str]:
    """Initialises a model for the recipe: every layer starts as the identity.

    Projections that write into the residual stream become zero, other matrices inside the layers normal with standard
    deviation `std` / sqrt(inputs), embeddings and untied output layers normal with `embedding_std`. Gates of heads
    become zero, which is half open. Biases, norms, and what an architecture sets by rules of its own (the states of
    Mamba) stay as they are.

    Returns:
        The names of what is zero now: modules, and weights of experts.
    """
    zeroed = []
    for name, kind in parameter_kinds(model).items():
        weight, module = model.get_parameter(name), model.get_submodule(name.rpartition(".")[0])
        if kind == "scalars" or (kind == "head" and not isinstance(module, (nn.Linear, Conv1D))):
            continue
        projection = name.removesuffix(".weight")
        if getattr(module, "starts_at_zero", False):
            weight.zero_()
        elif kind != "matrices":
            weight.normal_(0.0, embedding_std)
        elif _OUTPUT_PROJECTION.search(f".{projection}") and re.search(r"\.\d+\.", f".{projection}"):
            weight.zero_()
            zeroed.append(projection)
        else:
            inputs = weight.shape[-2 if _is_transposed(module) else -1]
            weight.normal_(0.0, std / math.sqrt(inputs))
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight[module.padding_idx].zero_()
    return zeroed


_PAST_WARMUP = 2**53  # updates


class EMA:
    """Exponential moving average of a model's trainable weights.

    The decay is warmed up, min(`decay`, (1 + t) / (10 + t)) after t updates, so that the random weights at the start
    are soon forgotten.

    >>> ema = EMA(model, decay=0.98)
    >>> ...; optimizer.step(); ema.update()
    >>> with ema.swapped():  # the model carries the averages: evaluate or save it
    ...     model.save_pretrained("averaged")
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise InputError(f"the decay of the weight average is {decay}: it must be at least 0 and below 1")
        self.decay = decay
        self.updates = 0
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.averages = {n: p.detach().clone() for n, p in self.parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Moves the averages towards the weights; once after every optimizer step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(list(self.averages.values()), list(self.parameters.values()), 1 - decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The model carries the averages inside, and its own weights again afterwards."""
        own = {n: p.detach().clone() for n, p in self.parameters.items()}
        self._load(self.averages)
        try:
            yield
        finally:
            self._load(own)

    def leave_in_model(self) -> None:
        """The model carries the averages from now on."""
        self._load(self.averages)

    @torch.no_grad()
    def _load(self, weights: dict[str, Tensor]) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])

    def state_dict(self) -> dict[str, Any]:
        """The number of `updates`, and the `averages` by parameter name."""
        return {"updates": self.updates, "averages": dict(self.averages)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` gave; the averages alone, which it once gave, as past the warm-up."""
        averages = state.get("averages", state)
        self.updates = state.get("updates", _PAST_WARMUP)
        for name, average in self.averages.items():
            average.copy_(averages[name])


def z_loss(
    logits: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None, ignore_index: int = -100
) -> Tensor:
    """Mean squared log of the softmax's normaliser over predicted positions (https://arxiv.org/abs/2204.02311).

    Added to the loss with a small weight (1e-4) it keeps logits from drifting. It does not shift labels: for a causal
    model give it `logits[:, :-1]` and `labels[:, 1:]`.

    Args:
        logits: (..., vocabulary); labels: (...).
        num_items_in_batch: what the sum is divided by, the number of predicted positions by default.
    """
    normalisers = torch.logsumexp(logits[labels != ignore_index].float(), dim=-1)
    return normalisers.square().sum() / (len(normalisers) if num_items_in_batch is None else num_items_in_batch)
