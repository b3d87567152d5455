"""What a lesson asks of the encoder beside the answer: which frames are meant.

Twenty frames of an example say more than the two numbers of its answer, so the encoder learns where to look long before
the decoder can write it down. The pointer is thrown away after the lessons.
"""

import jax.numpy as jnp
import optax
from flax import nnx, struct
from jaxtyping import Array, Bool, Float

from calce_jax.batch import Batch, Data
from calce_jax.models.calce import Calce, Reading, answer_loss, shifted
from calce_jax.models.keyframes.plan import Plan
from calce_jax.models.layers import Linear
from calce_jax.models.prompt_packing import Packed
from calce_jax.models.t5 import T5Config


@struct.dataclass
class Truth:
    """What is to be found out about each query, W windows and T frames of its video."""

    windows: Float[Data, "B W 2"]  # seconds; (-1, -1) where there is none
    shows: Bool[Data, "B T lanes"]  # which lanes of which frames hold what is asked for, however it moves


@struct.dataclass
class Task:
    """Prompts, what was read for them, and what is to be found out."""

    rows: Batch
    reading: Reading
    truth: Truth


class Pointer(nnx.Module):
    """Points at frames: at the time of each, whether the answer holds it, begins, ends there; at its query tokens,
    whether they describe what the query names.
    """

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.when = Linear(config.width, 3, rngs=rngs)
        self.what = Linear(config.width, 1, rngs=rngs)

    def loss(self, memory: Float[Array, "B L E"], packed: Packed, task: Task, *, full: int) -> Float[Array, ""]:
        """Return the mean over the times, plus the mean over the query tokens; `full` is the number in a key frame."""
        plan, truth = task.reading.plan, task.truth
        visual = packed.mask & ~packed.text
        # The time of a frame stands right behind its query tokens.
        times = jnp.pad(visual[:, :-1], ((0, 0), (1, 0))) & packed.text
        slot = jnp.pad(packed.slot[:, :-1], ((0, 0), (1, 0)))
        wanted = jnp.take_along_axis(inside(task.rows, plan, truth), slot[:, :, None], axis=1)
        when = mean_where(self.when(memory), wanted, times)
        lanes = truth.shows.shape[2]
        shows = jnp.take_along_axis(truth.shows, plan.index[:, :, None], axis=1)
        here = jnp.take_along_axis(shows, packed.slot[:, :, None], axis=1)
        lane = jnp.minimum(packed.query * lanes // full, lanes - 1)
        in_lane = jnp.take_along_axis(here, lane[:, :, None], axis=2)[..., 0]
        named = jnp.where(packed.key, in_lane, here.any(axis=2))
        return when + mean_where(self.what(memory), named[:, :, None], visual)


def inside(rows: Batch, plan: Plan, truth: Truth) -> Bool[Array, "B S 3"]:
    """Return which slots lie in a true window, which begin one and which end one."""
    seconds = jnp.take_along_axis(rows.times, plan.index, axis=1)[:, :, None]
    within = (truth.windows[:, None, :, 0] <= seconds) & (seconds < truth.windows[:, None, :, 1])
    within = within.any(axis=-1) & plan.kept
    before = jnp.pad(within[:, :-1], ((0, 0), (1, 0)))
    after = jnp.pad(within[:, 1:], ((0, 0), (0, 1)))
    return jnp.stack([within, within & ~before, within & ~after], axis=-1)


def mean_where(
    logits: Float[Array, "B L K"], wanted: Bool[Array, "B L K"], counted: Bool[Array, "B L"]
) -> Float[Array, ""]:
    """Return the cross-entropy, summed over K, averaged over the positions that count."""
    each = optax.sigmoid_binary_cross_entropy(logits, wanted.astype(jnp.float32)).sum(axis=-1)
    return jnp.where(counted, each, 0.0).sum() / jnp.maximum(counted.sum(), 1).astype(jnp.float32)


def prompt_loss(
    model: Calce, pointer: Pointer, frames: Float[Array, "B S J E"], task: Task, length: int
) -> Float[Array, ""]:
    """Return the loss of the answers to these prompts, and of pointing; `frames` as by `Calce.described`."""
    rows, reading = task.rows, task.reading
    x, mask = model.lay_out(frames, rows, reading, length)
    memory = model.t5.encode(x, mask)
    answers = answer_loss(model.t5.decode(shifted(rows.labels), memory, mask), rows.labels)
    packed, full = model.packed(rows, reading, length), model.config.qformer.queries
    return answers.mean() + pointer.loss(memory, packed, task, full=full)
