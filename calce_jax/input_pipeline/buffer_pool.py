"""Reused memory for batches. The kernel clears every page of new memory, which took a fifth of the time of reading.

Frames, most of a batch, are decoded into arrays of a `BufferPool`. Libraries that read records allocate their copies
with malloc; a command may configure it to keep freed memory (`retain_freed_memory`).
"""

import ctypes
import functools
import math
import weakref

import numpy as np
from jaxtyping import UInt8

# Parameters of glibc's mallopt, see malloc.h: from the first size on, blocks are mapped from the kernel and returned to
# it when freed (32 MiB is the largest value allowed); free memory at the top of the heap is returned beyond the second.
M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES = -3, 32 << 20
M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES = -1, 256 << 20


class BufferPool:
    """A pool of uint8 arrays of one shape.

    The memory of an array returns to the pool when the last reference to the array, or to a view of it, is gone; jax
    holds one while it copies an array to a device. The pool grows to the largest number of arrays in use at a time. It
    may be pickled: the copy in another process starts empty.

    Args:
      shape: of every array.
    """

    def __init__(self, shape: tuple[int, ...]):
        self._shape, self._free_buffers = shape, list[UInt8[np.ndarray, " size"]]()

    def __reduce__(self) -> tuple[type["BufferPool"], tuple[tuple[int, ...]]]:
        return BufferPool, (self._shape,)

    def acquire(self) -> UInt8[np.ndarray, "..."]:
        """Return an array with arbitrary content; may be called by several threads."""
        size = math.prod(self._shape)
        if not size:
            return np.empty(self._shape, np.uint8)
        # `pop` and `append` are atomic.
        try:
            buffer = self._free_buffers.pop()
        except IndexError:
            buffer = np.empty(size, np.uint8)
        # A view refers to the owner of its memory, not to the views in between, so every array needs a new owner.
        owner = (ctypes.c_uint8 * size).from_buffer(buffer.data)
        weakref.finalize(owner, self._free_buffers.append, buffer).atexit = False
        return np.ctypeslib.as_array(owner).reshape(self._shape)


@functools.cache
def retain_freed_memory() -> None:
    """Configure malloc of this process to keep up to 256 MiB of freed memory; without glibc nothing happens.

    It changes the whole process, so only commands call it, and the worker processes of the input pipeline.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
    mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)
