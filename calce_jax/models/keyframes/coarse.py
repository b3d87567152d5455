"""Selection of stage 1: every frame stays, and key frames keep all their query tokens.

B batch, T frames of a padded video, D width of a frame's features, C clusters.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from calce_jax.config import Behaviour, KeyframeMode
from calce_jax.models.keyframes.borders import dilate, mark_cluster_borders, mark_frames_beside_gaps
from calce_jax.models.keyframes.dpc_knn import dpc_knn
from calce_jax.models.keyframes.plan import FramePlan, build_frame_plan


def select_coarse(
    features: Float[Array, "B T D"],
    frame_mask: Bool[Array, "B T"],
    *,
    mode: KeyframeMode,
    clusters: int,
    dilation: int,
    is_speech_query: Bool[Array, " B"],
    has_speech: Bool[Array, "B T"],
    behaviour: Behaviour = "default",
    noise: Float[Array, "B T"] | None = None,
) -> FramePlan:
    """Select the key frames of each video; all other frames are compressed.

    Args:
      features: float32, the mean over a frame's tokens.
      frame_mask: real frames, a prefix of T; padding does not affect the plan.
      mode: how key frames are defined. "cluster": borders of clusters, and the first and last frame. "information":
        both frames of the third of neighbouring pairs that are least similar. "interval": every second frame. "none":
        no frame; "all": every frame. The first two are dilated.
      clusters: C.
      dilation: frames on either side of a key frame that become key frames too.
      is_speech_query: the query is about speech, and the video has captions.
      has_speech: frames during speech. Where `is_speech_query`, these are the key frames instead, not dilated.
      behaviour: by default a speech query without a frame of speech uses `mode`, and in a video with fewer frames than
        clusters every frame is a cluster. Under "reference" the former has no key frame, and `reference_error` marks
        the latter, on which the original stops.
      noise: see `dpc_knn`.
    """
    select_video = partial(_select, mode=mode, clusters=clusters, dilation=dilation, behaviour=behaviour)
    return jax.vmap(select_video)(
        features, frame_mask, is_speech_query=is_speech_query, has_speech=has_speech, noise=noise
    )


def _select(
    features: Float[Array, "T D"],
    frame_mask: Bool[Array, " T"],
    *,
    is_speech_query: Bool[Array, ""],
    has_speech: Bool[Array, " T"],
    noise: Float[Array, " T"] | None,
    mode: KeyframeMode,
    clusters: int,
    dilation: int,
    behaviour: Behaviour,
) -> FramePlan:
    """`select_coarse` for one video."""
    num_frames = frame_mask.shape[0]
    cluster = jnp.where(frame_mask, jnp.int32(0), -1)
    error = jnp.zeros((), bool)
    if mode == "cluster":
        cluster = dpc_knn(features, frame_mask, clusters=clusters, noise=noise)
        is_keyframe = dilate(mark_cluster_borders(cluster, frame_mask), dilation)
        error = (frame_mask.sum() < clusters) & (behaviour == "reference")
    elif mode == "information":
        is_keyframe = dilate(_information_keyframes(features, frame_mask), dilation)
    elif mode == "interval":
        is_keyframe = jnp.arange(num_frames) % 2 == 1
    else:
        is_keyframe = jnp.full(num_frames, mode == "all")

    has_speech = has_speech & frame_mask
    if behaviour == "default":
        is_speech_query = is_speech_query & has_speech.any()
    is_keyframe = jnp.where(is_speech_query, has_speech, is_keyframe & frame_mask)
    return build_frame_plan(
        is_keyframe, frame_mask & ~is_keyframe, num_slots=num_frames, cluster=cluster, reference_error=error
    )


def _information_keyframes(features: Float[Array, "T D"], frame_mask: Bool[Array, " T"]) -> Bool[Array, " T"]:
    """Mark both frames of the t // 3 neighbouring pairs of least cosine similarity, for t real frames."""
    normalised = features / jnp.maximum(jnp.linalg.norm(features, axis=-1, keepdims=True), 1e-8)
    similarity = jnp.where(frame_mask[1:], (normalised[1:] * normalised[:-1]).sum(-1), jnp.inf)
    similarity_order = similarity.argsort().argsort()
    return mark_frames_beside_gaps(similarity_order < frame_mask.sum() // 3)
