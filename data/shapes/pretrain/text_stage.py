"""The text stage: T5 learns its lessons (`data.shapes.pretrain.lessons`) about frames that are described by words.

The four query tokens of a key frame are replaced by the embeddings of colour, shape, colour, shape of its two lanes,
with the position of a shape added; the single token of a compressed frame, by their weighted sum. So T5 learns to find
the item of a query before there is a vision encoder.

With twenty frames from the start, nothing was learnt in 1,300 steps. The curriculum begins with a single frame, and
attention is initialised to attend to equal tokens; then a few hundred steps are enough.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from calce_jax.models.calce import Calce
from calce_jax.models.keyframes.plan import FramePlan
from calce_jax.models.selection import CaptionSelection, PromptSelection
from data.shapes.batches import QueryExample, SceneDataset
from data.shapes.pretrain.fit import fit
from data.shapes.pretrain.lessons import Lesson, LessonDataset, LessonExample, described_slot
from data.shapes.pretrain.pointing_loss import Labels, PointingHead, Task, prompt_loss

Layout = Literal["dense", "sparse", "stage2"]
KEYFRAME_FRACTION = 0.4  # of the frames of a prompt, drawn at random


@dataclass(frozen=True)
class CurriculumStage:
    """A part of the text stage.

    Fields:
      frames: of a prompt.
      steps: batches.
      length: of the prompts, tokens.
      layouts: how frames are drawn, in turn: "dense" consecutive ones of stage 1; "sparse" half as many, twice as far
        apart, of the whole video; "stage2" any of stage 2, with its prompts.
    """

    frames: int
    steps: int
    length: int
    layouts: tuple[Layout, ...] = ("dense",)


class FrameTextEmbedder(nnx.Module):
    """Embeds the words that describe a frame.

    Args:
      width: of T5.
      word_ids: T5 ids, from `word_token_ids`.
    """

    def __init__(self, width: int, word_ids: tuple[int, ...], *, rngs: nnx.Rngs):
        self.place = nnx.Param(0.5 * rngs.params.normal((width,)))
        self.word_ids = word_ids

    def __call__(
        self, model: Calce, word_indices: Int[Array, "*B 4"], positions: Float[Array, "*B 4"]
    ) -> Float[Array, "*B 4 E"]:
        """Return T5's embeddings of words, plus `positions` (-1 left, 1 right) times a learnt direction."""
        embedded = model.t5.shared(jnp.asarray(self.word_ids)[word_indices])
        return embedded + positions[..., None] * self.place[...].reshape((1,) * positions.ndim + (-1,))

    def embed_frames(
        self, model: Calce, word_indices: Int[Array, "B S 4"], positions: Float[Array, "B S 4"]
    ) -> Float[Array, "B S J E"]:
        """Return embeddings laid out as by `Calce.project_queries`: four words, then the compressed token."""
        word_tokens = self(model, word_indices, positions)
        compressed_tokens = jnp.swapaxes(model.query_proj(jnp.swapaxes(word_tokens, -1, -2)), -1, -2)
        return jnp.concatenate([word_tokens, compressed_tokens], axis=2)


def init_text_stage(model: Calce) -> None:
    """Initialise T5 in place so that a model of this size learns at all."""
    t5 = model.t5
    # With the transposed embedding as its head, T5 easily copies a number from the prompt.
    t5.lm_head.kernel[...] = t5.shared.embedding[...].T * (2.0 * t5.config.width**-0.5)
    # Keys equal to the queries: attention starts as attention to equal tokens.
    attention = t5.encoder.blocks.attention
    attention.k.kernel[...] = attention.q.kernel[...] * t5.config.head_width**0.5
    # A compressed frame starts as a sum in which the upper lane has the larger weight.
    model.query_proj.kernel[...] = jnp.asarray([[0.7], [0.7], [0.4], [0.4]])


def train_text_stage(
    model: Calce,
    embedder: FrameTextEmbedder,
    pointing_head: PointingHead,
    dataset: LessonDataset,
    *,
    curriculum: Sequence[CurriculumStage],
    shares: Mapping[Lesson, float],
    batch_size: int,
    peak_learning_rate: float,
    seed: int,
) -> None:
    """Train T5 in place; of each lesson a batch has its share."""
    rng = np.random.default_rng(seed)
    length_by_frames = {stage.frames: stage.length for stage in curriculum}
    # A sparse prompt has half the frames.
    length_by_frames |= {stage.frames // 2: stage.length for stage in curriculum if "sparse" in stage.layouts}

    def batches() -> Iterator[tuple[Any, ...]]:
        for stage in curriculum:
            for step in range(stage.steps):
                layout = stage.layouts[step % len(stage.layouts)]
                yield make_text_batch(rng, dataset, dataset.draw(rng, batch_size, shares), layout, stage.frames)

    def loss(modules: Any, batch: tuple[Any, ...]) -> Float[Array, ""]:
        model, embedder, pointing_head = modules["model"], modules["embedder"], modules["pointing_head"]
        word_indices, positions, task = batch
        frames = embedder.embed_frames(model, word_indices, positions)
        return prompt_loss(model, pointing_head, frames, task, length_by_frames[word_indices.shape[1]])

    modules = nnx.Dict(model=model, embedder=embedder, pointing_head=pointing_head)
    fit(
        "text stage",
        modules,
        ("t5", "query_proj", "embedder", "pointing_head"),
        batches(),
        loss,
        peak_learning_rate=peak_learning_rate,
        steps=sum(stage.steps for stage in curriculum),
    )


def make_text_batch(
    rng: np.random.Generator, dataset: LessonDataset, rows: list[LessonExample], layout: Layout, num_frames: int
) -> tuple[np.ndarray, np.ndarray, Task]:
    """Return word indices (int32, B S 4) and positions (float32, B S 4) of the frames of each prompt, and the task."""
    stage, step = (2, 1) if layout == "stage2" else (1, 2)
    index = np.stack([_sample_frames(rng, dataset, row, layout, num_frames) for row in rows])
    is_keyframe = rng.random(index.shape) < KEYFRAME_FRACTION
    for keyframe_mask, row, frames in zip(is_keyframe, rows, index * step, strict=True):
        if (slot := described_slot(row, frames)) is not None:
            keyframe_mask[slot] = True
    scene_and_frame = (np.array([row.scene_index for row in rows])[:, None], index * step)
    plan = FramePlan(
        frame_index=index,
        slot_mask=np.ones(index.shape, bool),
        is_keyframe=is_keyframe,
        cluster=np.zeros(index.shape, np.int32),
        reference_error=np.zeros(len(rows), bool),
    )
    is_target_caption = np.array([row.is_target_caption for row in rows])
    order = np.argsort(~is_target_caption, axis=1, kind="stable").astype(np.int32)[:, :5]
    caption_selection = CaptionSelection(
        caption_index=order,
        is_used=np.take_along_axis(is_target_caption, order, axis=1),
        similarity=is_target_caption.astype(np.float32),
    )
    prompt_selection = PromptSelection(
        frame_plan=plan, caption_selection=caption_selection, prompt_lengths=np.zeros(len(rows), np.int32)
    )
    answers = [dataset.answer(row, frames * step) for row, frames in zip(rows, index, strict=True)]
    labels = np.stack([dataset.answers.labels(text) for text in answers])
    batch = replace(dataset.make_batch(rows, stage), labels=labels)
    return (
        dataset.word_indices[scene_and_frame],
        dataset.positions[scene_and_frame],
        Task(batch, prompt_selection, make_labels(dataset, rows, stage)),
    )


def make_labels(dataset: SceneDataset, rows: Sequence[QueryExample], stage: int) -> Labels:
    """Return the targets of rows."""
    windows = np.full((len(rows), max(len(row.windows) for row in dataset.examples), 2), -1, np.float32)
    for i, row in enumerate(rows):
        windows[i, : len(row.windows)] = row.windows
    return Labels(
        windows=windows, lane_mask=np.stack([dataset.lane_mask(row) for row in rows])[:, :: 2 if stage == 1 else 1]
    )


def _sample_frames(
    rng: np.random.Generator, dataset: LessonDataset, row: LessonExample, layout: Layout, num_frames: int
) -> np.ndarray:
    """Return frame numbers, ascending; dense ones are around a border of the answer.

    The frame that `describe` asks about is among them.
    """
    if layout == "sparse":
        offset = int(rng.integers(2)) if row.target_frame is None else row.target_frame // 2 % 2
        return np.arange(offset, dataset.num_frames // 2, 2, dtype=np.int32)
    if layout == "stage2":
        others = [frame for frame in rng.permutation(dataset.num_frames) if frame != row.target_frame]
        kept = others[:num_frames] if row.target_frame is None else [row.target_frame, *others[: num_frames - 1]]
        return np.sort(kept).astype(np.int32)
    seconds = dataset.times[row.scene_index][::2]
    if row.target_frame is not None:
        middle, latest = row.target_frame // 2, num_frames - 1
    else:
        within = np.array([any(start <= at < end for start, end in row.windows) for at in seconds])
        borders = np.flatnonzero(np.diff(within.astype(int)))
        middle = int(rng.choice(borders)) + 1 if len(borders) else int(rng.integers(len(within)))
        latest = num_frames
    first = min(max(middle - int(rng.integers(latest + 1)), 0), len(seconds) - num_frames)
    return np.arange(first, first + num_frames, dtype=np.int32)
