"""Batches whose prompts are about equally long, so that little of them is padding.

A prompt's length follows from its key frames, which only the device knows, and only once it has seen the frames, crops
and all. So a few batches, a window, are seen first. What the tower gives waits on the devices while the host sorts the
window's rows by length and deals them into as many batches; those take their turns in an order drawn from the seed. The
tower runs once a video either way, and every query is in one batch of its epoch.

Dimensions: B rows of a batch, V batches of a window.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import grain
import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from calce_jax.batch import Batch
from calce_jax.distributed.sharding import block_on_simulated_cpu, put_batch
from calce_jax.inference.length_grouping import BatchWindow, LengthGrouper, RowInfo
from calce_jax.training.state import TrainState


class LengthGroupedIterator(grain.DatasetIterator[tuple[RowInfo, Batch]]):
    """Gives batches on the devices, and what this host is told of its rows.

    Its state says which rows the window's batches are made of, so that a run that goes on in the middle of a window
    takes the very batches that were still to come.

    Args:
      batches: this host's parts of the batches, in the order of the data.
      grouper: sees them.
      frozen: the frozen weights.
      batches_per_window: V.
      batches_per_epoch: batches of an epoch; no window reaches beyond it.
      seed: of the order in which a window's batches take their turns.
      process_index, process_count: of this host.

    Attributes:
      trainable: what the next window is seen with; to be set before every batch is taken.
    """

    def __init__(
        self,
        batches: grain.DatasetIterator[Batch],
        grouper: LengthGrouper,
        frozen: nnx.State,
        *,
        batches_per_window: int,
        batches_per_epoch: int,
        seed: int,
        process_index: int = 0,
        process_count: int = 1,
    ):
        super().__init__()
        self.trainable: Any = None
        self._batches, self._grouper, self._frozen = batches, grouper, frozen
        self._batches_per_window, self._batches_per_epoch, self._seed = batches_per_window, batches_per_epoch, seed
        self._process_index, self._process_count = process_index, process_count
        self._start_window(0)

    def __next__(self) -> tuple[RowInfo, Batch]:
        """Take the next batch, and before the first of a window see them all.

        Raises:
          StopIteration: the data end.
        """
        if self._window is None:
            count = len(self._order) or min(
                self._batches_per_window,
                self._batches_per_epoch - self._batches_before_window % self._batches_per_epoch,
            )
            batches = chain([next(self._batches)], islice(self._batches, count - 1))
            self._window = self._grouper.encode_window(self.trainable, self._frozen, batches)
        if not self._order:
            order = self._window.rows_by_length()
            np.random.default_rng((self._seed, self._batches_before_window)).shuffle(order)
            self._order = order.tolist()
        block_on_simulated_cpu(self.trainable)
        rows = np.array(self._order[self._num_taken], np.int32)
        rows_per_process = len(rows) // self._process_count
        local_rows = rows[self._process_index * rows_per_process : (self._process_index + 1) * rows_per_process]
        item = (
            jax.tree.map(lambda leaf: leaf[local_rows], self._window.row_info),
            self._grouper.take_rows(self._window, rows),
        )
        self._num_taken += 1
        if self._num_taken == len(self._order):
            self._start_window(self._batches_before_window + self._num_taken)
        return item

    def get_state(self) -> dict[str, Any]:
        """Return where it stands, for JSON."""
        return {
            "batches": self._source_state,
            "before": self._batches_before_window,
            "order": self._order,
            "taken": self._num_taken,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to where another one stood; the batches of its window are read, and seen, again."""
        self._batches.set_state(state["batches"])
        self._start_window(state["before"])
        self._order, self._num_taken = state["order"], state["taken"]

    def _start_window(self, batches_before_window: int) -> None:
        """Begin a window, after so many batches: what stands in it is not known yet."""
        self._source_state, self._batches_before_window = self._batches.get_state(), batches_before_window
        self._window: BatchWindow | None = None
        self._order: list[list[int]] = []  # rows of the window's batches, in the order of their turns
        self._num_taken = 0


@dataclass(frozen=True)
class Feed:
    """Where a training loop takes its batches from.

    Fields:
      iterator: what checkpoints keep the place of.
      next_batch: takes the next batch, given the state it is for; gives what this host is told of it, and it on the devices.
    """

    iterator: grain.DatasetIterator
    next_batch: Callable[[TrainState], tuple[Any, Batch]]


def sequential_feed(batches: grain.DatasetIterator[Batch], mesh: Mesh) -> Feed:
    """Feed this host's parts of batches as they come."""

    def next_batch(state: TrainState) -> tuple[Any, Batch]:
        del state
        batch = next(batches)
        return batch, put_batch(batch, mesh)

    return Feed(batches, next_batch)


def length_grouped_feed(iterator: LengthGroupedIterator) -> Feed:
    """Feed batches that are grouped."""

    def next_batch(state: TrainState) -> tuple[Any, Batch]:
        iterator.trainable = state.trainable
        return next(iterator)

    return Feed(iterator, next_batch)
