"""Masks over frames for both stages: borders between clusters, dilation, runs.

T frames, G = T - 1 gaps between them.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def mark_cluster_borders(cluster: Int[Array, " T"], frame_mask: Bool[Array, " T"]) -> Bool[Array, " T"]:
    """Mark the two frames on either side of every change of cluster, and the video's first and last frame."""
    changes = (cluster[1:] != cluster[:-1]) & frame_mask[1:]
    ends = frame_mask & ~(previous_frame(frame_mask) & next_frame(frame_mask))
    return mark_frames_beside_gaps(changes) | ends


def mark_frames_beside_gaps(gaps: Bool[Array, " G"]) -> Bool[Array, " G+1"]:
    """Mark the frames on either side of the marked gaps; gap i lies between frame i and frame i + 1."""
    return jnp.pad(gaps, (0, 1)) | jnp.pad(gaps, (1, 0))


def dilate(mask: Bool[Array, " T"], radius: int) -> Bool[Array, " T"]:
    """Return the mask with also the `radius` frames before and after every marked frame."""
    for _ in range(radius):
        mask = mask | previous_frame(mask) | next_frame(mask)
    return mask


def previous_frame(mask: Bool[Array, " T"]) -> Bool[Array, " T"]:
    """Return the mask shifted by one: the value of the frame before each frame, False for the first."""
    return jnp.pad(mask, (1, 0))[:-1]


def next_frame(mask: Bool[Array, " T"]) -> Bool[Array, " T"]:
    """Return the mask shifted by one: the value of the frame after each frame, False for the last."""
    return jnp.pad(mask, (0, 1))[1:]


def position_in_run(mask: Bool[Array, " T"]) -> Int[Array, " T"]:
    """Return the position of each marked frame in its run of marked frames, from 1; 0 where unmarked."""
    time = jnp.arange(mask.shape[0], dtype=jnp.int32)
    return time - jax.lax.cummax(jnp.where(mask, -1, time))
