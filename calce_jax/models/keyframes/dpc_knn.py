"""DPC-KNN clustering: centres are frames of high local density that are far from frames of higher density.

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

    The density of a frame is exp(-mean squared distance to its K nearest frames, itself included); its score is the
    density times the distance to the nearest denser frame. The C frames of highest score are the centres, and every
    frame belongs to its nearest centre. Ties go to the earlier frame, so the result is deterministic.

    Args:
      features: float32.
      frame_mask: the frames to cluster, at any positions; other frames do not affect the result.
      clusters: C. With fewer frames, each frame is a cluster of its own.
      neighbours: K; min(3, max(C // 2, 1)) if C < K, and at most the number of frames.
      far_mask: frames masked as in the original: their distance from any frame is larger than that of any two frames
        and their density is 0, but they are assigned to a cluster (the first, or their own if they are centres).
      noise: uniform in [0, 1), which the original draws at each call to break ties, in evaluation too.

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

    # With fewer frames than centres the last centres are not frames; no frame may be assigned to them.
    to_centre = jnp.where(frame_mask[centres][:, None], distance[centres], jnp.inf)
    cluster = to_centre.argmin(0).astype(jnp.int32).at[centres].set(jnp.arange(num_centres, dtype=jnp.int32))
    return jnp.where(frame_mask, cluster, -1)


def _distances(features: Float[Array, "T D"]) -> Float[Array, "T T"]:
    """Return Euclidean distances, computed row by row from differences.

    A matrix product is faster, but gives equal frames (a still shot) distances that are not 0 and depend on the padded
    shape; here equal frames tie exactly.
    """
    return jax.lax.map(lambda row: jnp.sqrt(jnp.square(features - row[None, :]).sum(-1)), features)
