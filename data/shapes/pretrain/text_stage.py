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

from calce_jax.models.calce import Calce, Reading
from calce_jax.models.keyframes.plan import Plan
from calce_jax.models.prompt_packing import Choice
from data.shapes.batches import Asked, Pool
from data.shapes.pretrain.fit import learn
from data.shapes.pretrain.pointing_loss import Pointer, Task, Truth, prompt_loss

KEY = 0.4  # share of the frames that are told in full


@dataclass(frozen=True)
class Course:
    """How many frames are told, for how many steps, and the length of the prompts in tokens."""

    frames: int
    steps: int
    length: int


class Teller(nnx.Module):
    """Makes the embeddings that stand for a frame that is told."""

    def __init__(self, width: int, words: tuple[int, ...], *, rngs: nnx.Rngs):
        self.place = nnx.Param(0.5 * rngs.params.normal((width,)))
        self.words = words  # T5 ids of nothing, the colours and the shapes

    def __call__(self, model: Calce, said: Int[Array, "*B 4"], places: Float[Array, "*B 4"]) -> Float[Array, "*B 4 E"]:
        """Return the embeddings of words, each with its place (-1 far left, 1 far right) along one direction."""
        embedded = model.t5.shared(jnp.asarray(self.words)[said])
        return embedded + places[..., None] * self.place[...].reshape((1,) * places.ndim + (-1,))

    def described(
        self, model: Calce, said: Int[Array, "B S 4"], places: Float[Array, "B S 4"]
    ) -> Float[Array, "B S J E"]:
        """Return what `Calce.described` does of frames that are seen."""
        words = self(model, said, places)
        few = jnp.swapaxes(model.query_proj(jnp.swapaxes(words, -1, -2)), -1, -2)
        return jnp.concatenate([words, few], axis=2)


def prepare_to_read(model: Calce) -> None:
    """Give T5 the head start that its size cannot do without; in place."""
    t5 = model.t5
    # A head that starts as the embedding turned round finds it easy to repeat a number that was read.
    t5.lm_head.kernel[...] = t5.shared.embedding[...].T * (2.0 * t5.config.width**-0.5)
    # Keys that start like queries look for what is alike.
    attention = t5.encoder.blocks.attention
    attention.k.kernel[...] = attention.q.kernel[...] * t5.config.head_width**0.5
    # A compressed frame starts as a sum in which the upper lane weighs more.
    model.query_proj.kernel[...] = jnp.asarray([[0.7], [0.7], [0.4], [0.4]])


def learn_to_read(
    model: Calce,
    teller: Teller,
    pointer: Pointer,
    pool: Pool,
    *,
    courses: Sequence[Course],
    batch: int,
    rate: float,
    fine_every: int,
    seed: int,
) -> None:
    """The lesson; in place. One in `fine_every` batches with all frames has the prompts of stage 2."""
    rng = np.random.default_rng(seed)
    length_of = {course.frames: course.length for course in courses}

    def batches() -> Iterator[tuple[Any, ...]]:
        for course in courses:
            for number in range(course.steps):
                fine = course.frames * 2 == pool.frames and number % fine_every == fine_every - 1
                rows = [pool.asked[i] for i in rng.integers(len(pool.asked), size=batch)]
                yield told(rng, pool, rows, 2 if fine else 1, course.frames)

    def loss(both: Any, batch: tuple[Any, ...]) -> Float[Array, ""]:
        model, teller, pointer = both["model"], both["teller"], both["pointer"]
        said, places, task = batch
        frames = teller.described(model, said, places)
        return prompt_loss(model, pointer, frames, task, length_of[said.shape[1]])

    both = nnx.Dict(model=model, teller=teller, pointer=pointer)
    learn(
        "reading",
        both,
        ("t5", "query_proj", "teller", "pointer"),
        batches(),
        loss,
        rate=rate,
        steps=sum(course.steps for course in courses),
    )


def told(
    rng: np.random.Generator, pool: Pool, rows: list[Asked], stage: int, frames: int
) -> tuple[np.ndarray, np.ndarray, Task]:
    """Return a batch: what stands in the place of its frames, words and places, and the task."""
    step = 2 if stage == 1 else 1
    index = np.stack([_shown(rng, pool, row, stage, frames) for row in rows])
    key = rng.random(index.shape) < KEY
    at = (np.array([row.scene for row in rows])[:, None], index * step)
    plan = Plan(
        index=index,
        kept=np.ones(index.shape, bool),
        key=key,
        cluster=np.zeros(index.shape, np.int32),
        error=np.zeros(len(rows), bool),
    )
    about = np.array([row.about for row in rows])
    order = np.argsort(~about, axis=1, kind="stable").astype(np.int32)[:, :5]
    choice = Choice(order=order, used=np.take_along_axis(about, order, axis=1), similarity=about.astype(np.float32))
    reading = Reading(plan=plan, choice=choice, needed=np.zeros(len(rows), np.int32))
    return pool.said[at], pool.places[at], Task(pool.batch(rows, stage), reading, truth_of(pool, rows, stage))


def truth_of(pool: Pool, rows: list[Asked], stage: int) -> Truth:
    """Return what is to be found out."""
    windows = np.full((len(rows), max(len(row.query.windows) for row in pool.asked), 2), -1, np.float32)
    for i, row in enumerate(rows):
        windows[i, : len(row.query.windows)] = row.query.windows
    return Truth(windows=windows, shows=np.stack([pool.shows(row) for row in rows])[:, :: 2 if stage == 1 else 1])


def _shown(rng: np.random.Generator, pool: Pool, row: Asked, stage: int, frames: int) -> np.ndarray:
    """Choose so many frames: in a row around a border of the answer in stage 1, any in stage 2."""
    if stage == 2:
        return np.sort(rng.permutation(pool.frames)[:frames]).astype(np.int32)
    seconds = pool.times[row.scene][::2]
    within = np.array([any(start <= at < end for start, end in row.query.windows) for at in seconds])
    borders = np.flatnonzero(np.diff(within.astype(int)))
    middle = int(rng.choice(borders)) + 1 if len(borders) else int(rng.integers(len(within)))
    first = min(max(middle - int(rng.integers(frames + 1)), 0), len(within) - frames)
    return np.arange(first, first + frames, dtype=np.int32)
