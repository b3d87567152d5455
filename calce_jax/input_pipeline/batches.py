"""Batches in a fixed order: shuffled by seed and epoch, shared between hosts, read by threads or worker processes.

The position of a batch determines its queries, the random numbers of their crops, and which rows are changed. So the
number of hosts and of workers does not change the training data. The state of an iterator is the number of batches that
were taken: restored with any number of workers, it continues with the next batch.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from calce_jax.batch import Batch, Features
from calce_jax.input_pipeline.buffer_pool import BufferPool, retain_freed_memory
from calce_jax.input_pipeline.dataset import MomentDataset, open_dataset
from calce_jax.input_pipeline.example import Example, Query
from calce_jax.input_pipeline.feature_store import FeatureStore
from calce_jax.input_pipeline.input_config import InputConfig, batches_per_epoch, text_sizes
from calce_jax.input_pipeline.row_variants import RowVariants
from calce_jax.input_pipeline.rows import InputError, RowMaker, stack_rows
from calce_jax.text.prompt import PromptWriter
from calce_jax.text.text_tokenizer import TextTokenizer

# Batches that each process reads ahead. At full size a batch takes 30 MB per video, with features 54 to 109 MB.
PREFETCH_BATCHES = 2


def make_iterator(
    config: InputConfig,
    t5: TextTokenizer,
    bert: TextTokenizer,
    *,
    examples: Sequence[Example] | None = None,
    first_batch: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator[Batch]:
    """Return an iterator of host batches (numpy), with `get_state` and `set_state`.

    Args:
      config: source, order and shapes.
      t5, bert: tokenizers, from `calce_jax.text.tokenizers`.
      examples: the split; by default it is opened. It is pickled for worker processes.
      first_batch: index of the first batch, to continue an interrupted inference.
      process_index, process_count: of this host; it gets B // process_count consecutive rows of each batch.

    Raises:
      InputError: B is not a multiple of `process_count`, a split has fewer queries than a batch, or `augment` is set
        with features. While iterating: an example cannot be made into a row.
      TablesError: there is no such folder or split.
      FeaturesError: there is no such folder of features.
    """
    if examples is None:
        examples = open_dataset(config.folder, config.split)
    if config.batch_size % process_count:
        raise InputError(
            f"batch_size: must be a multiple of the {process_count} hosts, got {config.batch_size}",
            "change config.data.batch and config.data.eval_batch",
        )
    if not batches_per_epoch(len(examples), config):
        raise InputError(
            f"split {config.split} of {config.folder} has {len(examples)} queries, too few for a batch of "
            f"{config.batch_size}",
            "lower config.data.batch",
        )
    if config.features and config.augment:
        raise InputError(f"augment: must be False with features={config.features}, whose frames are not cropped")
    order = grain.MapDataset.range(len(examples))
    if config.shuffle:
        order = order.shuffle(seed=config.seed)
    order = order.batch(config.batch_size, drop_remainder=config.remainder == "drop").repeat(config.num_epochs)
    rows_per_process = config.batch_size // process_count
    load_batch = _BatchLoader(
        config, t5, bert, examples, slice(process_index * rows_per_process, (process_index + 1) * rows_per_process)
    )
    # On one core two threads were 5 % slower than one.
    read_options = grain.ReadOptions(
        num_threads=min(PREFETCH_BATCHES, _available_cores()), prefetch_buffer_size=PREFETCH_BATCHES
    )
    # Each batch of queries with its position in the whole run, which decides its epoch.
    batches = order.map_with_index(lambda position, indices: (position, indices))

    def open_at(position: int) -> grain.DatasetIterator[Batch]:
        loaded = batches[position:].map(load_batch).to_iter_dataset(read_options)
        if config.num_workers:
            if not flags.FLAGS.is_parsed():
                # Grain passes absl's flags to its workers; programs that are not absl apps have not parsed them.
                flags.FLAGS.mark_as_parsed()
            loaded = loaded.mp_prefetch(grain.MultiprocessingOptions(num_workers=config.num_workers))
        return iter(loaded.map(_to_batch))

    return BatchIterator(open_at, first_batch)


class BatchIterator(grain.DatasetIterator[Batch]):
    """Iterates over batches from a position; its state is the position alone, whoever reads the batches.

    Args:
      open_at: returns an iterator that begins with the batch at a position.
      position: of the first batch.
    """

    def __init__(self, open_at: Callable[[int], grain.DatasetIterator[Batch]], position: int = 0):
        super().__init__()
        self._open_at, self._position = open_at, position
        self._batches: grain.DatasetIterator[Batch] | None = None

    def __next__(self) -> Batch:
        """Return the next batch.

        Raises:
          StopIteration: the data end.
        """
        if self._batches is None:
            self._batches = self._open_at(self._position)
        batch = next(self._batches)
        self._position += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """Return the position as JSON values."""
        return {"next_index": self._position}

    def set_state(self, state: dict[str, Any]) -> None:
        """Move to a position from `get_state`, or to that of Grain's own state, which earlier versions saved."""
        # Grain counts the batches of each worker.
        counts = state.get("iterators_in_use_states", [state])
        self.close()
        self._position = sum(count["next_index"] for count in counts)

    def close(self) -> None:
        """End the worker processes and threads; the next batch starts others."""
        if self._batches is not None:
            self._batches.close()
        self._batches = None


class _BatchLoader:
    """Loads this host's part of a batch, given the position of the batch in the run and the indices of its queries."""

    def __init__(
        self,
        config: InputConfig,
        t5: TextTokenizer,
        bert: TextTokenizer,
        examples: Sequence[Example],
        host_rows: slice,
    ):
        writer = PromptWriter(
            t5, bert, text_sizes(config), stage=config.stage, behaviour=config.behaviour, method=config.method
        )
        self._make_row = RowMaker(
            writer,
            image_size=config.image_size,
            max_windows=config.max_windows,
            use_captions=config.use_captions,
            feature_store=FeatureStore(config.features) if config.features else None,
        )
        self._config, self._examples, self._host_rows = config, examples, host_rows
        self._variants = RowVariants(config, examples, _queries_of(examples)) if config.changes_rows else None
        # Frames are most of the bytes of a batch; each is decoded into its final position.
        size = 0 if config.features else config.image_size
        self._buffer_pool = BufferPool((host_rows.stop - host_rows.start, config.frames, size, size, 3))

    def __call__(self, batch: tuple[int, np.ndarray]) -> dict[str, Any]:
        batch_index, indices = batch
        config, first = self._config, indices[0]
        if config.num_workers:
            retain_freed_memory()  # this is a worker process
        epoch = batch_index // batches_per_epoch(len(self._examples), config)
        indices, rows_per_process = indices[self._host_rows], self._host_rows.stop - self._host_rows.start
        frames = self._buffer_pool.acquire()
        rows = [self._load_row(epoch, int(index), out) for index, out in zip(indices, frames, strict=False)]
        if len(rows) < rows_per_process:
            # All rows of this host may be padding; then another row of the batch gives the shapes.
            padding = self._make_row.padding_row(rows[0] if rows else self._load_row(epoch, int(first), frames[0]))
            frames[len(rows) :] = 0
            rows += [padding] * (rows_per_process - len(rows))
        return stack_rows(rows, frames)

    def _load_row(self, epoch: int, index: int, out: np.ndarray) -> Any:
        config = self._config
        rng = np.random.default_rng((config.seed, epoch, index)) if config.augment else None
        if self._variants is None:
            return self._make_row(self._examples[index], index, rng, out)
        variant = self._variants(epoch, index)
        row = self._make_row(variant.example, index, rng, out, inverted=variant.inverted, background=variant.background)
        return {**row, "row_flags": np.int32(row["row_flags"] | variant.row_flags)}


def _queries_of(examples: Sequence[Example]) -> Sequence[Query]:
    """Return the queries of a split, without reading its videos where it is one of tables."""
    return list(examples.queries()) if isinstance(examples, MomentDataset) else examples


def _available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _to_batch(fields: dict[str, Any]) -> Batch:
    features = fields.pop("features", None)
    return Batch(**fields, features=features and Features(**features))
