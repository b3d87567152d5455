"""The loss of the text stage: the answer, and an auxiliary loss on the encoder, which frames the query is about.

The auxiliary loss has a target for each of twenty frames, an answer only two numbers, so the encoder learns much sooner
than from the answers alone. Its head is discarded after pretraining.

Dimensions: B batch, W windows of a query, T frames of a video, S slots of the frame plan, J embeddings of a slot,
L positions of the prompt, E width of T5.
"""

import jax.numpy as jnp
import optax
from flax import nnx, struct
from jaxtyping import Array, Bool, Float

from calce_jax.batch import AnyArray, Batch
from calce_jax.models.calce import Calce, answer_loss, shift_right
from calce_jax.models.calce_sizes import T5Config
from calce_jax.models.keyframes.plan import FramePlan
from calce_jax.models.layers import Linear
from calce_jax.models.prompt_packing import PromptLayout
from calce_jax.models.selection import PromptSelection


@struct.dataclass
class Labels:
    """Targets of a batch of queries."""

    windows: Float[AnyArray, "B W 2"]  # true windows, seconds; (-1, -1) where padded
    lane_mask: Bool[AnyArray, "B T lanes"]  # lanes of each frame that show the item of the query, in any motion


@struct.dataclass
class Task:
    """A batch, the selection of frames and captions for its prompts, and its targets."""

    batch: Batch
    prompt_selection: PromptSelection
    labels: Labels


class PointingHead(nnx.Module):
    """Classifies encoder outputs.

    At the time token of a frame: whether the answer contains the frame, begins there, or has just ended. At its query
    tokens: whether they show the item of the query.
    """

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.when = Linear(config.width, 3, rngs=rngs)
        self.what = Linear(config.width, 1, rngs=rngs)

    def loss(
        self, memory: Float[Array, "B L E"], layout: PromptLayout, task: Task, *, tokens_per_keyframe: int
    ) -> Float[Array, ""]:
        """Return the mean loss of the time tokens plus that of the query tokens.

        Args:
          memory: outputs of T5's encoder.
          layout: layout of the prompts.
          task: batch, selection and targets.
          tokens_per_keyframe: query tokens of a key frame, the first half of which are of the upper lane.
        """
        plan, labels = task.prompt_selection.frame_plan, task.labels
        visual = layout.mask & ~layout.is_text
        # The time token of a frame follows its query tokens.
        time_mask = jnp.pad(visual[:, :-1], ((0, 0), (1, 0))) & layout.is_text
        slot = jnp.pad(layout.slot[:, :-1], ((0, 0), (1, 0)))
        targets = jnp.take_along_axis(window_boundary_labels(task.batch, plan, labels), slot[:, :, None], axis=1)
        time_loss = masked_sigmoid_loss(self.when(memory), targets, time_mask)
        lanes = labels.lane_mask.shape[2]
        lane_mask = jnp.take_along_axis(labels.lane_mask, plan.frame_index[:, :, None], axis=1)
        slot_lanes = jnp.take_along_axis(lane_mask, layout.slot[:, :, None], axis=1)
        lane = jnp.minimum(layout.query_token * lanes // tokens_per_keyframe, lanes - 1)
        in_lane = jnp.take_along_axis(slot_lanes, lane[:, :, None], axis=2)[..., 0]
        lane_targets = jnp.where(layout.is_keyframe, in_lane, slot_lanes.any(axis=2))
        return time_loss + masked_sigmoid_loss(self.what(memory), lane_targets[:, :, None], visual)


def window_boundary_labels(batch: Batch, plan: FramePlan, labels: Labels) -> Bool[Array, "B S 3"]:
    """Return which slots are in a true window, which begin one, and which are the first after one."""
    seconds = jnp.take_along_axis(batch.times, plan.frame_index, axis=1)[:, :, None]
    within = (labels.windows[:, None, :, 0] <= seconds) & (seconds < labels.windows[:, None, :, 1])
    within = within.any(axis=-1) & plan.slot_mask
    before = jnp.pad(within[:, :-1], ((0, 0), (1, 0)))
    return jnp.stack([within, within & ~before, before & ~within & plan.slot_mask], axis=-1)


def masked_sigmoid_loss(
    logits: Float[Array, "B L K"], targets: Bool[Array, "B L K"], mask: Bool[Array, "B L"]
) -> Float[Array, ""]:
    """Return the binary cross-entropy, summed over K and averaged over the positions of `mask`."""
    losses = optax.sigmoid_binary_cross_entropy(logits, targets.astype(jnp.float32)).sum(axis=-1)
    return jnp.where(mask, losses, 0.0).sum() / jnp.maximum(mask.sum(), 1).astype(jnp.float32)


def prompt_loss(
    model: Calce, pointing_head: PointingHead, frames: Float[Array, "B S J E"], task: Task, prompt_length: int
) -> Float[Array, ""]:
    """Return the loss of the answers plus that of the pointing head; `frames` as `Calce.project_queries` returns."""
    batch, prompt_selection = task.batch, task.prompt_selection
    x, mask = model.assemble_prompt(frames, batch, prompt_selection, prompt_length)
    memory = model.t5.encode(x, mask)
    answers = answer_loss(model.t5.decode(shift_right(batch.labels), memory, mask), batch.labels)
    layout = model.prompt_layout(batch, prompt_selection, prompt_length)
    tokens_per_keyframe = model.config.qformer.query_tokens
    return answers.mean() + pointing_head.loss(memory, layout, task, tokens_per_keyframe=tokens_per_keyframe)
