"""Memory that a process keeps does not come back from the kernel page by page."""

import subprocess
import sys

import pytest

from calce_jax.distributed.freed_memory import keep_freed_memory

# Faults of a page of 4 KiB; huge pages would hide what is counted.
COUNT_FAULTS = """
import ctypes, resource, sys
from calce_jax.distributed.freed_memory import keep_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.memset.restype = ctypes.c_void_p
libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def fill(size):
    block = libc.malloc(size)
    libc.memset(block, 1, size)
    libc.free(block)

if sys.argv[1] == "keep":
    assert keep_freed_memory()
size = 100 << 20
fill(size)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    fill(size)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def count_faults(mode: str) -> int:
    command = [sys.executable, "-c", COUNT_FAULTS, mode]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not keep_freed_memory(), reason="this C library is not glibc")
def test_kept_memory_is_not_fetched_again():
    """Four times 100 MiB are 102,400 pages, 200 if they are huge ones; kept, they are none."""
    assert count_faults("give back") >= 200
    assert count_faults("keep") < 50


def test_other_systems_keep_their_own(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
