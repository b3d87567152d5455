"""Machines to compile for. None has to be here: their compilers run on any CPU.

TPUs need `libtpu`; GPUs need jax's CUDA plugin and a description of the GPU, which lies beside this file.
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
# Triton's kernels are tuned on the device itself, and there is none. Memory is settled before kernels are made fast.
GPU_COMPILER_OPTIONS: tuple[tuple[str, bool | int], ...] = (
    ("xla_gpu_enable_triton_gemm", False),
    ("xla_backend_optimization_level", 0),
)


class MissingCompilerError(RuntimeError):
    """The package that compiles for a target is not installed; the message names it and the extra that has it."""


@dataclass(frozen=True)
class Target:
    """A machine.

    Fields:
      name: as it stands in the report.
      platform: "cuda" or "tpu".
      topology: how many chips and how they are joined, as jax writes it for that platform.
      memory: bytes of one chip.
      mesh: chips along `calce_jax.distributed.sharding.MESH_AXES`.
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
        """How many."""
        return math.prod(self.mesh)


TARGETS = {
    target.name: target
    for target in (
        Target("a100x4", "cuda", "1x1x4", 80 * GIB, options=GPU_COMPILER_OPTIONS),
        Target("a100x1", "cuda", "1x1x1", 80 * GIB, mesh=(1, 1, 1), options=GPU_COMPILER_OPTIONS),
        # As the mesh "a100x8": parameters are split within a machine of eight.
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
    """Return what to install before compiling for a target, or "" where nothing is missing."""
    package = _COMPILERS[target.platform]
    is_installed = importlib.util.find_spec(package.split(".")[0]) and importlib.util.find_spec(package)
    return "" if is_installed else f"{target.name}: {package} is not installed; pip install 'calce_jax[aot]'"


def mesh_for(target: Target) -> Mesh:
    """Return the target's mesh, of devices that can be compiled for and nothing else.

    Raises:
      MissingCompiler: see `missing_compiler`.
    """
    if missing := missing_compiler(target):
        raise MissingCompilerError(missing)
    if target.platform == "cuda":
        target_config = (Path(__file__).parent / "a100_80gb.txtpb").read_text(encoding="utf-8")
        topology = topologies.get_topology_desc("", "cuda", topology=target.topology, target_config=target_config)
    else:
        # libtpu would otherwise ask the cloud's metadata server which TPU this is.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        # There is no chip that two processes could quarrel about.
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        topology = topologies.get_topology_desc(target.topology, "tpu")
    return build_mesh(target.mesh, topology.devices)
