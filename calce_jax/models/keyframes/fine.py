"""Selection of stage 2: frames in and around the stage-1 windows stay, at most half of all frames.

B batch, T frames of a padded video, S = T // 2 slots, D width of a frame's features, C clusters, W windows,
E draws.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calce_jax.config import Behaviour
from calce_jax.models.keyframes.borders import dilate, mark_cluster_borders
from calce_jax.models.keyframes.compress import compress
from calce_jax.models.keyframes.dpc_knn import dpc_knn
from calce_jax.models.keyframes.plan import FramePlan, build_frame_plan

MAX_ELECTED_CLUSTERS = 8  # clusters that stay as a whole


def select_fine(
    features: Float[Array, "B T D"],
    times: Float[Array, "B T"],
    frame_mask: Bool[Array, "B T"],
    windows: Float[Array, "B W 2"],
    window_mask: Bool[Array, "B W"],
    *,
    clusters: int,
    dilation: int,
    filter_dilation: int,
    is_speech_query: Bool[Array, " B"],
    has_speech: Bool[Array, "B T"],
    behaviour: Behaviour = "default",
    noise: Float[Array, "B 2 T"] | None = None,
    draws: Float[Array, "B E 2"] | None = None,
) -> FramePlan:
    """Select the frames of each video that stay, and the key frames among them.

    Each frame inside a window is a vote for its cluster. The frames of the eight clusters with most votes and those
    inside the windows stay, dilated by `filter_dilation`. They are clustered again; key frames are the borders of these
    clusters, or for a speech query the frames during speech, dilated by `dilation`. If more than half of the video's
    frames stay, `compress` removes the excess.

    Args:
      features: float32, the Q-Former's query tokens of a frame, each of norm 1, concatenated.
      times: of the frames, in seconds.
      frame_mask: real frames, a prefix of T; padding does not affect the plan.
      windows: (start, end) in seconds. A window holds the frames from the first whose rounded time is at least its
        start up to, but without, the last whose rounded time is at most its end.
      window_mask: real windows.
      clusters: C.
      dilation: frames by which key frames are dilated.
      filter_dilation: frames by which the frames that stay are dilated.
      is_speech_query: the query is about speech, and the video has captions.
      has_speech: frames during speech.
      behaviour: by default at least one frame stays: a reversed window is swapped, a window outside the video takes
        the nearest frame, one between two frames takes both, and without windows all frames stay. The second
        clustering uses only the frames that stay. A speech query without a frame of speech among them uses cluster
        borders. Under "reference", windows outside the video set `reference_error`, as do fewer frames than clusters;
        windows over fewer than two frames hold none, even if the plan is then empty; the second clustering masks frames
        as the original does; a speech query may have no key frame. The original's sort of votes is unstable; here ties
        go to the cluster of lower id under both.
      noise: for the two clusterings, see `dpc_knn`.
      draws: see `compress`; without them the removal is deterministic under both behaviours.

    Raises:
      ValueError: T < 2: half of the frames would be none.
    """
    if frame_mask.shape[1] < 2:
        raise ValueError(
            f"frame_mask: must have T >= 2, because stage 2 keeps half of the frames, got {frame_mask.shape[1]}"
        )
    select_video = partial(
        _select, clusters=clusters, dilation=dilation, filter_dilation=filter_dilation, behaviour=behaviour
    )
    return jax.vmap(select_video)(
        features,
        times,
        frame_mask,
        windows,
        window_mask,
        is_speech_query=is_speech_query,
        has_speech=has_speech,
        noise=noise,
        draws=draws,
    )


def _select(
    features: Float[Array, "T D"],
    times: Float[Array, " T"],
    frame_mask: Bool[Array, " T"],
    windows: Float[Array, "W 2"],
    window_mask: Bool[Array, " W"],
    *,
    is_speech_query: Bool[Array, ""],
    has_speech: Bool[Array, " T"],
    noise: Float[Array, "2 T"] | None,
    draws: Float[Array, "E 2"] | None,
    clusters: int,
    dilation: int,
    filter_dilation: int,
    behaviour: Behaviour,
) -> FramePlan:
    """`select_fine` for one video."""
    is_reference = behaviour == "reference"
    first_noise, second_noise = (None, None) if noise is None else noise
    num_frames, num_present = frame_mask.shape[0], frame_mask.sum(dtype=jnp.int32)

    cluster = dpc_knn(features, frame_mask, clusters=clusters, noise=first_noise)
    in_window, outside_video = _frames_in_windows(windows, times, frame_mask, behaviour=behaviour)
    in_window = in_window & window_mask[:, None]
    is_selected = (
        dilate(_frames_of_top_clusters(cluster, in_window, clusters=clusters) | in_window.any(0), filter_dilation)
        & frame_mask
    )
    if not is_reference:
        is_selected = is_selected | (frame_mask & ~window_mask.any())

    if is_reference:
        second_cluster = dpc_knn(
            features, frame_mask, clusters=clusters, far_mask=frame_mask & ~is_selected, noise=second_noise
        )
    else:
        second_cluster = dpc_knn(features, is_selected, clusters=clusters, noise=second_noise)
        is_speech_query = is_speech_query & (has_speech & is_selected).any()
    is_keyframe = jnp.where(
        is_speech_query,
        has_speech & frame_mask,
        mark_cluster_borders(jnp.where(is_selected, second_cluster, -1), frame_mask),
    )
    is_keyframe = dilate(is_keyframe, dilation) & is_selected

    max_frames = num_present // 2 if is_reference else jnp.maximum(num_present // 2, 1)
    is_keyframe, is_compressed = compress(is_keyframe, is_selected & ~is_keyframe, max_frames, draws)
    error = ((outside_video & window_mask).any() | (num_present < clusters)) & is_reference
    return build_frame_plan(
        is_keyframe, is_compressed, num_slots=num_frames // 2, cluster=cluster, reference_error=error
    )


def _frames_in_windows(
    windows: Float[Array, "W 2"], times: Float[Array, " T"], frame_mask: Bool[Array, " T"], *, behaviour: Behaviour
) -> tuple[Bool[Array, "W T"], Bool[Array, " W"]]:
    """Return the frames of each window, and which windows lie outside the video; see `select_fine`."""
    if behaviour == "default":
        windows = jnp.sort(windows, axis=-1)
    seconds = jnp.round(times)[None, :]
    after_start = frame_mask[None, :] & (seconds >= windows[:, :1])
    before_end = frame_mask[None, :] & (seconds <= windows[:, 1:])

    frame = jnp.arange(times.shape[0])[None, :]
    start = jnp.where(after_start, frame, frame_mask.sum() - 1).min(-1, keepdims=True)
    end = jnp.where(before_end, frame, 0).max(-1, keepdims=True)
    if behaviour == "default":
        # For a window between two frames the end comes before the start: both frames are equally near.
        start, end = jnp.minimum(start, end), jnp.maximum(start + 1, end)
    outside_video = ~(after_start.any(-1) & before_end.any(-1))
    return frame_mask[None, :] & (frame >= start) & (frame < end), outside_video


def _frames_of_top_clusters(
    cluster: Int[Array, " T"], in_window: Bool[Array, "W T"], *, clusters: int
) -> Bool[Array, " T"]:
    """Mark the frames of the clusters with most votes, one vote for each pair of a frame and a window it is in."""
    membership = cluster[None, :] == jnp.arange(clusters)[:, None]
    votes = jnp.where(membership, in_window.sum(0)[None, :], 0).sum(-1)
    top_clusters = jax.lax.top_k(votes, min(MAX_ELECTED_CLUSTERS, clusters))[1]
    elected = jnp.zeros(clusters, bool).at[top_clusters].set(votes[top_clusters] > 0)
    return (membership & elected[:, None]).any(0)
