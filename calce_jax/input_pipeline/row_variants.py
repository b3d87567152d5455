"""Training rows that are changed before they are made: negatives, inverted tasks, other backgrounds.

What is drawn for a row depends on the seed, the epoch and the row alone. Each kind of change has random numbers of its
own, so its rows stay the same when the share of another kind changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from calce_jax.input_pipeline.background import Background, background_frames, mix_captions
from calce_jax.input_pipeline.example import Example, Query
from calce_jax.input_pipeline.input_config import InputConfig
from calce_jax.input_pipeline.query_pool import QueryPool
from calce_jax.input_pipeline.rows import stored_frame_positions
from calce_jax.text.inverted import BLANK, InvertedTask, whole_query
from calce_jax.text.nouns import NOUN_TAG, VERB_TAG, WORD, tag_words
from calce_jax.text.text_row import RowFlag

MAX_DRAWS = 16  # of a query or video, until one is surely absent
# Of the negatives of stage 2: the whole video is the window, as where stage 1 says that a query does not happen. The
# others have the windows of stage 1 for the video's own query, as where stage 1 is wrong.
WHOLE_VIDEO_SHARE = 0.5
WORD_SHARE = 0.5  # of the inverted rows whose query has a noun or a verb: they ask for one of these
NO_FLAGS = RowFlag(0)
# Streams of random numbers; (seed, epoch, row) and (seed, epoch, row, 0), which are the same to numpy, are the crops'.
_KIND_STREAM, _MIX_STREAM = 1, 2


@dataclass(frozen=True)
class RowVariant:
    """What a row is made from, see `calce_jax.input_pipeline.rows.RowMaker`.

    Fields:
      example: with the query, windows and captions of the row.
      inverted: the row asks for the query.
      background: frames of another video.
      row_flags: what could not be drawn.
    """

    example: Example
    inverted: InvertedTask | None = None
    background: Background | None = None
    row_flags: RowFlag = NO_FLAGS


class RowVariants:
    """Draws the variants of rows; it may be pickled for worker processes.

    Args:
      config: shares of the rows, and the seed.
      examples: the split.
      queries: all of the split, in the same order.
    """

    def __init__(self, config: InputConfig, examples: Sequence[Example], queries: Sequence[Query]):
        self._config, self._examples = config, examples
        needs_pool = config.negatives > 0 or config.mix > 0
        self._pool = QueryPool(queries if needs_pool else ())

    def __call__(self, epoch: int, index: int) -> RowVariant:
        """Return the variant of a row in an epoch, from 0; `index` is that of the split."""
        config, example = self._config, self._examples[index]
        rng = self._rng(epoch, index, _KIND_STREAM)
        kind = rng.random()
        if kind < config.negatives:
            return self._negative(rng, example)
        # Without windows there is nothing to ask about, and nothing to keep.
        if not len(example.windows):
            return RowVariant(example)
        variant = RowVariant(example)
        mix_rng = self._rng(epoch, index, _MIX_STREAM)
        if mix_rng.random() < config.mix:
            variant = self._mixed(mix_rng, example, index)
        if kind < config.negatives + config.inverted:
            # Stage 2 looks at the windows that the prompt names.
            example = replace(variant.example, stage1_windows=example.windows)
            variant = replace(variant, example=example, inverted=draw_inverted_task(rng, example.query))
        return variant

    def _negative(self, rng: np.random.Generator, example: Example) -> RowVariant:
        content = self._pool.content(example.video, example.captions)
        for row in rng.integers(len(self._pool.queries), size=MAX_DRAWS).tolist():
            query = self._pool.queries[row]
            if query.video != example.video and not self._pool.may_hold(row, content):
                break
        else:
            return RowVariant(example, row_flags=RowFlag.NO_NEGATIVE)
        stage1_windows = example.stage1_windows
        if stage1_windows is None or not len(stage1_windows) or rng.random() < WHOLE_VIDEO_SHARE:
            stage1_windows = np.array([[0.0, example.duration]])
        negative = replace(
            example,
            query=query.query,
            items=query.items,
            windows=np.zeros((0, 2)),
            stage1_windows=stage1_windows,
            is_absent=True,
        )
        return RowVariant(negative)

    def _mixed(self, rng: np.random.Generator, example: Example, index: int) -> RowVariant:
        other = self._draw_background(rng, example, index)
        if other is None:
            return RowVariant(example, row_flags=RowFlag.NO_BACKGROUND)
        own_positions, other_positions = (
            np.array(stored_frame_positions(video.total_frames, video.indices, self._config.frames))
            for video in (example, other)
        )
        nearest = background_frames(
            np.asarray(example.times, np.float64)[own_positions],
            example.windows,
            np.asarray(other.times, np.float64)[other_positions],
            other.duration,
        )
        if nearest is None:
            return RowVariant(example)
        frame_index = np.where(nearest < 0, -1, other_positions[nearest])
        captions = mix_captions(example.captions, example.windows, example.duration, other.captions, other.duration)
        return RowVariant(replace(example, captions=captions), background=Background(other, frame_index))

    def _draw_background(self, rng: np.random.Generator, example: Example, index: int) -> Example | None:
        pool = self._pool
        for row in rng.integers(len(pool.queries), size=MAX_DRAWS).tolist():
            video = pool.queries[row].video
            # The video, with its captions, is read only if its queries do not tell.
            if video == example.video or pool.may_hold(index, pool.content(video)):
                continue
            other = self._examples[row]
            if not pool.may_hold(index, pool.content(video, other.captions)):
                return other
        return None

    def _rng(self, epoch: int, index: int, stream: int) -> np.random.Generator:
        return np.random.default_rng((self._config.seed, epoch, index, stream))


def draw_inverted_task(rng: np.random.Generator, query: str) -> InvertedTask:
    """Draw the task to write a query, or one of its nouns and verbs."""
    words = [
        match.span()
        for match, (_, tag) in zip(WORD.finditer(query), tag_words(query), strict=True)
        if tag.startswith((NOUN_TAG, VERB_TAG))
    ]
    if not words or rng.random() >= WORD_SHARE:
        return whole_query(query)
    start, end = words[int(rng.integers(len(words)))]
    return InvertedTask(f"{query[:start]}{BLANK}{query[end:]}", query[start:end])
