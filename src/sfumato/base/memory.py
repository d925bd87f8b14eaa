"""Memory: its peak, the C allocator's settings for training on a CPU, imports without garbage
collection."""

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# The parameter numbers of glibc's <malloc.h>.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_MMAP_THRESHOLD_BYTES = 32 * 2**20
_TRIM_THRESHOLD_BYTES = 2**31 - 1


def keep_freed_memory() -> bool:
    """Ask glibc to keep freed memory for the next step instead of handing it back to the kernel.

    torch allocates and frees every activation at every step. By default glibc returns large blocks
    to the kernel, which must clear their pages again when they are next asked for, at every step
    (docs/results/performance.md has the speed). Kept memory is at most 2 GiB; blocks over 32 MiB
    are still returned at once. Concerns the whole process, so programs call it, not the
    library. Returns whether anything was set: False where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # musl has no such function
        return False
    kept = mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES)
    mapped = mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD_BYTES)
    return bool(kept and mapped)


def peak_bytes(device: "torch.device") -> int:
    """The most memory so far: of the allocator on a GPU, else of this process. 0 where the system
    does not tell."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_reserved(device)
    try:  # not `ru_maxrss`: Linux keeps it over `exec`, with the peak of the parent
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


@contextmanager
def collection_paused(*, freeze: bool = False) -> Iterator[None]:
    """Leave cyclic garbage where it is while the block runs, as fits an import.

    torch, transformers and diffusers make some million objects that stay. Looking through them for
    garbage again and again is a seventh of the time of importing them, and looking once more when
    the process ends costs as much as a picture: with `freeze` what is there at the end of the block
    is never looked through again. That is for programs; a library does not know what is there.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if freeze:
            gc.freeze()
        if was_on:
            gc.enable()
