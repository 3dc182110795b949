"""Memory that is kept for the next step; when and how a training run is compiled."""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from .attention import lay_rows_end_to_end, lay_rows_side_by_side


# Seconds that compiling a model's block takes on two cores, and the share of a step that it saves: training/LOG.md.
COMPILE_SECONDS = 25.0
SAVED_SHARE = 0.08

# glibc's numbers of its settings (malloc.h), the kernel's of an advice (mman.h), and the size of its large pages.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, MADV_HUGEPAGE, LARGE_PAGE = -1, -3, 14, 2**21


# Bytes of address space, not of memory, that are to have large pages; below the threshold for blocks of their own.
RESERVED = 2**30 - LARGE_PAGE


def keep_freed_memory() -> bool:
    """
    Let this process keep the memory of freed tensors for the next ones, in large pages where the kernel has them.

    glibc gives large blocks back as soon as they are free, and the kernel zeroes them, page by page, when the next step
    asks for the same again: a quarter of the time of a small model's step (`training/LOG.md`). What a process has taken
    it then holds until it ends. Settings in the environment (`MALLOC_…`, `GLIBC_TUNABLES`) stand.

    Returns:
        Whether something was set: only glibc has these settings.
    """
    chosen = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if chosen or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    if not (libc.mallopt(M_MMAP_THRESHOLD, 2**30) and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)):
        return False
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    # Freed, the untouched block stays at the top of the heap, where the next blocks are cut from.
    start = libc.malloc(RESERVED)
    if start:
        aligned = -(-start // LARGE_PAGE) * LARGE_PAGE
        libc.madvise(aligned, (start + RESERVED - aligned) // LARGE_PAGE * LARGE_PAGE, MADV_HUGEPAGE)
        libc.free(start)
    return True


def repeated_blocks(model: PreTrainedModel) -> list[nn.Module]:
    """The layers of a model: what transformers never splits between devices."""
    names = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def compile_blocks(model: PreTrainedModel) -> int:
    """
    Compile the layers in place, all by the code of the first: a third less waiting than for the whole model, for nearly
    the same speed. Where attention is blockwise, layers of this package are compiled without it, once for all lengths
    of rows that make up as many tokens ([`lay_rows_end_to_end`]). Weights keep their names.

    Returns:
        The number of layers.
    """
    blocks = repeated_blocks(model)
    lay_rows_end_to_end(model)
    # One code for all layers has a variant for each kind of layer, mask and mode; beyond 8 torch would stop compiling.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    for block in blocks:
        block.compile(dynamic=False)
    return len(blocks)


def uncompile_blocks(model: nn.Module) -> None:
    """Undo `compile_blocks`: text that grows has another shape with every token, and would be compiled each time."""
    lay_rows_side_by_side(model)
    for module in model.modules():
        module._compiled_call_impl = None


@contextmanager
def eager_blocks(model: nn.Module) -> Iterator[None]:
    """Inside, layers run as if they were not compiled: what is run now and then does not repay a compiler."""
    compiled = {module: module._compiled_call_impl for module in model.modules() if module._compiled_call_impl}
    for module in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in compiled.items():
            module._compiled_call_impl = call


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
