"""Stage 2: the windows that stage 1 found elect the frames that stay; at most half of all frames do.

B batch, T frames of a padded video, S = T // 2 slots, D width of a frame's features, C clusters, W windows,
E draws.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calce_jax.config import Behaviour
from calce_jax.models.keyframes.borders import borders, dilate
from calce_jax.models.keyframes.compress import compress
from calce_jax.models.keyframes.dpc_knn import dpc_knn
from calce_jax.models.keyframes.plan import Plan, lay_out

ELECTED = 8  # clusters that the windows may elect


def select_fine(
    features: Float[Array, "B T D"],
    times: Float[Array, "B T"],
    present: Bool[Array, "B T"],
    windows: Float[Array, "B W 2"],
    window_valid: Bool[Array, "B W"],
    *,
    clusters: int,
    dilation: int,
    filter_dilation: int,
    talk: Bool[Array, " B"],
    spoken: Bool[Array, "B T"],
    behaviour: Behaviour = "default",
    noise: Float[Array, "B 2 T"] | None = None,
    draws: Float[Array, "B E 2"] | None = None,
) -> Plan:
    """Choose the frames of each video that stay, and the key frames among them.

    The frames inside the windows vote for their clusters. The frames of the eight clusters with most votes and those
    inside the windows stay, with `filter_dilation` frames on either side. They are clustered again; key frames are the
    borders of these clusters, or the spoken frames for a query about talking, with `dilation` frames on either side.
    What is more than half of the video's frames is thinned out by `compress`.

    Args:
      features: float32, the Q-Former's queries of a frame, each of norm 1, side by side.
      times: of the frames, in seconds.
      present: real frames, a prefix of T; the plan equals that of the video without the others.
      windows: (start, end) in seconds. A window reaches from the first frame whose rounded time is not before its start
        to the last whose rounded time is not after its end; that last frame is not in it.
      window_valid: which windows there are.
      clusters: C.
      dilation: frames by which key frames are dilated.
      filter_dilation: frames by which the frames that stay are dilated.
      talk: the query is about somebody talking, and the video has captions.
      spoken: somebody talks while the frame is shown.
      behaviour: the default always keeps a frame at least: a window that ends before it starts is turned round, one
        outside the video takes the nearest frame, one between frames the frames around it, and without a window all
        frames stay. The second clustering sees only the frames that stay. A talk query none of whose spoken frames stay
        keeps the borders. Under "reference", windows outside the video set `error`, as do fewer frames than
        clusters; windows over fewer than two frames elect none, even if the plan is then empty; the second clustering
        masks as the original does; a talk query may have no key frame. The original sorts votes unstably; here equal
        votes go to the cluster of lower id under both.
      noise: for the two clusterings, see `dpc_knn`.
      draws: see `compress`; without them thinning is deterministic under both behaviours.

    Raises:
      ValueError: if T < 2, where half of the frames is none.
    """
    if present.shape[1] < 2:
        raise ValueError(f"present: {present.shape[1]} frame a video; stage 2 keeps half of them and needs at least 2")
    one = partial(_select, clusters=clusters, dilation=dilation, filter_dilation=filter_dilation, behaviour=behaviour)
    return jax.vmap(one)(
        features, times, present, windows, window_valid, talk=talk, spoken=spoken, noise=noise, draws=draws
    )


def _select(
    features: Float[Array, "T D"],
    times: Float[Array, " T"],
    present: Bool[Array, " T"],
    windows: Float[Array, "W 2"],
    window_valid: Bool[Array, " W"],
    *,
    talk: Bool[Array, ""],
    spoken: Bool[Array, " T"],
    noise: Float[Array, "2 T"] | None,
    draws: Float[Array, "E 2"] | None,
    clusters: int,
    dilation: int,
    filter_dilation: int,
    behaviour: Behaviour,
) -> Plan:
    """`select_fine` for one video."""
    reference = behaviour == "reference"
    first_noise, second_noise = (None, None) if noise is None else noise
    frames, count = present.shape[0], present.sum(dtype=jnp.int32)

    cluster = dpc_knn(features, present, clusters=clusters, noise=first_noise)
    inside, outside_video = _frames_inside(windows, times, present, behaviour=behaviour)
    inside = inside & window_valid[:, None]
    stay = dilate(_elect(cluster, inside, clusters=clusters) | inside.any(0), filter_dilation) & present
    if not reference:
        stay = stay | (present & ~window_valid.any())

    if reference:
        second = dpc_knn(features, present, clusters=clusters, far=present & ~stay, noise=second_noise)
    else:
        second = dpc_knn(features, stay, clusters=clusters, noise=second_noise)
        talk = talk & (spoken & stay).any()
    key = jnp.where(talk, spoken & present, borders(jnp.where(stay, second, -1), present))
    key = dilate(key, dilation) & stay

    target = count // 2 if reference else jnp.maximum(count // 2, 1)
    key, other = compress(key, stay & ~key, target, draws)
    error = ((outside_video & window_valid).any() | (count < clusters)) & reference
    return lay_out(key, other, slots=frames // 2, cluster=cluster, error=error)


def _frames_inside(
    windows: Float[Array, "W 2"], times: Float[Array, " T"], present: Bool[Array, " T"], *, behaviour: Behaviour
) -> tuple[Bool[Array, "W T"], Bool[Array, " W"]]:
    """Mark the frames of each window, and the windows outside the video."""
    if behaviour == "default":
        windows = jnp.sort(windows, axis=-1)
    seconds = jnp.round(times)[None, :]
    after_start = present[None, :] & (seconds >= windows[:, :1])
    before_end = present[None, :] & (seconds <= windows[:, 1:])

    frame = jnp.arange(times.shape[0])[None, :]
    start = jnp.where(after_start, frame, present.sum() - 1).min(-1, keepdims=True)
    end = jnp.where(before_end, frame, 0).max(-1, keepdims=True)
    if behaviour == "default":
        # Between two frames the end comes before the start; both frames are then as near.
        start, end = jnp.minimum(start, end), jnp.maximum(start + 1, end)
    outside = ~(after_start.any(-1) & before_end.any(-1))
    return present[None, :] & (frame >= start) & (frame < end), outside


def _elect(cluster: Int[Array, " T"], inside: Bool[Array, "W T"], *, clusters: int) -> Bool[Array, " T"]:
    """Mark the frames of the clusters with most votes; a frame votes once for every window it is in."""
    member = cluster[None, :] == jnp.arange(clusters)[:, None]
    votes = jnp.where(member, inside.sum(0)[None, :], 0).sum(-1)
    best = jax.lax.top_k(votes, min(ELECTED, clusters))[1]
    elected = jnp.zeros(clusters, bool).at[best].set(votes[best] > 0)
    return (member & elected[:, None]).any(0)
