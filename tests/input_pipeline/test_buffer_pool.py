"""Memory of a pool is reused after the last reference to an array is gone, and not before."""

import ctypes
import pickle
import resource
import subprocess
import sys

import jax
import numpy as np
import pytest

from calce_jax.input_pipeline.buffer_pool import BufferPool

SHAPE = (2, 300, 7)


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_without_references_is_reused():
    pool = BufferPool(SHAPE)
    first = pool.acquire()
    assert (first.shape, first.dtype, first.flags.c_contiguous, first.flags.writeable) == (SHAPE, np.uint8, True, True)
    place = address(first)
    del first
    assert address(pool.acquire()) == place


def test_a_view_keeps_its_memory():
    pool = BufferPool(SHAPE)
    first = pool.acquire()
    place, row = address(first), first[1][::2]
    row[:] = 7
    del first
    second = pool.acquire()
    assert address(second) != place
    second[:] = 0
    assert (row == 7).all()
    del row
    assert address(pool.acquire()) == place


def test_memory_of_a_device_array_is_not_reused():
    pool = BufferPool((64, 1024))
    array = pool.acquire()
    # jax uses numpy memory on a CPU without a copy if it is aligned to 64 bytes.
    part = array.reshape(-1)[-address(array) % 64 :][:32768]
    part[:] = 5
    device_array = jax.device_put(part)
    assert device_array.unsafe_buffer_pointer() == address(part)
    del array, part
    for other in [pool.acquire() for _ in range(3)]:
        other[:] = 9
    assert (np.asarray(device_array) == 5).all()


def test_a_pickled_pool_is_empty_and_arrays_may_have_no_bytes():
    pool = BufferPool(SHAPE)
    kept = pool.acquire()
    kept[:] = 3
    other = pickle.loads(pickle.dumps(pool)).acquire()
    other[:] = 4
    assert (kept == 3).all()
    assert BufferPool((4, 0, 0, 3)).acquire().shape == (4, 0, 0, 3)


ALLOCATE = """
import resource
from calce_jax.input_pipeline.buffer_pool import BufferPool, retain_freed_memory
BufferPool((2, 3))
if {retain}:
    retain_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    blocks = [b"x" * (8 << 20) for _ in range(3)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
@pytest.mark.parametrize("retain", [True, False])
def test_freed_memory_is_kept_on_request_alone(retain):
    """A pool does not change malloc of the process."""
    script = ALLOCATE.replace("{retain}", str(retain))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    # The pages of one turn; without retaining, the kernel clears as many in each of the twenty.
    pages = 3 * (8 << 20) // resource.getpagesize()
    assert int(done.stdout) < 2 * pages if retain else int(done.stdout) > 10 * pages
