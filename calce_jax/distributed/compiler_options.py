"""Options of XLA for the programs of a model, beside its defaults."""

from functools import cache

import jax
from jax.sharding import Mesh

# Few CPUs have instructions for products of bfloat16; XLA computes them in float32. It moves the conversion of stacked
# weights out of the loop over blocks, and converts all weights of a decoding step before it uses the first: a float32
# copy of every frozen weight, 16 GB at full size, beside the 8 GB of the weights themselves.
CONVERT_WHERE_USED = {
    "xla_disable_hlo_passes": "while-loop-invariant-code-motion",
    "xla_cpu_scheduler_type": "1",  # orders operations for the least memory
}


def compiler_options(mesh: Mesh, frozen_dtype: str) -> dict[str, str] | None:
    """Return the `compiler_options` of `jax.jit` for a program on a mesh.

    On CPUs, weights in bfloat16 are converted block by block; elsewhere and in float32 there is nothing to convert.
    """
    on_cpu = all(device.platform == "cpu" for device in mesh.devices.flat)
    return _known_options() if on_cpu and frozen_dtype == "bfloat16" else None


@cache
def _known_options() -> dict[str, str]:
    """Return those of `CONVERT_WHERE_USED` that the installed XLA knows; another one may not."""
    return {name: value for name, value in CONVERT_WHERE_USED.items() if _is_known({name: value})}


def _is_known(options: dict[str, str]) -> bool:
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
