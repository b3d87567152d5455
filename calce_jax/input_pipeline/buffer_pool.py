"""Memory that is used again. The kernel clears every page of new memory, which took reading a fifth of its time.

Frames, most of a batch, lie in memory that is lent (`Room`). Records are copied a few times on their way out of a
table, by libraries that ask the C library for memory; that is told to keep what they give back.
"""

import ctypes
import functools
import math
import weakref

import numpy as np
from jaxtyping import UInt8

# Of glibc's malloc.h: blocks from this size on are the kernel's at once (it takes no more than 32 MiB), and freed
# memory from that size on goes back to it.
M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES = -3, 32 << 20
M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES = -1, 256 << 20


class BufferPool:
    """Lends memory for arrays of one shape, and takes it back when nobody refers to an array or a part of it any more.

    Nobody has to say so: it is known from the references. Who copies an array in the background, as jax does to a
    device, holds one until the copy is there. There is as much memory as was ever lent at a time. Whoever has a room
    reads, so making one calls `retain_freed_memory`, in a worker process too.
    """

    def __init__(self, shape: tuple[int, ...]):
        self._shape, self._free_buffers = shape, list[UInt8[np.ndarray, " size"]]()
        retain_freed_memory()

    def __reduce__(self) -> tuple[type["BufferPool"], tuple[tuple[int, ...]]]:
        return BufferPool, (self._shape,)  # another process has memory of its own

    def acquire(self) -> UInt8[np.ndarray, "..."]:
        """Return an array with anything in it."""
        size = math.prod(self._shape)
        if not size:
            return np.empty(self._shape, np.uint8)
        # Several threads ask; `pop` and `append` are one step each.
        try:
            buffer = self._free_buffers.pop()
        except IndexError:
            buffer = np.empty(size, np.uint8)
        # Views of an array refer to what owns its memory, past all views in between; so the owner has to be new.
        owner = (ctypes.c_uint8 * size).from_buffer(buffer.data)
        weakref.finalize(owner, self._free_buffers.append, buffer).atexit = False
        return np.ctypeslib.as_array(owner).reshape(self._shape)


@functools.cache
def retain_freed_memory() -> None:
    """Have this process keep up to 256 MiB that it has freed. Where the C library is not glibc, all stays as it is."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
    mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)
