"""Batches in a fixed order: shuffled by seed and epoch, shared between hosts, read by threads or worker processes.

The position of a batch determines its queries and the random numbers of their crops. So the number of hosts and of
workers does not change the training data. The state of an iterator is the number of batches that were taken: restored
with any number of workers, it continues with the next batch.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import grain
import jax
import numpy as np
from absl import flags
from transformers import PreTrainedTokenizerBase

from calce_jax.batch import Batch, Features
from calce_jax.config import Behaviour, RunConfig
from calce_jax.input_pipeline.buffer_pool import BufferPool, retain_freed_memory
from calce_jax.input_pipeline.dataset import Example, open_dataset
from calce_jax.input_pipeline.feature_store import FeatureStore
from calce_jax.input_pipeline.rows import InputError, RowMaker, stack_rows
from calce_jax.models.calce import CalceConfig
from calce_jax.text.prompt import PromptWriter
from calce_jax.text.text_row import TextSizes

# Batches that each process reads ahead. At full size a batch takes 30 MB per video, with features 54 to 109 MB.
PREFETCH_BATCHES = 2


@dataclass(frozen=True)
class InputConfig:
    """Source, order and shapes of batches; letters as in `calce_jax.batch`.

    Fields:
      folder, split: of the prepared tables.
      stage: 2 also reads stage-1 windows.
      frames: T; of a shorter video all frames are read.
      image_size: Y and X, those of the stored frames.
      batch_size: B, over all hosts.
      max_captions, bert_tokens, text_tokens, max_windows, answer_tokens: C, U, M, W and A. Rows that exceed them are
        truncated, and `row_flags` says so.
      max_text_tokens: at most so many T5 tokens of the query text, and of a caption.
      augment: one random crop per clip, `Batch.crop`; frames are whole.
      shuffle: a new order for each epoch; False keeps the order of the table.
      remainder: if an epoch is not a multiple of B: "drop" leaves the last queries of its order out (training; each
        epoch has another order), "fill" adds rows with `row_mask` False (evaluation).
      num_epochs: None repeats without end.
      seed: of the order and of the crops.
      num_workers: reading processes; 0 reads in threads of this process.
      use_captions: False leaves out captions and the speech mask, as for Charades-STA, which has no speech.
      behaviour: "reference" reproduces the original, see `calce_jax.text.prompt`.
      features: folder of stored features, read in place of frames (`calce_jax.input_pipeline.feature_store`); "" reads
        frames. Stored features have no crops, so `augment` must be False.
    """

    folder: str
    split: str
    stage: Literal[1, 2]
    frames: int
    image_size: int
    batch_size: int
    max_captions: int
    bert_tokens: int
    text_tokens: int
    max_windows: int
    answer_tokens: int
    max_text_tokens: int = 200
    augment: bool = False
    shuffle: bool = False
    remainder: Literal["drop", "fill"] = "fill"
    num_epochs: int | None = 1
    seed: int = 0
    num_workers: int = 0
    use_captions: bool = True
    behaviour: Behaviour = "default"
    features: str = ""


def text_sizes(config: InputConfig) -> TextSizes:
    """Return the shapes of the text of a row."""
    return TextSizes(
        frames=config.frames,
        captions=config.max_captions,
        bert_tokens=config.bert_tokens,
        text_tokens=config.text_tokens,
        answer_tokens=config.answer_tokens,
        max_text=config.max_text_tokens,
    )


def batches_per_epoch(num_queries: int, config: InputConfig) -> int:
    """Return the number of batches of an epoch of `num_queries` queries."""
    full, rest = divmod(num_queries, config.batch_size)
    return full + (rest > 0 and config.remainder == "fill")


def abstract_batch(config: InputConfig) -> Batch:
    """Return the shapes and dtypes of a batch over all hosts.

    Raises:
      FeaturesError: there is no such folder of features.
    """

    batch = Batch.zeros(
        config.batch_size,
        frames=config.frames,
        image_size=0 if config.features else config.image_size,
        captions=config.max_captions,
        bert_tokens=config.bert_tokens,
        text_tokens=config.text_tokens,
        windows=config.max_windows,
        answer_tokens=config.answer_tokens,
    )
    abstract = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), batch)
    if config.augment:
        abstract = replace(abstract, crop=jax.ShapeDtypeStruct((config.batch_size, 4), np.int32))
    if not config.features:
        return abstract

    def array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((config.batch_size, config.frames, *shape), dtype)

    metadata = FeatureStore(config.features).metadata
    values = array(metadata.dtype, metadata.tokens, metadata.width)
    scale = array(np.float32, metadata.tokens, metadata.scales) if metadata.scales else None
    means = array(np.float32, metadata.means) if metadata.means else None
    return replace(abstract, features=Features(values, scale, means))


def make_iterator(
    config: InputConfig,
    t5: PreTrainedTokenizerBase,
    bert: PreTrainedTokenizerBase,
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
        t5: PreTrainedTokenizerBase,
        bert: PreTrainedTokenizerBase,
        examples: Sequence[Example],
        host_rows: slice,
    ):
        writer = PromptWriter(t5, bert, text_sizes(config), stage=config.stage, behaviour=config.behaviour)
        self._make_row = RowMaker(
            writer,
            image_size=config.image_size,
            max_windows=config.max_windows,
            use_captions=config.use_captions,
            feature_store=FeatureStore(config.features) if config.features else None,
        )
        self._config, self._examples, self._host_rows = config, examples, host_rows
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
        return self._make_row(self._examples[index], index, rng, out)


def _available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _to_batch(fields: dict[str, Any]) -> Batch:
    features = fields.pop("features", None)
    return Batch(**fields, features=features and Features(**features))


def input_config(config: RunConfig, split: str, model_config: CalceConfig, *, training: bool) -> InputConfig:
    """Return the input config of a split of a run.

    Args:
      config: of the run.
      split: name of the split.
      model_config: sizes of the model.
      training: shuffled, repeated, augmented batches; False reads every query once, in order.
    """
    return InputConfig(
        folder=config.data.directory,
        split=split,
        stage=config.stage,
        frames=config.data.frames,
        image_size=model_config.vit.image_size,
        batch_size=config.data.batch if training else config.data.eval_batch,
        max_captions=config.data.captions,
        bert_tokens=config.text.bert_tokens,
        text_tokens=config.text.text_tokens,
        max_windows=config.text.windows,
        answer_tokens=config.text.answer_tokens,
        max_text_tokens=config.text.max_text,
        augment=training and config.data.augment,
        shuffle=training,
        remainder="drop" if training else "fill",
        num_epochs=None if training else 1,
        seed=config.seed,
        num_workers=config.data.workers if training else 0,
        use_captions=config.data.use_captions,
        behaviour=config.behaviour,
        features=config.data.features,
    )
