"""Memory that is used again: most of a batch is frames, and the kernel clears every page of new memory first."""

import ctypes
import math
import weakref

import numpy as np
from jaxtyping import UInt8


class Room:
    """Lends memory for arrays of one size, and takes it back when nobody refers to an array or a part of it any more.

    Nobody has to say so: it is known from the references. Who copies an array in the background, as jax does to a
    device, holds one until the copy is there. There is as much memory as was ever lent at a time.
    """

    def __init__(self):
        self._free: list[UInt8[np.ndarray, " size"]] = []

    def __reduce__(self) -> tuple[type["Room"], tuple[()]]:
        return Room, ()  # another process has memory of its own

    def array(self, shape: tuple[int, ...]) -> UInt8[np.ndarray, "..."]:
        """Return an array with anything in it."""
        size = math.prod(shape)
        if not size:
            return np.empty(shape, np.uint8)
        # Several threads ask; `pop` and `append` are one step each.
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(size, np.uint8)
        # Views of an array refer to what owns its memory, past all views in between; so the owner has to be new.
        owner = (ctypes.c_uint8 * size).from_buffer(memory.data)
        weakref.finalize(owner, self._free.append, memory).atexit = False
        return np.ctypeslib.as_array(owner).reshape(shape)
