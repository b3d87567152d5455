"""Batches whose prompts are about equally long, so that little of them is padding.

A prompt's length follows from its key frames, which only the device knows, and only once it has seen the frames, crops
and all. So a few batches, a window, are seen first. What the tower gives waits on the devices while the host sorts the
window's rows by length and deals them into as many batches; those take their turns in an order drawn from the seed. The
tower runs once a video either way, and every query is in one batch of its epoch.

Dimensions: B rows of a batch, V batches of a window.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, struct
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from calce_jax.batch import Batch, Data, Features
from calce_jax.features import seen_in
from calce_jax.models.calce import Calce
from calce_jax.models.seen import Looked
from calce_jax.sharding import BATCH, put_batch, settled
from calce_jax.step import Prediction, StepConfig
from calce_jax.training.state import TrainState


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


class Grouped(grain.DatasetIterator[tuple[Told, Batch]]):
    """Gives batches on the devices, and what this host is told of its rows.

    Its state says which rows the window's batches are made of, so that a run that goes on in the middle of a window
    takes the very batches that were still to come.

    Args:
      batches: this host's parts of the batches, in the order of the data.
      grouper: sees them.
      frozen: the frozen weights.
      window: V.
      epoch: batches of an epoch; no window reaches beyond it.
      seed: of the order in which a window's batches take their turns.
      process_index, process_count: of this host.

    Attributes:
      trainable: what the next window is seen with; to be set before every batch is taken.
    """

    def __init__(
        self,
        batches: grain.DatasetIterator[Batch],
        grouper: Grouper,
        frozen: nnx.State,
        *,
        window: int,
        epoch: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
    ):
        super().__init__()
        self.trainable: Any = None
        self._batches, self._grouper, self._frozen = batches, grouper, frozen
        self._most, self._epoch, self._seed = window, epoch, seed
        self._host, self._hosts = process_index, process_count
        self._begin(0)

    def __next__(self) -> tuple[Told, Batch]:
        """Take the next batch, and before the first of a window see them all.

        Raises:
          StopIteration: the data end.
        """
        if self._window is None:
            count = len(self._order) or min(self._most, self._epoch - self._before % self._epoch)
            batches = chain([next(self._batches)], islice(self._batches, count - 1))
            self._window = self._grouper.see(self.trainable, self._frozen, batches)
        if not self._order:
            order = self._window.by_length()
            np.random.default_rng((self._seed, self._before)).shuffle(order)
            self._order = order.tolist()
        settled(self.trainable)
        rows = np.array(self._order[self._taken], np.int32)
        share = len(rows) // self._hosts
        mine = rows[self._host * share : (self._host + 1) * share]
        taken = jax.tree.map(lambda of: of[mine], self._window.told), self._grouper.pick(self._window, rows)
        self._taken += 1
        if self._taken == len(self._order):
            self._begin(self._before + self._taken)
        return taken

    def get_state(self) -> dict[str, Any]:
        """Return where it stands, for JSON."""
        return {"batches": self._at, "before": self._before, "order": self._order, "taken": self._taken}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to where another one stood; the batches of its window are read, and seen, again."""
        self._batches.set_state(state["batches"])
        self._begin(state["before"])
        self._order, self._taken = state["order"], state["taken"]

    def _begin(self, before: int) -> None:
        """Begin a window, after so many batches: what stands in it is not known yet."""
        self._at, self._before = self._batches.get_state(), before
        self._window: Window | None = None
        self._order: list[list[int]] = []  # rows of the window's batches, in the order of their turns
        self._taken = 0


@dataclass(frozen=True)
class Feed:
    """Where a training loop takes its batches from.

    Fields:
      iterator: what checkpoints keep the place of.
      draw: takes the next batch, given the state it is for; gives what this host is told of it, and it on the devices.
    """

    iterator: grain.DatasetIterator
    draw: Callable[[TrainState], tuple[Any, Batch]]


def in_order(batches: grain.DatasetIterator[Batch], mesh: Mesh) -> Feed:
    """Feed this host's parts of batches as they come."""

    def draw(state: TrainState) -> tuple[Any, Batch]:
        del state
        batch = next(batches)
        return batch, put_batch(batch, mesh)

    return Feed(batches, draw)


def in_groups(grouped: Grouped) -> Feed:
    """Feed batches that are grouped."""

    def draw(state: TrainState) -> tuple[Any, Batch]:
        grouped.trainable = state.trainable
        return next(grouped)

    return Feed(grouped, draw)


def predict_all(
    predict: Callable[[nnx.State, nnx.State, Batch], Prediction],
    mesh: Mesh,
    grouper: Grouper | None = None,
    window: int = 1,
) -> Callable[[nnx.State, nnx.State, Iterable[Batch]], Iterator[Prediction]]:
    """Return what predicts batch after batch, grouped by a window at a time on the way where there is a grouper.

    Args:
      predict: compiled, from `calce_jax.step.compile_predict`.
      mesh: where batches go.
      grouper: sees them.
      window: V.

    Returns:
      `run(trainable, frozen, batches)`, which takes this host's parts of batches and gives the predictions of all
      hosts, on the host, in the order in which the batches came, whatever the company they were asked in.
    """

    def run(trainable: nnx.State, frozen: nnx.State, batches: Iterable[Batch]) -> Iterator[Prediction]:
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
