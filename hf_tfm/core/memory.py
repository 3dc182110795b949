"""Memory of a process: keep freed memory for the next tensors on a CPU; create many objects quickly."""

import ctypes
import gc
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager


# Settings of glibc by number (malloc.h), an advice to the kernel (mman.h), and the size of the kernel's large pages.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, MADV_HUGEPAGE, LARGE_PAGE = -1, -3, 14, 2**21

# Bytes of address space (not of memory) to back with large pages, fewer than glibc would map as a separate block.
RESERVED = 2**30 - LARGE_PAGE


def keep_freed_memory() -> bool:
    """
    Keep the memory of freed tensors for later ones, in large pages if the kernel has them.

    By default glibc returns large blocks to the kernel as soon as they are free, and the kernel zeroes them again, page
    by page, when the next step allocates the same size: a quarter of the time of a small model's training step
    (`training/LOG.md`). With this setting the process holds its memory until it ends. Settings in the environment
    (`MALLOC_…`, `GLIBC_TUNABLES`) take precedence.

    Returns:
        Whether the setting was changed: only glibc has it.
    """
    is_configured = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if is_configured or platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    if not (libc.mallopt(M_MMAP_THRESHOLD, 2**30) and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)):
        return False
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    # After it is freed, this untouched block stays at the top of the heap, where later blocks are cut from.
    start = libc.malloc(RESERVED)
    if start:
        aligned = -(-start // LARGE_PAGE) * LARGE_PAGE
        libc.madvise(aligned, (start + RESERVED - aligned) // LARGE_PAGE * LARGE_PAGE, MADV_HUGEPAGE)
        libc.free(start)
    return True


@contextmanager
def pause_garbage_collector() -> Iterator[None]:
    """
    Pause Python's collector of reference cycles while a function creates many objects that it keeps.

    The collector visits all live objects again and again while their number grows: a third of the time in which 100,000
    conversations are read and checked. Objects without cycles are freed as ever.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
