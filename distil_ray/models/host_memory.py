"""Memory of the processor: what a step frees is kept for the next one."""

import ctypes

import torch

# Of malloc.h, see mallopt(3).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_TRIM_THRESHOLD = 2**31 - 1  # bytes, the most that it takes
_TOP_PAD = 64 * 2**20  # bytes; with less, the heaps of threads, which hold as much each, are given back


def keep_freed_memory(device: torch.device) -> None:
    """Let this process keep what it frees, if it computes on the processor.

    The C library (glibc; with others, nothing is done) gives large blocks back to the system at once. A step allocates
    its activations and logits anew, so that the system has to find and clear their pages in every step, which can
    take a fifth of it. The price is that the process holds its peak throughout.

    In threads other than the main one, blocks of more than 64 MiB are kept only with MALLOC_ARENA_MAX=1 in the
    environment that the process was started with.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if device.type == "cpu" and mallopt is not None:
        for parameter, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _TRIM_THRESHOLD), (_M_TOP_PAD, _TOP_PAD)):
            mallopt(parameter, value)
