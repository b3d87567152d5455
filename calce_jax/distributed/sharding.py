"""Sharding: meshes by name, partition rules from a parameter's name to its `PartitionSpec`, placement of batches.

A mesh has three axes. `data` and `fsdp` both split the batch; `fsdp` also splits the parameters, which are gathered
where they are used; `tensor` splits the width of single layers.
"""

import re
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from calce_jax.distributed.devices import find_devices
from calce_jax.distributed.meshes import MESHES
from calce_jax.distributed.param_names import named_leaves, with_leaves
from calce_jax.distributed.word_size import check_word_size
from calce_jax.errors import UserError

Tree = TypeVar("Tree")

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

PartitionRules = Sequence[tuple[str, P]]

# The first pattern that matches a parameter's name is used. Specs are those of the last axes, so the leading depth axis
# of stacked blocks is never split. An adapter is split like its kernel: `a` along the input, `b` along the output.
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

# Arrays of up to so many elements are replicated if an axis does not divide, such as those of tiny models.
MAX_REPLICATED_SIZE = 2**16


class ShardingError(UserError):
    """Parameters or a batch do not fit the mesh, or the mesh does not fit the devices."""


def make_mesh(name: str, devices: Sequence[Any] | None = None) -> Mesh:
    """Make one of `MESHES` from the first devices that it needs.

    Raises:
      ShardingError: the name is unknown, or there are too few devices.
      UserError: JAX is set to numbers of 64 bits, or has no devices.
    """
    check_word_size()
    if name not in MESHES:
        raise ShardingError(f"config.mesh: must be one of {', '.join(map(repr, MESHES))}, got {name!r}")
    devices = find_devices() if devices is None else list(devices)
    axis_sizes = MESHES[name]
    fixed = int(np.prod([size for size in axis_sizes if size > 0]))
    if len(devices) < fixed:
        raise ShardingError(
            f"config.mesh: {name!r} needs {fixed} devices, got {len(devices)} {devices[0].platform} device(s)",
            "choose another mesh (--config.mesh=single)",
        )
    data, fsdp, tensor = (size if size > 0 else len(devices) // fixed for size in axis_sizes)
    return build_mesh((data, fsdp, tensor), devices)


def build_mesh(axis_sizes: tuple[int, int, int], devices: Sequence[Any]) -> Mesh:
    """Make a mesh with the given sizes along `MESH_AXES` from the first devices."""
    needed = int(np.prod(axis_sizes))
    return jax.make_mesh(axis_sizes, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices[:needed])


def param_shardings(abstract: Any, mesh: Mesh | AbstractMesh, rules: PartitionRules = PARTITION_RULES) -> Any:
    """Return the sharding of every leaf of a pytree.

    Args:
      abstract: parameters, or a pytree with arrays under the names of parameters, such as an optimizer's state; arrays
        or `jax.ShapeDtypeStruct`s. Scalars are replicated.
      mesh: from `make_mesh`, or the abstract one inside a program.
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
        raise ShardingError("parameters do not fit the mesh:\n  " + "\n  ".join(errors))
    return with_leaves(abstract, shardings)


def abstract_like(tree: Any, shardings: Any) -> Any:
    """Return the `jax.ShapeDtypeStruct`s of a pytree with the given shardings, the template of a restore."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Put a host batch on the devices, with its first axis split over `data` and `fsdp`.

    Args:
      batch: pytree of numpy arrays; with several hosts, the rows of this host.
      mesh: from `make_mesh`.

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
    """Constrain activations to be split along their first axis over `data` and `fsdp`, and replicated along others.

    Every tower does so between its blocks, since XLA may otherwise replicate the batch inside. Without a mesh
    (`jax.set_mesh`), and inside `jax.shard_map`, it does nothing.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes:
        return x
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, P(BATCH_AXES)), x)


def gather_params(params: Tree) -> Tree:
    """Gather parameters over `fsdp`, for a loop that uses all of them in every iteration.

    XLA for GPUs does not move their gathering out of a loop. What `tensor` splits stays split. Without a mesh
    (`jax.set_mesh`), inside `jax.shard_map`, and where `fsdp` has one device, it does nothing.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.manual_axes or mesh.shape.get("fsdp", 1) == 1:
        return params
    specs = jax.tree.map(
        lambda sharding: P(*(None if axis == "fsdp" else axis for axis in sharding.spec)),
        param_shardings(params, mesh),
    )
    return jax.tree.map(jax.lax.with_sharding_constraint, params, specs)


def block_on_simulated_cpu(tree: Tree) -> Tree:
    """Wait for the results of a computation if the devices are simulated by one CPU; otherwise return at once.

    Simulated devices can deadlock when two computations with collectives run at the same time. Real devices run
    computations in the order of dispatch.
    """
    return jax.block_until_ready(tree) if jax.default_backend() == "cpu" and jax.device_count() > 1 else tree
