"""What the device that a function is traced for can do."""

from functools import cache
from pathlib import Path

import jax

# Linux describes processors here; other systems do not, and their processors count as old.
CPU_INFO = Path("/proc/cpuinfo")
# x86: AVX512-BF16, or AMX of a server; ARM: the extension "bf16".
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def target_platform() -> str:
    """Return the platform that a function is traced for, such as "cpu": that of the mesh in use, or the default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


@cache
def cpu_has_bfloat16() -> bool:
    """Return whether this machine's processor has instructions for products of bfloat16."""
    try:
        text = CPU_INFO.read_text(encoding="utf-8")
    except OSError:
        return False
    flags = (line.partition(":")[2] for line in text.splitlines() if line.startswith(("flags", "Features")))
    return not BFLOAT16_FLAGS.isdisjoint(next(flags, "").split())
