"""Stage 1: every frame stays, and key frames keep full detail.

B batch, T frames of a padded video, D width of a frame's features, C clusters.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from calce_jax.config import Behaviour
from calce_jax.models.keyframes.borders import beside, borders, dilate
from calce_jax.models.keyframes.dpc_knn import dpc_knn
from calce_jax.models.keyframes.plan import Plan, lay_out

Mode = Literal["cluster", "information", "interval", "none"]


def select_coarse(
    features: Float[Array, "B T D"],
    present: Bool[Array, "B T"],
    *,
    mode: Mode,
    clusters: int,
    dilation: int,
    talk: Bool[Array, " B"],
    spoken: Bool[Array, "B T"],
    behaviour: Behaviour = "default",
    noise: Float[Array, "B T"] | None = None,
) -> Plan:
    """Choose the key frames of each video.

    Args:
      features: float32, the mean over a frame's tokens.
      present: real frames, a prefix of T; the plan equals that of the video without the others.
      mode: what makes a key frame. "cluster": the borders of clusters, and the first and last frame. "information": the
        third of the frames that resemble the frame after them least, with the frame after. "interval": every second
        frame. "none": no frame. The first two are dilated.
      clusters: C.
      dilation: number of frames on either side that become key frames with one.
      talk: the query is about somebody talking, and the video has captions.
      spoken: somebody talks while the frame is shown. Where `talk`, these replace the key frames, not dilated.
      behaviour: under "reference", the plan of a talk query may have no key frame, where its captions lie past the end
        of the video, and `error` marks the videos with fewer frames than clusters, on which the original stops; by
        default such a query keeps the key frames of its mode, and in such a video every frame is a cluster.
      noise: see `dpc_knn`.
    """
    one = partial(_select, mode=mode, clusters=clusters, dilation=dilation, behaviour=behaviour)
    return jax.vmap(one)(features, present, talk=talk, spoken=spoken, noise=noise)


def _select(
    features: Float[Array, "T D"],
    present: Bool[Array, " T"],
    *,
    talk: Bool[Array, ""],
    spoken: Bool[Array, " T"],
    noise: Float[Array, " T"] | None,
    mode: Mode,
    clusters: int,
    dilation: int,
    behaviour: Behaviour,
) -> Plan:
    """`select_coarse` for one video."""
    frames = present.shape[0]
    cluster = jnp.where(present, jnp.int32(0), -1)
    error = jnp.zeros((), bool)
    if mode == "cluster":
        cluster = dpc_knn(features, present, clusters=clusters, noise=noise)
        key = dilate(borders(cluster, present), dilation)
        error = (present.sum() < clusters) & (behaviour == "reference")
    elif mode == "information":
        key = dilate(_where_news(features, present), dilation)
    elif mode == "interval":
        key = jnp.arange(frames) % 2 == 1
    else:
        key = jnp.zeros(frames, bool)

    spoken = spoken & present
    if behaviour == "default":
        talk = talk & spoken.any()
    key = jnp.where(talk, spoken, key & present)
    return lay_out(key, present & ~key, slots=frames, cluster=cluster, error=error)


def _where_news(features: Float[Array, "T D"], present: Bool[Array, " T"]) -> Bool[Array, " T"]:
    """Mark both frames of the t // 3 neighbouring pairs of least cosine similarity; t frames are present."""
    unit = features / jnp.maximum(jnp.linalg.norm(features, axis=-1, keepdims=True), 1e-8)
    similarity = jnp.where(present[1:], (unit[1:] * unit[:-1]).sum(-1), jnp.inf)
    rank = similarity.argsort().argsort()
    return beside(rank < present.sum() // 3)
