"""Names of the leaves of a pytree, such as "t5/encoder/blocks/attention/q/a".

Checkpoints, partition rules and weight decay use these names; they do not depend on the types of the containers.
"""

from collections.abc import Mapping
from typing import Any

import jax

Params = dict[str, Any]  # nested; the leaves are arrays, or say something about arrays


def key_path_names(key_path: tuple[Any, ...]) -> tuple[str, ...]:
    """Return jax's key path as strings, without the last key, `value`, of an `nnx.Variable`."""
    parts = tuple(jax.tree_util.keystr((key,), simple=True) for key in key_path)
    in_variable = bool(key_path) and isinstance(key_path[-1], jax.tree_util.GetAttrKey) and parts[-1] == "value"
    return parts[:-1] if in_variable else parts


def named_leaves(tree: Any) -> dict[str, Any]:
    """Return the leaves by name, in the tree's order."""
    return {"/".join(key_path_names(keys)): leaf for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def with_leaves(tree: Any, leaves: Mapping[str, Any]) -> Any:
    """Return a tree of the same structure with the leaves from `leaves`, by name.

    Raises:
      KeyError: a name of the tree is not in `leaves`.
    """
    return jax.tree_util.tree_map_with_path(lambda keys, _: leaves["/".join(key_path_names(keys))], tree)
