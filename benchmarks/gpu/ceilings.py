"""What the device reaches at most: a large matrix product, and a copy in its memory."""

import jax
import jax.numpy as jnp
import torch

from benchmarks.gpu.shared_weights import to_jax
from benchmarks.paired import BenchmarkSettings, ComparisonRow, check_close, compare, compile_counted
from calce_jax.models.products import matmul


def compare_matmul(settings: BenchmarkSettings, size: int) -> ComparisonRow:
    """Compare the product of two random matrices; zeros would be faster than any real work."""
    options = {"device": settings.torch_device, "dtype": getattr(torch, settings.dtype)}
    left, right = (torch.randn((size, size), **options).mul_(size**-0.25) for _ in range(2))
    inputs = to_jax(left), to_jax(right)
    program = compile_counted(matmul, *inputs)
    return compare(
        settings,
        f"product of two matrices of {size}, {settings.dtype}",
        lambda: program.run(*inputs),
        lambda: left @ right,
        other="torch",
        agreement=lambda a, b: check_close(a, b, max_difference=1e-4 if settings.dtype == "float32" else 0.02),
        compile_s=program.compile_s,
        tflop=program.tflop,
    )


def compare_copy(settings: BenchmarkSettings, num_bytes: int) -> ComparisonRow:
    """Compare a copy of a random array; `gigabytes` counts reading and writing."""
    array = torch.randn(num_bytes // 4, device=settings.torch_device)
    shared = to_jax(array)
    program = compile_counted(jnp.copy, shared)
    copied: list[jax.Array] = []

    def ours() -> jax.Array:
        copied[:] = [program.run(shared)]  # the one before is freed, as by torch
        return copied[0]

    return compare(
        settings,
        f"copy of {num_bytes / 2**30:.3g} GiB",
        ours,
        array.clone,
        other="torch",
        agreement=lambda a, b: check_close(a[: 2**20], b[: 2**20], max_difference=0.0),
        compile_s=program.compile_s,
        gigabytes=2 * num_bytes / 1e9,
    )
