"""What the device that a function is traced for can do."""

import jax

from calce_jax.storage.processor import instructions

# x86: AVX512-BF16, or AMX of a server; ARM: the extension "bf16".
BFLOAT16_INSTRUCTIONS = {"avx512_bf16", "amx_bf16", "bf16"}


def target_platform() -> str:
    """Return the platform that a function is traced for, such as "cpu": that of the mesh in use, or the default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def cpu_has_bfloat16() -> bool:
    """Return whether this machine's processor is known to have instructions for products of bfloat16."""
    return not BFLOAT16_INSTRUCTIONS.isdisjoint(instructions())
