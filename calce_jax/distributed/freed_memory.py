"""Keep freed memory in the process, for programs that allocate the same buffers in every step on a CPU."""

import ctypes
import sys

# Parameters of glibc's mallopt, from malloc.h, and their values: never hand memory back to the kernel, grow the heap by
# 16 MiB at a time, and take buffers of less than 1 GiB from the heap instead of mapping each one anew.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
OPTIONS = {M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 16 << 20, M_MMAP_THRESHOLD: 1 << 30}


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed; elsewhere nothing happens.

    XLA's programs on a CPU free their buffers after each call. By default glibc gives large ones back, and the kernel
    clears every page that comes again: a quarter of the time of a training step at the tiny size. The process keeps the
    most memory that it ever had, so this is for small models.

    Returns:
      Whether glibc took it.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries do not have it
    return mallopt is not None and all([mallopt(option, value) == 1 for option, value in OPTIONS.items()])
