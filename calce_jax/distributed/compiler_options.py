"""Options of XLA for the programs of a model, beside its defaults."""

from jax.sharding import Mesh

# Few CPUs have instructions for products of bfloat16; XLA computes them in float32. It moves the conversion of stacked
# weights out of the loop over blocks, and then holds a float32 copy of every frozen weight: 16 GB at full size, beside
# the 8 GB of the weights themselves.
KEEP_IN_LOOP = {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}


def compiler_options(mesh: Mesh, frozen_dtype: str) -> dict[str, str] | None:
    """Return the `compiler_options` of `jax.jit` for a program on a mesh.

    On CPUs, weights in bfloat16 are converted block by block; elsewhere and in float32 there is nothing to convert.
    """
    on_cpu = all(device.platform == "cpu" for device in mesh.devices.flat)
    return KEEP_IN_LOOP if on_cpu and frozen_dtype == "bfloat16" else None
