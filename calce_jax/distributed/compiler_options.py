"""Options of XLA for the programs of a model, beside its defaults."""

from functools import cache

import jax
from jax.sharding import Mesh

# Few CPUs have instructions for products of bfloat16, and XLA computes them in float32, on the others too if it can
# move the conversion of stacked weights out of the loop over blocks. It also converts all weights of a decoding step
# before it uses the first: a float32 copy of every frozen weight, 16 GB at full size, beside the 8 GB of the weights.
CONVERT_WHERE_USED = {
    "xla_disable_hlo_passes": "while-loop-invariant-code-motion",
    "xla_cpu_scheduler_type": "1",  # orders operations for the least memory
}
# XLA merges products with one left side, so each decoding step writes all weights of the decoder again, each beside its
# adapter: 10 GB a token of five beams at full size in place of 4.5 (docs/scaling.md).
KEEP_PRODUCTS_APART = {"xla_gpu_dot_merger_threshold_mb": "0"}

# Weights are gathered while the products before them run. Without it each gathering waits, by default.
OVERLAP_COLLECTIVES = {"xla_gpu_enable_latency_hiding_scheduler": "True"}


def compiler_options(mesh: Mesh, frozen_dtype: str) -> dict[str, str] | None:
    """Return the `compiler_options` of `jax.jit` for a program on a mesh; see `options_for`."""
    (platform,) = {device.platform for device in mesh.devices.flat}
    return options_for(platform, mesh.devices.size, frozen_dtype)


def options_for(platform: str, num_devices: int, frozen_dtype: str) -> dict[str, str] | None:
    """Return the options for "cpu", "gpu" or "tpu".

    On CPUs, weights in bfloat16 are converted block by block. On GPUs, products with adapters stay apart, and several
    GPUs communicate while they compute. An option that the installed XLA does not know, as another one may not, is left
    out.
    """
    if platform == "gpu":
        options = KEEP_PRODUCTS_APART | (OVERLAP_COLLECTIVES if num_devices > 1 else {})
        return _known_options(tuple(options.items()))
    if platform == "cpu" and frozen_dtype == "bfloat16":
        return _known_options(tuple(CONVERT_WHERE_USED.items()))
    return None


@cache
def _known_options(options: tuple[tuple[str, str], ...]) -> dict[str, str]:
    return {name: value for name, value in options if _is_known({name: value})}


def _is_known(options: dict[str, str]) -> bool:
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
