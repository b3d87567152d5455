"""Batches in a fixed order: shuffled by seed and epoch, shared between hosts, read by threads or worker processes.

Where a batch stands in the order says everything about it: which queries it holds, and from which numbers their crops
are drawn. So neither the number of hosts nor that of workers changes what is trained on, and an iterator whose state is
restored goes on with the very next batch. The state itself counts batches per worker: restore it with as many.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import grain
import jax
import numpy as np
from absl import flags
from transformers import PreTrainedTokenizerBase

from calce_jax.batch import Batch, Features
from calce_jax.config import Behaviour, RunConfig
from calce_jax.input_pipeline.buffer_pool import BufferPool
from calce_jax.input_pipeline.dataset import Example, open_dataset
from calce_jax.input_pipeline.feature_store import FeatureStore
from calce_jax.input_pipeline.rows import InputError, RowMaker, stack_rows
from calce_jax.models.calce import CalceConfig
from calce_jax.text.prompt import PromptWriter
from calce_jax.text.text_row import TextSizes

# Batches that each process has ready beyond the one in use. One of full size takes 30 MB a video, features 54 to 109.
PREFETCH_BATCHES = 2


@dataclass(frozen=True)
class InputConfig:
    """What is read, in which order and in which shapes.

    Fields:
      folder, split: of prepared tables.
      stage: 2 reads the stage-1 windows, too.
      frames: T; of shorter videos, all frames.
      image_size: H and W, those of the stored frames.
      batch_size: B, over all hosts.
      max_captions, bert_tokens, text_tokens, max_windows, answer_tokens: C, U, M, W and A. What exceeds them is noted in the batch.
      max_text_tokens: most T5 tokens of the text and of a caption.
      augment: crop at random, a clip as a whole.
      shuffle: draw a new order for each epoch; otherwise that of the table.
      remainder: of an epoch that is no multiple of B: "drop" leaves these queries out of this epoch (training; another
        epoch leaves out others), "fill" adds rows that are not valid (evaluation).
      num_epochs: None never ends.
      seed: of the order and the crops.
      num_workers: processes that read; 0 reads in threads of this one.
      use_captions: False withholds what is said; Charades has no sound.
      behaviour: "reference" does as the original, see `calce_jax.text.prompt` and `calce_jax.input_pipeline.augment`.
      features: folder of what is seen in the frames, read in place of them (`calce_jax.input_pipeline.feature_store`); these know no
        crops, so `augment` must be False.
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
    """Return the shapes of a row's text."""
    return TextSizes(
        frames=config.frames,
        captions=config.max_captions,
        bert_tokens=config.bert_tokens,
        text_tokens=config.text_tokens,
        answer_tokens=config.answer_tokens,
        max_text=config.max_text_tokens,
    )


def batches_per_epoch(num_queries: int, config: InputConfig) -> int:
    """Return the number of batches that an epoch of so many queries has."""
    full, rest = divmod(num_queries, config.batch_size)
    return full + (rest > 0 and config.remainder == "fill")


def abstract_batch(config: InputConfig) -> Batch:
    """Return the shapes and dtypes of a batch, over all hosts."""

    def array(dtype: type[np.generic] | type[bool] | np.dtype, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((config.batch_size, *shape), dtype)

    t, w = config.frames, config.max_windows
    s, features = config.image_size, None
    if config.features:
        metadata, s = FeatureStore(config.features).metadata, 0
        values = array(metadata.dtype, t, metadata.tokens, metadata.width)
        scale = array(np.float32, t, metadata.tokens, metadata.scales) if metadata.scales else None
        features = Features(values, scale, array(np.float32, t, metadata.means) if metadata.means else None)
    return Batch(
        frames=array(np.uint8, t, s, s, 3),
        frame_mask=array(bool, t),
        times=array(np.float32, t),
        duration=array(np.float32),
        tokens=array(np.int32, config.text_tokens),
        spans=array(np.int32, text_sizes(config).spans, 2),
        query_bert_tokens=array(np.int32, config.bert_tokens),
        caption_bert_tokens=array(np.int32, config.max_captions, config.bert_tokens),
        is_speech_query=array(bool),
        has_speech=array(bool, t),
        stage1_windows=array(np.float32, w, 2),
        window_mask=array(bool, w),
        labels=array(np.int32, config.answer_tokens),
        row_mask=array(bool),
        example_index=array(np.int32),
        row_flags=array(np.int32),
        features=features,
    )


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
      config: what is read.
      t5, bert: tokenizers, from `calce_jax.text.tokenizers`.
      examples: the split; by default it is opened. It travels to worker processes.
      first_batch: number of the batch to begin with, for an inference that goes on; of one epoch.
      process_index, process_count: of this host; it gets its part of each batch, B // process_count rows in a row.

    Raises:
      InputError: B is no multiple of the hosts, or a split is too small for a batch, or crops are wanted of features.
        While iterating also: an example that cannot become a row.
      TablesError: there is no such split.
      FeaturesError: there is no such folder of features.
    """
    if examples is None:
        examples = open_dataset(config.folder, config.split)
    if config.batch_size % process_count:
        raise InputError(
            f"batch_size: {config.batch_size} cannot be shared by {process_count} hosts", "choose a multiple of it"
        )
    if not batches_per_epoch(len(examples), config):
        raise InputError(
            f"split {config.split} of {config.folder} has {len(examples)} queries, too few for a batch of "
            f"{config.batch_size}",
            "lower batch_size",
        )
    if config.features and config.augment:
        raise InputError(f"augment: the features in {config.features} know no crops", "set it to False")
    order = grain.MapDataset.range(len(examples))
    if config.shuffle:
        order = order.shuffle(seed=config.seed)
    order = order.batch(config.batch_size, drop_remainder=config.remainder == "drop").repeat(config.num_epochs)
    if first_batch:
        order = order[first_batch:]
    rows_per_process = config.batch_size // process_count
    load_batch = _BatchLoader(
        config, t5, bert, examples, slice(process_index * rows_per_process, (process_index + 1) * rows_per_process)
    )
    # Two threads on one core read a twentieth less than one.
    read_options = grain.ReadOptions(
        num_threads=min(PREFETCH_BATCHES, _available_cores()), prefetch_buffer_size=PREFETCH_BATCHES
    )
    batches = order.map_with_index(load_batch).to_iter_dataset(read_options)
    if config.num_workers:
        if not flags.FLAGS.is_parsed():
            # Grain's workers are told absl's flags, which a program that is no absl app never parses.
            flags.FLAGS.mark_as_parsed()
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=config.num_workers))
    return iter(batches.map(_to_batch))


class _BatchLoader:
    """Loads one host's part of a batch, given where the batch stands and the rows it holds."""

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
        # Most of a batch by far; every frame is decoded to where it stays.
        size = 0 if config.features else config.image_size
        self._buffer_pool = BufferPool((host_rows.stop - host_rows.start, config.frames, size, size, 3))

    def __call__(self, batch_index: int, indices: np.ndarray) -> dict[str, Any]:
        config, first = self._config, indices[0]
        epoch = batch_index // batches_per_epoch(len(self._examples), config)
        indices, rows_per_process = indices[self._host_rows], self._host_rows.stop - self._host_rows.start
        frames = self._buffer_pool.acquire()
        rows = [self._load_row(epoch, int(index), out) for index, out in zip(indices, frames, strict=False)]
        if len(rows) < rows_per_process:
            # A host may have fillers alone; they are shaped like any row.
            padding = self._make_row.padding_row(rows[0] if rows else self._load_row(epoch, int(first), frames[0]))
            frames[len(rows) :] = 0
            rows += [padding] * (rows_per_process - len(rows))
        return stack_rows(rows, frames)

    def _load_row(self, epoch: int, index: int, out: np.ndarray) -> Any:
        config = self._config
        rng = np.random.default_rng((config.seed, epoch, index)) if config.augment else None
        return self._make_row(self._examples[index], index, rng, out)


def _available_cores() -> int:
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _to_batch(fields: dict[str, Any]) -> Batch:
    features = fields.pop("features", None)
    return Batch(**fields, features=features and Features(**features))


def input_config(config: RunConfig, split: str, model_config: CalceConfig, *, training: bool) -> InputConfig:
    """Return how a split is read: shuffled, repeated and cropped for training; once, in order and whole otherwise."""
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
