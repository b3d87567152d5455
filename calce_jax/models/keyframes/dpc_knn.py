"""DPC-KNN: a frame is the centre of a cluster if its surroundings are dense and denser frames are far away.

Density peaks clustering (Rodriguez and Laio, 2014) with a k-nearest-neighbour density, as the original uses it.

T frames, D width of a frame's features, C clusters, K nearest neighbours.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def dpc_knn(
    features: Float[Array, "T D"],
    frame_mask: Bool[Array, " T"],
    *,
    clusters: int,
    neighbours: int = 5,
    far_mask: Bool[Array, " T"] | None = None,
    noise: Float[Array, " T"] | None = None,
) -> Int[Array, " T"]:
    """Cluster one video's frames.

    The density of a frame is exp(-mean of the squared distances to its K nearest frames, itself included); its score is
    the density times the distance to the nearest denser frame. The C frames of highest score are the centres, and a
    frame goes to its nearest centre. Ties go to the earlier frame, so the result is deterministic.

    Args:
      features: float32.
      frame_mask: the frames to cluster, anywhere in T; the others have no influence, so the result equals that of
        clustering only these.
      clusters: C. Where fewer frames are present, each is a cluster of its own.
      neighbours: K; fewer where C is smaller than it or fewer frames are present.
      far_mask: present frames masked in the original's way: they lie farther from any frame than any two frames do and have
        density 0, but still go to a cluster (the first one, or their own where they must serve as centres).
      noise: what the original draws from [0, 1) at each call to break ties, also in evaluation; None for none.

    Returns:
      int32 cluster of each frame: the rank of its centre's score, and -1 where `frame_mask` is False.
    """
    num_frames, width = features.shape
    num_centres = min(clusters, num_frames)
    if clusters < neighbours:
        neighbours = min(3, max(clusters // 2, 1))

    pair_mask = frame_mask[:, None] & frame_mask[None, :]
    distance = jnp.where(pair_mask, _distances(features) * width**-0.5, jnp.inf)
    max_distance = jnp.where(pair_mask, distance, 0.0).max()
    if far_mask is not None:
        max_distance = jnp.where(far_mask.any(), max_distance + 1.0, max_distance)
        distance = jnp.where(pair_mask & far_mask[None, :], max_distance, distance)

    nearest = -jax.lax.top_k(-distance, min(neighbours, num_frames))[0]
    is_finite = jnp.isfinite(nearest)
    mean_squared = jnp.where(is_finite, jnp.square(nearest), 0.0).sum(-1) / jnp.maximum(is_finite.sum(-1), 1).astype(
        jnp.float32
    )
    density = jnp.exp(-mean_squared)
    if noise is not None:
        density = density + noise * 1e-6
    if far_mask is not None:
        density = jnp.where(far_mask, 0.0, density)

    denser = pair_mask & (density[None, :] > density[:, None])
    separation = jnp.where(denser, distance, max_distance).min(-1)
    score = jnp.where(frame_mask, separation * density, -jnp.inf)
    centres = jax.lax.top_k(score, num_centres)[1]

    # Where frames are fewer than centres the last centres are no frames; nothing may be assigned to those.
    to_centre = jnp.where(frame_mask[centres][:, None], distance[centres], jnp.inf)
    cluster = to_centre.argmin(0).astype(jnp.int32).at[centres].set(jnp.arange(num_centres, dtype=jnp.int32))
    return jnp.where(frame_mask, cluster, -1)


def _distances(features: Float[Array, "T D"]) -> Float[Array, "T T"]:
    """Euclidean distances, row by row as differences.

    A matrix product would be faster, but gives equal frames (a still shot) distances that are not 0 and that depend on
    the shapes around them; here equal frames tie exactly, whatever the video is padded to.
    """
    return jax.lax.map(lambda row: jnp.sqrt(jnp.square(features - row[None, :]).sum(-1)), features)
