"""Sort the parameters of any transformers model into kinds, and recognise how families store their matrices."""

import re
from typing import Any, Literal, NamedTuple, cast

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


Kind = Literal["matrices", "embeddings", "head", "scalars"]


class MatrixLayout(NamedTuple):
    """
    How a weight of the layers holds its projections.

    Attributes:
        transposed: stored (in, out), as GPT-2's Conv1D does.
        blocks: output rows of each projection, where several are fused into one weight; else None.
        turns: how often the blocks alternate in the output rows, an equal part of each block in every turn.
    """

    transposed: bool
    blocks: tuple[int, ...] | None
    turns: int


def parameter_kinds(model: nn.Module) -> dict[str, Kind]:
    """
    Return the kind of every trainable parameter by name; tied parameters under their first name only.

    Kinds: "matrices" (inside the layers, all experts of one weight included), "embeddings" (tied output layers
    included), "head" (untied output layers, classifiers and any other weight of two or more dimensions), "scalars"
    (norms, biases).
    """
    output = getattr(model, "get_output_embeddings", lambda: None)()
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    kinds: dict[str, Kind] = {}
    for name, parameter in model.named_parameters():
        module = model.get_submodule(name.rpartition(".")[0])
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2 or (_is_experts(module) and name.endswith("bias")):
            kinds[name] = "scalars"
        elif id(parameter) in embeddings:
            kinds[name] = "embeddings"
        elif module is not output and _is_layer_matrix(name, module, parameter):
            kinds[name] = "matrices"
        else:
            kinds[name] = "head"
    return kinds


def matrix_layout(model: nn.Module, name: str, weight: Tensor) -> MatrixLayout:
    """Return the layout of a weight of kind "matrices"."""
    module, config = model.get_submodule(name.rpartition(".")[0]), getattr(model, "config", None)
    transposed = is_transposed(module)
    rows, columns = weight.shape[-2:][::-1] if transposed else weight.shape[-2:]
    blocks = fused_blocks(name, rows, columns, config)
    return MatrixLayout(transposed, blocks, _count_turns(name, module, rows, config) if blocks else 1)


def is_transposed(module: nn.Module) -> bool:
    """Return whether a module stores its weights (in, out)."""
    if isinstance(gate_up := getattr(module, "gate_up_proj", None), nn.Parameter):  # experts
        down = cast(Tensor, module.down_proj)
        return gate_up.shape[-2] == down.shape[-1]  # the input size of the first is the output size of the last
    return isinstance(module, Conv1D)


def fused_blocks(name: str, rows: int, columns: int, config: Any) -> tuple[int, ...] | None:
    """Return the output rows of the projections that a family fuses into one weight; None for a single projection."""
    module = name.removesuffix(".weight").rpartition(".")[2]
    if module in ("Wi", "gate_up_proj"):  # ModernBERT, Phi-3, experts: the two halves of a gated feed-forward layer
        return (rows // 2,) * 2
    heads: int = getattr(config, "num_attention_heads", None) or 0
    if module == "query_key_value":  # GPT-NeoX, Bloom
        return (columns,) * 3 if rows == 3 * columns and heads else None
    if module not in ("Wqkv", "qkv_proj", "c_attn"):
        return None
    key_value_heads: int = getattr(config, "num_key_value_heads", None) or heads
    if heads and key_value_heads != heads:  # grouped queries: k and v have fewer rows than q
        head_dim, remainder = divmod(rows, heads + 2 * key_value_heads)
        # Some families keep as many keys as queries whatever the configuration says (MiniMax's lightning attention).
        if not remainder and head_dim == (getattr(config, "head_dim", None) or columns // heads):
            return (heads * head_dim, key_value_heads * head_dim, key_value_heads * head_dim)
    if rows % columns == 0:
        return (columns,) * (rows // columns)
    return (rows // 3,) * 3 if rows % 3 == 0 else None


def _count_turns(name: str, module: nn.Module, rows: int, config: Any) -> int:
    if name.endswith("query_key_value.weight"):
        return config.num_attention_heads
    return 1 if getattr(module, "is_concatenated", True) else rows // 2  # GPT-OSS: gate, up, gate, up, …


def _is_experts(module: nn.Module) -> bool:
    """Return whether a module holds all experts of a layer: (experts, out, in) or (experts, in, out)."""
    return "Experts" in type(module).__name__


def _is_layer_matrix(name: str, module: nn.Module, parameter: Tensor) -> bool:
    """
    Return whether a weight maps hidden states to hidden states.

    Inside the numbered layers these are the weights of Linear and Conv1D modules, of experts and of routers; outside of
    them square ones (poolers, the transform of a prediction head) and the matrix of `value_residual`.
    """
    # Routers too: Moonlight (https://arxiv.org/abs/2502.16982) gains most from Muon there (section 3.4), and GLM-4.5
    # (https://arxiv.org/abs/2508.06471) uses it for everything but word embeddings, biases and norms.
    is_inside = re.search(r"\.\d+\.", f".{name}") is not None
    if _is_experts(module):
        return is_inside and parameter.ndim == 3
    if parameter.ndim != 2:
        return False
    if not isinstance(module, (nn.Linear, Conv1D)):
        return is_inside and name.endswith((".gate.weight", ".router.weight"))
    is_square = parameter.shape[0] == parameter.shape[1]
    return is_inside or is_square or name.endswith("embed_values.weight")
