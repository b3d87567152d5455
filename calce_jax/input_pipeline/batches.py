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
from calce_jax.input_pipeline.buffer_pool import Room
from calce_jax.input_pipeline.dataset import Example, open_tables
from calce_jax.input_pipeline.feature_store import FeatureFolder
from calce_jax.input_pipeline.rows import InputError, RowMaker, as_batch
from calce_jax.models.calce import CalceConfig
from calce_jax.text.prompt import PromptWriter
from calce_jax.text.text_row import TextSizes

# Batches that each process has ready beyond the one in use. One of full size takes 30 MB a video, features 54 to 109.
AHEAD = 2


@dataclass(frozen=True)
class InputConfig:
    """What is read, in which order and in which shapes.

    Fields:
      folder, split: of prepared tables.
      stage: 2 reads the stage-1 windows, too.
      frames: T; of shorter videos, all frames.
      image_size: H and W, those of the stored frames.
      batch_size: B, over all hosts.
      captions, words, text_tokens, windows, answer_tokens: C, U, M, W and A. What exceeds them is noted in the batch.
      max_text: most T5 tokens of the text and of a caption.
      augment: crop at random, a clip as a whole.
      shuffle: draw a new order for each epoch; otherwise that of the table.
      remainder: of an epoch that is no multiple of B: "drop" leaves these queries out of this epoch (training; another
        epoch leaves out others), "fill" adds rows that are not valid (evaluation).
      epochs: None never ends.
      seed: of the order and the crops.
      workers: processes that read; 0 reads in threads of this one.
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
    captions: int
    words: int
    text_tokens: int
    windows: int
    answer_tokens: int
    max_text: int = 200
    augment: bool = False
    shuffle: bool = False
    remainder: Literal["drop", "fill"] = "fill"
    epochs: int | None = 1
    seed: int = 0
    workers: int = 0
    use_captions: bool = True
    behaviour: Behaviour = "default"
    features: str = ""


def text_sizes(config: InputConfig) -> TextSizes:
    """Return the shapes of a row's text."""
    return TextSizes(
        frames=config.frames,
        captions=config.captions,
        words=config.words,
        text_tokens=config.text_tokens,
        answer_tokens=config.answer_tokens,
        max_text=config.max_text,
    )


def batches_an_epoch(queries: int, config: InputConfig) -> int:
    """Return the number of batches that an epoch of so many queries has."""
    full, rest = divmod(queries, config.batch_size)
    return full + (rest > 0 and config.remainder == "fill")


def abstract_batch(config: InputConfig) -> Batch:
    """Return the shapes and dtypes of a batch, over all hosts."""

    def array(dtype: type[np.generic] | type[bool] | np.dtype, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((config.batch_size, *shape), dtype)

    t, w = config.frames, config.windows
    s, features = config.image_size, None
    if config.features:
        made, s = FeatureFolder(config.features).made, 0
        values = array(made.dtype, t, made.tokens, made.width)
        scale = array(np.float32, t, made.tokens, made.scales) if made.scales else None
        features = Features(values, scale, array(np.float32, t, made.means) if made.means else None)
    return Batch(
        frames=array(np.uint8, t, s, s, 3),
        present=array(bool, t),
        times=array(np.float32, t),
        duration=array(np.float32),
        tokens=array(np.int32, config.text_tokens),
        spans=array(np.int32, text_sizes(config).spans, 2),
        query_words=array(np.int32, config.words),
        caption_words=array(np.int32, config.captions, config.words),
        talk=array(bool),
        spoken=array(bool, t),
        windows=array(np.float32, w, 2),
        window_valid=array(bool, w),
        labels=array(np.int32, config.answer_tokens),
        valid=array(bool),
        row=array(np.int32),
        notes=array(np.int32),
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
        examples = open_tables(config.folder, config.split)
    if config.batch_size % process_count:
        raise InputError(
            f"batch_size: {config.batch_size} cannot be shared by {process_count} hosts", "choose a multiple of it"
        )
    if not batches_an_epoch(len(examples), config):
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
    order = order.batch(config.batch_size, drop_remainder=config.remainder == "drop").repeat(config.epochs)
    if first_batch:
        order = order[first_batch:]
    share = config.batch_size // process_count
    load = _Load(config, t5, bert, examples, slice(process_index * share, (process_index + 1) * share))
    # Two threads on one core read a twentieth less than one.
    ahead = grain.ReadOptions(num_threads=min(AHEAD, _cores()), prefetch_buffer_size=AHEAD)
    batches = order.map_with_index(load).to_iter_dataset(ahead)
    if config.workers:
        if not flags.FLAGS.is_parsed():
            # Grain's workers are told absl's flags, which a program that is no absl app never parses.
            flags.FLAGS.mark_as_parsed()
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=config.workers))
    return iter(batches.map(_batch))


class _Load:
    """Loads one host's part of a batch, given where the batch stands and the rows it holds."""

    def __init__(
        self,
        config: InputConfig,
        t5: PreTrainedTokenizerBase,
        bert: PreTrainedTokenizerBase,
        examples: Sequence[Example],
        part: slice,
    ):
        writer = PromptWriter(t5, bert, text_sizes(config), stage=config.stage, behaviour=config.behaviour)
        self._make = RowMaker(
            writer,
            image_size=config.image_size,
            windows=config.windows,
            use_captions=config.use_captions,
            features=FeatureFolder(config.features) if config.features else None,
        )
        self._config, self._examples, self._part = config, examples, part
        # Most of a batch by far; every frame is decoded to where it stays.
        size = 0 if config.features else config.image_size
        self._room = Room((part.stop - part.start, config.frames, size, size, 3))

    def __call__(self, place: int, numbers: np.ndarray) -> dict[str, Any]:
        config, first = self._config, numbers[0]
        epoch = place // batches_an_epoch(len(self._examples), config)
        numbers, share = numbers[self._part], self._part.stop - self._part.start
        frames = self._room.array()
        loaded = [self._row(epoch, int(number), into) for number, into in zip(numbers, frames, strict=False)]
        if len(loaded) < share:
            # A host may have fillers alone; they are shaped like any row.
            filler = self._make.filler(loaded[0] if loaded else self._row(epoch, int(first), frames[0]))
            frames[len(loaded) :] = 0
            loaded += [filler] * (share - len(loaded))
        return as_batch(loaded, frames)

    def _row(self, epoch: int, number: int, into: np.ndarray) -> Any:
        config = self._config
        rng = np.random.default_rng((config.seed, epoch, number)) if config.augment else None
        return self._make(self._examples[number], number, rng, into)


def _cores() -> int:
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _batch(fields: dict[str, Any]) -> Batch:
    features = fields.pop("features", None)
    return Batch(**fields, features=features and Features(**features))


def input_config(config: RunConfig, split: str, sizes: CalceConfig, *, training: bool) -> InputConfig:
    """Return how a split is read: shuffled, repeated and cropped for training; once, in order and whole otherwise."""
    return InputConfig(
        folder=config.data.directory,
        split=split,
        stage=config.stage,
        frames=config.data.frames,
        image_size=sizes.vit.image_size,
        batch_size=config.data.batch if training else config.data.eval_batch,
        captions=config.data.captions,
        words=config.text.bert_tokens,
        text_tokens=config.text.text_tokens,
        windows=config.text.windows,
        answer_tokens=config.text.answer_tokens,
        max_text=config.text.max_text,
        augment=training and config.data.augment,
        shuffle=training,
        remainder="drop" if training else "fill",
        epochs=None if training else 1,
        seed=config.seed,
        workers=config.data.workers if training else 0,
        use_captions=config.data.use_captions,
        behaviour=config.behaviour,
        features=config.data.features,
    )
