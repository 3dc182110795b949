"""
Compiling the blocks of a model for training on a CPU.

Private names of torch used here: `torch.nn.Module._compiled_call_impl`, which nothing public resets
(`test_uncompiling_restores_the_model` fails if it changes); `torch._dynamo.config.recompile_limit`
(`test_compiled_gradients_equal_eager_ones`); `torch._inductor.cpp_builder` and `torch._inductor.exc`
(`test_a_missing_compiler_is_detected`).
"""

import torch
from torch import nn
from transformers import PreTrainedModel

from .attention import disable_unpadded_training, enable_unpadded_training


# Seconds that compiling a model's block takes on two cores, and the share of a step that it saves: training/LOG.md.
COMPILE_SECONDS = 25.0
SAVED_SHARE = 0.08


def repeated_blocks(model: PreTrainedModel) -> list[nn.Module]:
    """Return the blocks of a model: the modules that transformers never splits between devices."""
    names = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def compile_blocks(model: PreTrainedModel) -> int:
    """
    Compile the blocks in place; all of them share the code of the first.

    Compiling takes a third less time than for the whole model, at nearly the same speed. If attention is blockwise, the
    blocks of this package are compiled without it, once for all row lengths with the same number of tokens in a batch
    ([`enable_unpadded_training`]). Parameters keep their names.

    Returns:
        The number of blocks.
    """
    blocks = repeated_blocks(model)
    enable_unpadded_training(model)
    # The shared code has a variant for each kind of layer, mask and mode; torch stops compiling after 8 by default.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    for block in blocks:
        block.compile(dynamic=False)
    return len(blocks)


def uncompile_blocks(model: nn.Module) -> None:
    """Undo `compile_blocks`: generated text grows, and each new length would be compiled anew."""
    disable_unpadded_training(model)
    for module in model.modules():
        module._compiled_call_impl = None


def is_worth_compiling(seconds: float, shapes: int = 1) -> bool:
    """
    Return whether compiling saves more time than it takes.

    Args:
        seconds: expected duration of the training steps without compiling.
        shapes: number of batch shapes in the run; each is compiled separately.
    """
    return seconds * SAVED_SHARE > 1.5 * COMPILE_SECONDS * shapes


def has_compiler() -> bool:
    """Return whether `torch.compile` can work: on a CPU it needs a C++ compiler."""
    if torch.cuda.is_available():
        return True
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError):
        return False
    return True
