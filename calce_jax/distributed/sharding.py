"""Where arrays live: the meshes by name, the rules from a parameter's name to its partition, and what follows.

A mesh has three axes. `data` and `fsdp` both split the batch; `fsdp` also splits the parameters, which are gathered
where they are used; `tensor` splits the width of single layers.
"""

import re
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from calce_jax.distributed.meshes import MESHES
from calce_jax.distributed.param_names import named_leaves, with_leaves
from calce_jax.errors import UserError

Tree = TypeVar("Tree")

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

PartitionRules = Sequence[tuple[str, P]]

# The first pattern found in a parameter's name decides. A partition speaks of the last axes, so the leading depth axis
# of stacked blocks is never split. Adapters follow the kernel they adapt: `a` its input, `b` its output.
_COLUMN_PARALLEL = r"(q|k|v|wi|wi_0|wi_1|lm_head)"
_ROW_PARALLEL = r"(o|wo|t5_proj|query_proj)"
PARTITION_RULES: PartitionRules = (
    (r"(^|/)(bias|scale)$", P()),
    (rf"(^|/){_COLUMN_PARALLEL}(/base)?/kernel$", P("fsdp", "tensor")),
    (rf"(^|/){_ROW_PARALLEL}(/base)?/kernel$", P("tensor", "fsdp")),
    (rf"(^|/){_COLUMN_PARALLEL}/a$", P("fsdp", None)),
    (rf"(^|/){_COLUMN_PARALLEL}/b$", P(None, "tensor")),
    (rf"(^|/){_ROW_PARALLEL}/a$", P("tensor", None)),
    (rf"(^|/){_ROW_PARALLEL}/b$", P(None, "fsdp")),
    (r"(^|/)relative_bias/embedding$", P()),
    # Vocabularies and patches need not divide by the devices (BERT's 30522, ViT-g's 588 do not); widths do.
    (r"(^|/)(shared/embedding|words|patches/kernel)$", P(None, "fsdp")),
    (r"(^|/)(class_token|positions|queries)$", P()),
)

# Arrays up to this many elements stay whole where an axis does not divide: the biases of the world, and tiny models.
MAX_REPLICATED_SIZE = 2**16


class ShardingError(UserError):
    """Parameters or a batch cannot be laid out on the mesh."""


def make_mesh(name: str, devices: Sequence[Any] | None = None) -> Mesh:
    """Make one of `MESHES` from the first devices that it needs.

    Raises:
      ShardingError: the name is unknown, or there are too few devices.
    """
    if name not in MESHES:
        raise ShardingError(f"config.mesh: {name!r} is none of {', '.join(MESHES)}")
    devices = list(jax.devices() if devices is None else devices)
    axis_sizes = MESHES[name]
    fixed = int(np.prod([size for size in axis_sizes if size > 0]))
    if len(devices) < fixed:
        raise ShardingError(
            f"config.mesh: {name!r} needs {fixed} devices and {len(devices)} {devices[0].platform} device(s) are here",
            "choose another mesh (--config.mesh=single)",
        )
    data, fsdp, tensor = (size if size > 0 else len(devices) // fixed for size in axis_sizes)
    return build_mesh((data, fsdp, tensor), devices)


def build_mesh(axis_sizes: tuple[int, int, int], devices: Sequence[Any]) -> Mesh:
    """Make a mesh of so many devices along `MESH_AXES`, from the first ones; `make_mesh` knows those a config can name."""
    needed = int(np.prod(axis_sizes))
    return jax.make_mesh(axis_sizes, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices[:needed])


def param_shardings(abstract: Any, mesh: Mesh, rules: PartitionRules = PARTITION_RULES) -> Any:
    """Say where every leaf of a pytree lives.

    Args:
      abstract: parameters, or anything that holds parameters under the same names (an optimizer's state); arrays or
        `jax.ShapeDtypeStruct`s. Scalars are replicated.
      mesh: from `make_mesh`.
      rules: in order of precedence.

    Returns:
      A pytree of `NamedSharding` of the same structure.

    Raises:
      ShardingError: lists every name without a rule, and every large array that an axis does not divide.
    """
    errors: list[str] = []
    shardings = {}
    for name, leaf in named_leaves(abstract).items():
        spec = P() if not leaf.shape else next((spec for pattern, spec in rules if re.search(pattern, name)), None)
        if spec is None:
            errors.append(f"{name} {tuple(leaf.shape)}: no rule matches")
            continue
        spec = P(*(None,) * (len(leaf.shape) - len(spec)), *spec)
        uneven_axes = [
            f"axis {axis} of {size} does not divide into {mesh.shape[part]} ({part})"
            for axis, (size, part) in enumerate(zip(leaf.shape, spec, strict=True))
            if part is not None and size % mesh.shape[part]
        ]
        if uneven_axes and leaf.size > MAX_REPLICATED_SIZE:
            errors.append(f"{name} {tuple(leaf.shape)}: {', '.join(uneven_axes)}")
        shardings[name] = NamedSharding(mesh, P() if uneven_axes else spec)
    if errors:
        raise ShardingError("cannot lay out parameters on the mesh:\n  " + "\n  ".join(errors))
    return with_leaves(abstract, shardings)


def abstract_like(tree: Any, shardings: Any) -> Any:
    """Return the `jax.ShapeDtypeStruct`s of a pytree with the given shardings, to restore into."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Move a host batch to the devices, its first axis split over `data` and `fsdp`.

    With several hosts, each gives its own rows.

    Raises:
      ShardingError: the rows do not divide by the devices that split them.
    """
    num_shards = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = jax.tree.leaves(batch)[0].shape[0] * jax.process_count()
    if rows % num_shards:
        raise ShardingError(
            f"config.data.batch: {rows} videos do not divide by the {num_shards} devices that split a batch",
            f"make it a multiple of {num_shards}, or choose another config.mesh",
        )
    sharding = NamedSharding(mesh, P(BATCH_AXES))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def constrain_batch(x: Any) -> Any:
    """Keep activations split by their first axis, whole along all others; without a mesh (`jax.set_mesh`), or inside
    `jax.shard_map`, where they are split already, do nothing.

    Every tower does so between its blocks: left to itself, XLA may give up splitting the batch deep inside.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes:
        return x
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, P(BATCH_AXES)), x)


def block_on_simulated_cpu(tree: Tree) -> Tree:
    """Wait for a program's results on a CPU, and nowhere else.

    A CPU that plays several devices hangs now and then when two programs are under way that both exchange data, neither
    of which waits for the other. Devices of their own take programs in the order in which they are told.
    """
    return jax.block_until_ready(tree) if jax.default_backend() == "cpu" and jax.device_count() > 1 else tree
