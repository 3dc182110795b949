"""Initialization for pretraining: every layer starts as the identity."""

import math
import re

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from .parameters import is_transposed, parameter_kinds


# Projections that write into the residual stream, by family: Llama, most families since and their experts; GPT-2;
# ModernBERT; GPT-NeoX, Bloom; OPT; GPT-J; DistilBERT, XLM; ALBERT; Granite. BERT calls several modules `dense`: its two
# are told apart by their parents, like those of Bloom and Phi.
_OUTPUT_PROJECTION = re.compile(
    r"\.(o_proj|down_proj|c_proj|Wo|out_proj|fc2|fc_out|dense_4h_to_h|out_lin|lin2|ffn_output|output_linear)$"
    r"|\.(output|attention|self_attention|self_attn)\.dense$"
)


@torch.no_grad()
def zero_init_output_projections(model: nn.Module, std: float = 0.6, embedding_std: float = 0.02) -> list[str]:
    """
    Initialize a new model so that every layer starts as the identity.

    Projections that write into the residual stream become zero. Other matrices inside the layers become normal with
    standard deviation `std` / sqrt(inputs), embeddings and untied output layers normal with `embedding_std`. Gates of
    heads become zero, which is half open. Biases, norms, and parameters with rules of their own (the states of Mamba)
    stay as they are.

    Returns:
        The names of the zeroed projections: modules, and weights of experts.
    """
    zero_projections = []
    for name, kind in parameter_kinds(model).items():
        weight, module = model.get_parameter(name), model.get_submodule(name.rpartition(".")[0])
        if kind == "scalars" or (kind == "head" and not isinstance(module, (nn.Linear, Conv1D))):
            continue
        projection = name.removesuffix(".weight")
        if projection.endswith(".head_gate"):
            weight.zero_()
        elif kind != "matrices":
            weight.normal_(0.0, embedding_std)
        elif _OUTPUT_PROJECTION.search(f".{projection}") and re.search(r"\.\d+\.", f".{projection}"):
            weight.zero_()
            zero_projections.append(projection)
        else:
            inputs = weight.shape[-2 if is_transposed(module) else -1]
            weight.normal_(0.0, std / math.sqrt(inputs))
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight[module.padding_idx].zero_()
    return zero_projections
