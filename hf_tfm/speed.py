"""When and how a training run is compiled."""

import torch
from torch import nn
from transformers import PreTrainedModel


# Seconds that compiling a model's block takes on two cores, and the share of a step that it saves: training/LOG.md.
COMPILE_SECONDS = 40.0
SAVED_SHARE = 0.15


def repeated_blocks(model: PreTrainedModel) -> list[nn.Module]:
    """The layers of a model: what transformers never splits between devices."""
    names = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def compile_blocks(model: PreTrainedModel) -> int:
    """
    Compile the layers in place, all by the code of the first: a third less waiting than for the whole model, for nearly
    the same speed. Weights keep their names. Returns the number of layers.
    """
    blocks = repeated_blocks(model)
    # One code for all layers has a variant for each kind of layer, mask and mode; beyond 8 torch would stop compiling.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    for block in blocks:
        block.compile(dynamic=False)
    return len(blocks)


def pays_to_compile(seconds: float, shapes: int = 1) -> bool:
    """
    Whether compiling is repaid by a run.

    Args:
        seconds: that the steps are expected to take without it.
        shapes: of batches in the run, each of which is compiled for.
    """
    return seconds * SAVED_SHARE > 1.5 * COMPILE_SECONDS * shapes


def compiler_found() -> bool:
    """Whether there is what `torch.compile` needs on a CPU: a C++ compiler."""
    if torch.cuda.is_available():
        return True
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError):
        return False
    return True
