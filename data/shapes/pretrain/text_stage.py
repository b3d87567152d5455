"""The first lesson: T5 answers queries about scenes that are told to it.

Where a key frame's four query tokens will stand, stand the names of what is in its two lanes: colour, shape, colour,
shape, each shape with its place added. Where a compressed frame's one token will stand, stands their weighted sum. So
T5 learns to look for what a query names, long before there are eyes to see it.

Told twenty frames at once, nothing was learnt in 1,300 steps. The lesson begins with one frame, where the only other
mention of a shape is the query's, and attention begins as a look at whatever is alike; then a few hundred steps do.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from calce_jax.models.calce import Calce, PromptSelection
from calce_jax.models.keyframes.plan import FramePlan
from calce_jax.models.prompt_packing import CaptionSelection
from data.shapes.batches import QueryExample, SceneDataset
from data.shapes.pretrain.fit import fit
from data.shapes.pretrain.pointing_loss import Labels, PointingHead, Task, prompt_loss

KEYFRAME_FRACTION = 0.4  # share of the frames that are told in full


@dataclass(frozen=True)
class CurriculumStage:
    """How many frames are told, for how many steps, and the length of the prompts in tokens."""

    frames: int
    steps: int
    length: int


class FrameTextEmbedder(nnx.Module):
    """Makes the embeddings that stand for a frame that is told."""

    def __init__(self, width: int, word_ids: tuple[int, ...], *, rngs: nnx.Rngs):
        self.place = nnx.Param(0.5 * rngs.params.normal((width,)))
        self.word_ids = word_ids  # T5 ids of nothing, the colours and the shapes

    def __call__(
        self, model: Calce, word_indices: Int[Array, "*B 4"], positions: Float[Array, "*B 4"]
    ) -> Float[Array, "*B 4 E"]:
        """Return the embeddings of words, each with its place (-1 far left, 1 far right) along one direction."""
        embedded = model.t5.shared(jnp.asarray(self.word_ids)[word_indices])
        return embedded + positions[..., None] * self.place[...].reshape((1,) * positions.ndim + (-1,))

    def embed_frames(
        self, model: Calce, word_indices: Int[Array, "B S 4"], positions: Float[Array, "B S 4"]
    ) -> Float[Array, "B S J E"]:
        """Return what `Calce.described` does of frames that are seen."""
        word_tokens = self(model, word_indices, positions)
        compressed_tokens = jnp.swapaxes(model.query_proj(jnp.swapaxes(word_tokens, -1, -2)), -1, -2)
        return jnp.concatenate([word_tokens, compressed_tokens], axis=2)


def init_text_stage(model: Calce) -> None:
    """Give T5 the head start that its size cannot do without; in place."""
    t5 = model.t5
    # A head that starts as the embedding turned round finds it easy to repeat a number that was read.
    t5.lm_head.kernel[...] = t5.shared.embedding[...].T * (2.0 * t5.config.width**-0.5)
    # Keys that start like queries look for what is alike.
    attention = t5.encoder.blocks.attention
    attention.k.kernel[...] = attention.q.kernel[...] * t5.config.head_width**0.5
    # A compressed frame starts as a sum in which the upper lane weighs more.
    model.query_proj.kernel[...] = jnp.asarray([[0.7], [0.7], [0.4], [0.4]])


def train_text_stage(
    model: Calce,
    embedder: FrameTextEmbedder,
    pointing_head: PointingHead,
    dataset: SceneDataset,
    *,
    curriculum: Sequence[CurriculumStage],
    batch_size: int,
    peak_learning_rate: float,
    stage2_every: int,
    seed: int,
) -> None:
    """The lesson; in place. One in `stage2_every` batches with all frames has the prompts of stage 2."""
    rng = np.random.default_rng(seed)
    length_by_frames = {course.frames: course.length for course in curriculum}

    def batches() -> Iterator[tuple[Any, ...]]:
        for course in curriculum:
            for number in range(course.steps):
                is_stage2 = course.frames * 2 == dataset.num_frames and number % stage2_every == stage2_every - 1
                rows = [dataset.examples[i] for i in rng.integers(len(dataset.examples), size=batch_size)]
                yield make_text_batch(rng, dataset, rows, 2 if is_stage2 else 1, course.frames)

    def loss(modules: Any, batch: tuple[Any, ...]) -> Float[Array, ""]:
        model, embedder, pointing_head = modules["model"], modules["teller"], modules["pointer"]
        word_indices, positions, task = batch
        frames = embedder.described(model, word_indices, positions)
        return prompt_loss(model, pointing_head, frames, task, length_by_frames[word_indices.shape[1]])

    modules = nnx.Dict(model=model, teller=embedder, pointer=pointing_head)
    fit(
        "reading",
        modules,
        ("t5", "query_proj", "teller", "pointer"),
        batches(),
        loss,
        peak_learning_rate=peak_learning_rate,
        steps=sum(course.steps for course in curriculum),
    )


def make_text_batch(
    rng: np.random.Generator, dataset: SceneDataset, rows: list[QueryExample], stage: int, num_frames: int
) -> tuple[np.ndarray, np.ndarray, Task]:
    """Return a batch: what stands in the place of its frames, words and places, and the task."""
    step = 2 if stage == 1 else 1
    index = np.stack([_sample_frames(rng, dataset, row, stage, num_frames) for row in rows])
    is_keyframe = rng.random(index.shape) < KEYFRAME_FRACTION
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
    choice = CaptionSelection(
        caption_index=order,
        is_used=np.take_along_axis(is_target_caption, order, axis=1),
        similarity=is_target_caption.astype(np.float32),
    )
    prompt_selection = PromptSelection(
        frame_plan=plan, caption_selection=choice, prompt_lengths=np.zeros(len(rows), np.int32)
    )
    return (
        dataset.word_indices[scene_and_frame],
        dataset.positions[scene_and_frame],
        Task(dataset.make_batch(rows, stage), prompt_selection, make_labels(dataset, rows, stage)),
    )


def make_labels(dataset: SceneDataset, rows: list[QueryExample], stage: int) -> Labels:
    """Return what is to be found out."""
    windows = np.full((len(rows), max(len(row.query.windows) for row in dataset.examples), 2), -1, np.float32)
    for i, row in enumerate(rows):
        windows[i, : len(row.query.windows)] = row.query.windows
    return Labels(
        windows=windows, lane_mask=np.stack([dataset.lane_mask(row) for row in rows])[:, :: 2 if stage == 1 else 1]
    )


def _sample_frames(
    rng: np.random.Generator, dataset: SceneDataset, row: QueryExample, stage: int, num_frames: int
) -> np.ndarray:
    """Choose so many frames: in a row around a border of the answer in stage 1, any in stage 2."""
    if stage == 2:
        return np.sort(rng.permutation(dataset.num_frames)[:num_frames]).astype(np.int32)
    seconds = dataset.times[row.scene_index][::2]
    within = np.array([any(start <= at < end for start, end in row.query.windows) for at in seconds])
    borders = np.flatnonzero(np.diff(within.astype(int)))
    middle = int(rng.choice(borders)) + 1 if len(borders) else int(rng.integers(len(within)))
    first = min(max(middle - int(rng.integers(num_frames + 1)), 0), len(within) - num_frames)
    return np.arange(first, first + num_frames, dtype=np.int32)
