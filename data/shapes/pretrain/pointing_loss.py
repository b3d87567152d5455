"""What a lesson asks of the encoder beside the answer: which frames are meant.

Twenty frames of an example say more than the two numbers of its answer, so the encoder learns where to look long before
the decoder can write it down. The pointer is thrown away after the lessons.
"""

import jax.numpy as jnp
import optax
from flax import nnx, struct
from jaxtyping import Array, Bool, Float

from calce_jax.batch import AnyArray, Batch
from calce_jax.models.calce import Calce, PromptSelection, answer_loss, shift_right
from calce_jax.models.keyframes.plan import FramePlan
from calce_jax.models.layers import Linear
from calce_jax.models.prompt_packing import PromptLayout
from calce_jax.models.t5 import T5Config


@struct.dataclass
class Labels:
    """What is to be found out about each query, W windows and T frames of its video."""

    windows: Float[AnyArray, "B W 2"]  # seconds; (-1, -1) where there is none
    lane_mask: Bool[AnyArray, "B T lanes"]  # which lanes of which frames hold what is asked for, however it moves


@struct.dataclass
class Task:
    """Prompts, what was read for them, and what is to be found out."""

    batch: Batch
    prompt_selection: PromptSelection
    labels: Labels


class PointingHead(nnx.Module):
    """Points at frames: at the time of each, whether the answer holds it, begins, ends there; at its query tokens,
    whether they describe what the query names.
    """

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.when = Linear(config.width, 3, rngs=rngs)
        self.what = Linear(config.width, 1, rngs=rngs)

    def loss(
        self, memory: Float[Array, "B L E"], packed: PromptLayout, task: Task, *, tokens_per_keyframe: int
    ) -> Float[Array, ""]:
        """Return the mean over the times, plus the mean over the query tokens; `tokens_per_keyframe` is the number in a key frame."""
        plan, labels = task.prompt_selection.frame_plan, task.labels
        visual = packed.mask & ~packed.is_text
        # The time of a frame stands right behind its query tokens.
        time_mask = jnp.pad(visual[:, :-1], ((0, 0), (1, 0))) & packed.is_text
        slot = jnp.pad(packed.slot[:, :-1], ((0, 0), (1, 0)))
        targets = jnp.take_along_axis(window_boundary_labels(task.batch, plan, labels), slot[:, :, None], axis=1)
        time_loss = masked_sigmoid_loss(self.when(memory), targets, time_mask)
        lanes = labels.lane_mask.shape[2]
        lane_mask = jnp.take_along_axis(labels.lane_mask, plan.frame_index[:, :, None], axis=1)
        slot_lanes = jnp.take_along_axis(lane_mask, packed.slot[:, :, None], axis=1)
        lane = jnp.minimum(packed.query_token * lanes // tokens_per_keyframe, lanes - 1)
        in_lane = jnp.take_along_axis(slot_lanes, lane[:, :, None], axis=2)[..., 0]
        lane_targets = jnp.where(packed.is_keyframe, in_lane, slot_lanes.any(axis=2))
        return time_loss + masked_sigmoid_loss(self.what(memory), lane_targets[:, :, None], visual)


def window_boundary_labels(batch: Batch, plan: FramePlan, labels: Labels) -> Bool[Array, "B S 3"]:
    """Return which slots lie in a true window, which begin one and which end one."""
    seconds = jnp.take_along_axis(batch.times, plan.frame_index, axis=1)[:, :, None]
    within = (labels.windows[:, None, :, 0] <= seconds) & (seconds < labels.windows[:, None, :, 1])
    within = within.any(axis=-1) & plan.slot_mask
    before = jnp.pad(within[:, :-1], ((0, 0), (1, 0)))
    after = jnp.pad(within[:, 1:], ((0, 0), (0, 1)))
    return jnp.stack([within, within & ~before, within & ~after], axis=-1)


def masked_sigmoid_loss(
    logits: Float[Array, "B L K"], targets: Bool[Array, "B L K"], mask: Bool[Array, "B L"]
) -> Float[Array, ""]:
    """Return the cross-entropy, summed over K, averaged over the positions that count."""
    losses = optax.sigmoid_binary_cross_entropy(logits, targets.astype(jnp.float32)).sum(axis=-1)
    return jnp.where(mask, losses, 0.0).sum() / jnp.maximum(mask.sum(), 1).astype(jnp.float32)


def prompt_loss(
    model: Calce, pointing_head: PointingHead, frames: Float[Array, "B S J E"], task: Task, prompt_length: int
) -> Float[Array, ""]:
    """Return the loss of the answers to these prompts, and of pointing; `frames` as by `Calce.described`."""
    batch, prompt_selection = task.batch, task.prompt_selection
    x, mask = model.assemble_prompt(frames, batch, prompt_selection, prompt_length)
    memory = model.t5.encode(x, mask)
    answers = answer_loss(model.t5.decode(shift_right(batch.labels), memory, mask), batch.labels)
    packed, tokens_per_keyframe = (
        model.prompt_layout(batch, prompt_selection, prompt_length),
        model.config.qformer.query_tokens,
    )
    return answers.mean() + pointing_head.loss(memory, packed, task, tokens_per_keyframe=tokens_per_keyframe)
