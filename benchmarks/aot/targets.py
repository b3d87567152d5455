"""Machines to compile for; their compilers run on any CPU.

TPUs need `libtpu`; GPUs need the CUDA plugin of jax and a description of the GPU, which is in this folder.
"""

import importlib.util
import math
import os
from dataclasses import dataclass
from pathlib import Path

from jax.experimental import topologies
from jax.sharding import Mesh

from calce_jax.distributed.sharding import build_mesh

GIB = 2**30
# Triton kernels are tuned on the device, which is absent. Memory is assigned before kernels are optimized.
GPU_COMPILER_OPTIONS: tuple[tuple[str, bool | int], ...] = (
    ("xla_gpu_enable_triton_gemm", False),
    ("xla_backend_optimization_level", 0),
)


class MissingCompilerError(RuntimeError):
    """The compiler of a target is not installed; the message names the package and the extra to install."""


@dataclass(frozen=True)
class Target:
    """A machine.

    Fields:
      name: in the report.
      platform: "cuda" or "tpu".
      topology: number and arrangement of chips, in jax's notation of the platform.
      memory: bytes of one chip.
      mesh: number of chips along `calce_jax.distributed.sharding.MESH_AXES`.
      options: of the compiler.
    """

    name: str
    platform: str
    topology: str
    memory: int
    mesh: tuple[int, int, int] = (1, 4, 1)
    options: tuple[tuple[str, bool | int], ...] = ()

    @property
    def chips(self) -> int:
        """Number of chips."""
        return math.prod(self.mesh)


TARGETS = {
    target.name: target
    for target in (
        Target("a100x4", "cuda", "1x1x4", 80 * GIB, options=GPU_COMPILER_OPTIONS),
        Target("a100x1", "cuda", "1x1x1", 80 * GIB, mesh=(1, 1, 1), options=GPU_COMPILER_OPTIONS),
        # Like the mesh "a100x8": parameters are sharded within a machine of eight.
        Target("a100x16", "cuda", "2x1x8", 80 * GIB, mesh=(2, 8, 1), options=GPU_COMPILER_OPTIONS),
        Target("a100x256", "cuda", "32x1x8", 80 * GIB, mesh=(32, 8, 1), options=GPU_COMPILER_OPTIONS),
        Target("gpu24", "cuda", "1x1x1", 24 * GIB, mesh=(1, 1, 1), options=GPU_COMPILER_OPTIONS),
        Target("v5e-2x2", "tpu", "v5e:2x2", 16 * GIB),
        Target("v5p-2x2x1", "tpu", "v5p:2x2x1", 95 * GIB),
        Target("v6e-2x2", "tpu", "v6e:2x2", 32 * GIB),
    )
}
_COMPILERS = {"cuda": "jax_plugins.xla_cuda12", "tpu": "libtpu"}


def missing_compiler(target: Target) -> str:
    """Return what to install before compiling for a target, or "" if nothing is missing."""
    package = _COMPILERS[target.platform]
    is_installed = importlib.util.find_spec(package.split(".")[0]) and importlib.util.find_spec(package)
    return "" if is_installed else f"{target.name}: {package} is not installed; run `make aot`"


def mesh_for(target: Target) -> Mesh:
    """Return the mesh of a target, of abstract devices.

    Raises:
      MissingCompilerError: see `missing_compiler`.
    """
    if missing := missing_compiler(target):
        raise MissingCompilerError(missing)
    if target.platform == "cuda":
        target_config = (Path(__file__).parent / "a100_80gb.txtpb").read_text(encoding="utf-8")
        topology = topologies.get_topology_desc("", "cuda", topology=target.topology, target_config=target_config)
    else:
        # Otherwise libtpu queries the metadata server of the cloud.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        # No chip is used, so several processes may load it.
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        topology = topologies.get_topology_desc(target.topology, "tpu")
    return build_mesh(target.mesh, topology.devices)
