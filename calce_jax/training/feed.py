"""Feeds: where the training loop takes its batches from, in the order of the data or grouped by prompt length.

The length of a prompt depends on its key frames, which the device selects from the encoded frames, crops included. So
the batches of a window are encoded first, their features stay on the devices, and the host sorts the rows of the window
by prompt length and deals them into as many batches, whose order is drawn from the seed. The vision tower runs once per
video in both feeds, and every query is in one batch of its epoch.

Dimensions: B rows of a batch, V batches of a window.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from calce_jax.batch import Batch
from calce_jax.distributed.param_names import Params
from calce_jax.distributed.sharding import block_on_simulated_cpu, put_batch
from calce_jax.inference.length_grouping import BatchWindow, LengthGrouper, RowInfo
from calce_jax.training.state import TrainState


class LengthGroupedIterator(grain.DatasetIterator[tuple[RowInfo, Batch]]):
    """Iterates over batches grouped by prompt length, on the devices, each with the `RowInfo` of this host's rows.

    Its state holds the order of the window's rows, so that a run resumed inside a window gets the batches that were
    left.

    Args:
      batches: this host's parts of the batches, in the order of the data.
      grouper: encodes batches and gathers rows.
      frozen: frozen weights.
      batches_per_window: V.
      batches_per_epoch: a window does not reach beyond an epoch.
      seed: of the order of a window's batches.
      process_index, process_count: of this host.

    Attributes:
      trainable: weights that encode the next window; to be set before each batch is taken.
    """

    def __init__(
        self,
        batches: grain.DatasetIterator[Batch],
        grouper: LengthGrouper,
        frozen: Params,
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
        """Return the next batch; the first one of a window encodes the whole window.

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
        """Return the position as JSON values."""
        return {
            "batches": self._source_state,
            "before": self._batches_before_window,
            "order": self._order,
            "taken": self._num_taken,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Move to a position from `get_state`; the batches of its window are read and encoded again."""
        self._batches.set_state(state["batches"])
        self._start_window(state["before"])
        self._order, self._num_taken = state["order"], state["taken"]

    def _start_window(self, batches_before_window: int) -> None:
        """Begin a window; it is encoded when its first batch is taken."""
        self._source_state, self._batches_before_window = self._batches.get_state(), batches_before_window
        self._window: BatchWindow | None = None
        self._order: list[list[int]] = []  # rows of each batch of the window, in the order of the batches
        self._num_taken = 0


@dataclass(frozen=True)
class Feed:
    """Batches of a training loop.

    Fields:
      iterator: its position is saved in checkpoints.
      next_batch: takes the next batch, given the state that it is for; returns information on this host's rows (numpy,
        on the host) and the batch (on the devices). Raises StopIteration where the data end.
    """

    iterator: grain.DatasetIterator
    next_batch: Callable[[TrainState], tuple[RowInfo, Batch]]


def sequential_feed(batches: grain.DatasetIterator[Batch], mesh: Mesh) -> Feed:
    """Feed this host's parts of batches in the order of the data."""

    def next_batch(state: TrainState) -> tuple[RowInfo, Batch]:
        del state
        batch = next(batches)
        return RowInfo.of(batch), put_batch(batch, mesh)

    return Feed(batches, next_batch)


def length_grouped_feed(iterator: LengthGroupedIterator) -> Feed:
    """Feed batches grouped by prompt length; windows are encoded with the weights of the current state."""

    def next_batch(state: TrainState) -> tuple[RowInfo, Batch]:
        iterator.trainable = state.trainable
        return next(iterator)

    return Feed(iterator, next_batch)
