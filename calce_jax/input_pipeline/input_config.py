"""Source, order and shapes of the batches of a run."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import numpy as np

from calce_jax.batch import Batch, Features
from calce_jax.config import CHANGED_ROWS, Behaviour, Method, RunConfig
from calce_jax.input_pipeline.feature_store import FeatureStore
from calce_jax.models.calce_sizes import CalceConfig
from calce_jax.text.text_row import TextSizes


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
      method: whose prompts rows have, see there.
      features: folder of stored features, read in place of frames (`calce_jax.input_pipeline.feature_store`); "" reads
        frames. Stored features have no crops, so `augment` must be False.
      negatives, inverted, mix: shares of the rows that are changed, see `calce_jax.input_pipeline.row_variants`.
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
    method: Method = "calce"
    features: str = ""
    negatives: float = 0.0
    inverted: float = 0.0
    mix: float = 0.0

    @property
    def changes_rows(self) -> bool:
        """Whether some rows are changed."""
        return any(getattr(self, name) > 0 for name in CHANGED_ROWS)


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


def input_config(config: RunConfig, split: str, model_config: CalceConfig, *, training: bool) -> InputConfig:
    """Return the input config of a split of a run.

    Args:
      config: of the run.
      split: name of the split.
      model_config: sizes of the model.
      training: shuffled, repeated, augmented batches; False reads every query once, in order.
    """
    # Without captions one block, of captions that are all absent, stands in the batch.
    blocks = config.data.caption_blocks if config.data.use_captions else 1
    return InputConfig(
        folder=config.data.directory,
        split=split,
        stage=config.stage,
        frames=config.data.frames,
        image_size=model_config.vit.image_size,
        batch_size=config.data.batch if training else config.data.eval_batch,
        max_captions=config.data.captions * blocks,
        bert_tokens=config.text.bert_tokens,
        text_tokens=config.text.text_tokens * blocks,
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
        method=config.method,
        features=config.data.features,
        **{name: getattr(config.data, name) if training else 0.0 for name in CHANGED_ROWS},
    )
