"""Group the rows of several batches by prompt length, so that little of a batch is padding."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from calce_jax.batch import Batch, Data, Features
from calce_jax.distributed.sharding import BATCH, put_batch, settled
from calce_jax.inference.predict_step import BatchPrediction, StepConfig
from calce_jax.models.calce import Calce
from calce_jax.models.feature_codec import seen_in
from calce_jax.models.vision_features import Looked


@struct.dataclass
class Told:
    """What the host wants to know of the rows of a batch."""

    needed: Int[Data, " *B"]  # tokens of the prompt
    row: Int[Data, " *B"]  # see `Batch`
    notes: Int[Data, " *B"]
    present: Int[Data, " *B"]  # frames


@dataclass(frozen=True)
class Window:
    """Batches that were seen.

    Fields:
      leaves: of their `Batch`, with features in place of frames, each with an axis of V batches before that of B rows;
        on the devices.
      tree: puts leaves together to a `Batch`.
      told: of V * B rows; on every host the same.
    """

    leaves: list[Array]
    tree: Any
    told: Told

    @property
    def batches(self) -> int:
        """V."""
        return self.leaves[0].shape[0]

    def by_length(self) -> Int[np.ndarray, "V B"]:
        """Deal the rows, numbered through the window, into batches: the shortest prompts, the next ones, ..."""
        return np.argsort(self.told.needed, kind="stable").reshape(self.batches, -1)


class Grouper:
    """Sees batches, and takes any of their rows together.

    Beside what sees a batch, two small programs are compiled for each number of batches: that of a window, and that of
    what is left of an epoch.

    Args:
      graph: the model's structure, from `calce.split`.
      config: how key frames and captions are selected.
      mesh: where batches are.
    """

    def __init__(self, graph: Any, config: StepConfig, mesh: Mesh):
        def look(trainable: nnx.State, frozen: nnx.State, batch: Batch) -> tuple[Batch, Told]:
            model: Calce = nnx.merge(graph, trainable, frozen)
            seen = seen_in(model, batch)
            told = Told(
                needed=model.read(seen, batch, config.selection).needed,
                row=batch.row,
                notes=batch.notes,
                present=batch.present.sum(axis=1),
            )
            # What was stored may be narrower than what is seen.
            features = batch.features
            if isinstance(seen, Looked):
                features = Features(values=seen.queries, means=seen.means)
            elif features is None:
                features = Features(values=seen)
            return replace(batch.without_frames(), features=features), told

        def stack(batches: Sequence[Batch]) -> list[Array]:
            return [jnp.stack(leaves) for leaves in zip(*map(jax.tree.leaves, batches), strict=True)]

        def pick(leaves: list[Array], rows: Int[Array, " B"]) -> list[Array]:
            return [leaf[rows // leaf.shape[1], rows % leaf.shape[1]] for leaf in leaves]

        split, whole = (NamedSharding(mesh, spec) for spec in (P(BATCH), P()))
        self._mesh = mesh
        self._look = jax.jit(look, out_shardings=(split, whole))
        self._stack = jax.jit(stack, out_shardings=NamedSharding(mesh, P(None, BATCH)))
        self._pick = jax.jit(pick, out_shardings=split)

    def see(self, trainable: nnx.State, frozen: nnx.State, batches: Iterable[Batch]) -> Window:
        """See this host's parts of V batches; waits until the devices have."""
        settled(trainable)
        looks = [settled(self._look(trainable, frozen, put_batch(batch, self._mesh))) for batch in batches]
        seen, told = zip(*looks, strict=True)
        told = jax.tree.map(lambda *parts: np.concatenate(parts), *jax.device_get(told))
        return Window(settled(self._stack(seen)), jax.tree.structure(seen[0]), told)

    def pick(self, window: Window, rows: Int[np.ndarray, " B"]) -> Batch:
        """Take rows of a window, by their numbers, together."""
        return jax.tree.unflatten(window.tree, settled(self._pick(window.leaves, rows.astype(np.int32))))


def predict_all(
    predict: Callable[[nnx.State, nnx.State, Batch], BatchPrediction],
    mesh: Mesh,
    grouper: Grouper | None = None,
    window: int = 1,
) -> Callable[[nnx.State, nnx.State, Iterable[Batch]], Iterator[BatchPrediction]]:
    """Return what predicts batch after batch, grouped by a window at a time on the way where there is a grouper.

    Args:
      predict: compiled, from `calce_jax.inference.predict_step.compile_predict`.
      mesh: where batches go.
      grouper: sees them.
      window: V.

    Returns:
      `run(trainable, frozen, batches)`, which takes this host's parts of batches and gives the predictions of all
      hosts, on the host, in the order in which the batches came, whatever the company they were asked in.
    """

    def run(trainable: nnx.State, frozen: nnx.State, batches: Iterable[Batch]) -> Iterator[BatchPrediction]:
        if grouper is None:
            for batch in batches:
                yield jax.device_get(predict(trainable, frozen, put_batch(batch, mesh)))
            return
        waiting = iter(batches)
        while some := list(islice(waiting, window)):
            seen = grouper.see(trainable, frozen, some)
            order = seen.by_length()
            parts = [settled(predict(trainable, frozen, grouper.pick(seen, rows))) for rows in order]
            whole = jax.tree.map(_together, *jax.device_get(parts))
            for rows in np.split(np.argsort(order.ravel()), len(some)):
                yield jax.tree.map(lambda leaf, rows=rows: leaf[rows] if leaf.ndim else leaf, whole)

    return run


def _together(*leaves: Any) -> np.ndarray:
    """Concatenate what rows have; of the decoder's steps, which a batch has, take the most."""
    return np.concatenate(leaves) if leaves[0].ndim else np.array(max(leaves))
