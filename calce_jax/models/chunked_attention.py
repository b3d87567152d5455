"""Attention for a few heads at a time, whose scores stay in a CPU's cache.

Scores of all heads at once go to memory, in buffers of more than 32 MiB to pages that are new in every block. In
chunks, attention takes about half of the time (docs/benchmarks.md).

Dimensions: B batch, Q query positions, L key positions, N heads, H head width.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Float32 scores of a chunk: a CPU has one to a few megabytes of cache a core.
CHUNK_BYTES = 9 * 2**18
# As many are computed at once: glibc keeps buffers of up to 32 MiB, and a loop is then slower or faster.
MAX_BYTES_AT_ONCE = 32 * 2**20


def attend_in_chunks(
    attend: Callable[..., Array],
    query: Float[Array, "B N Q H"],
    key: Float[Array, "B N L H"],
    value: Float[Array, "B N L H"],
    *,
    bias: Float[Array, "#B #N #Q L"] | None,
    mask: Bool[Array, "#B #Q L"] | None,
) -> Float[Array, "B N Q H"]:
    """Call `attend` in a loop: for some heads of one row at a time, or for all heads of some rows.

    Args:
      attend: attention of a chunk, with the other arguments of this function, to attended values (B, N, Q, H).
      query, key, value: heads before positions.
      bias: added to the scores.
      mask: True where a query attends to a key.
    """
    batch, heads, num_queries, _ = query.shape
    bytes_of_a_head = 4 * num_queries * key.shape[2]
    # A loop over what is split over devices would gather it.
    if batch * heads * bytes_of_a_head <= MAX_BYTES_AT_ONCE or jax.sharding.get_abstract_mesh().size > 1:
        return attend(query, key, value, bias=bias, mask=mask)
    max_heads = max(CHUNK_BYTES // bytes_of_a_head, 1)
    chunk_heads = _largest_divisor(heads, max_heads)
    chunk_rows = _largest_divisor(batch, max_heads // heads) if chunk_heads == heads else 1
    chunks_per_row = heads // chunk_heads

    def attend_chunk(chunk: tuple[Array, Array, Array, Array]) -> Array:
        index, query, key, value = chunk
        row, head = index // chunks_per_row * chunk_rows, index % chunks_per_row * chunk_heads
        chunk_bias = None if bias is None else _slice(_slice(bias, 0, row, chunk_rows), 1, head, chunk_heads)
        chunk_mask = None if mask is None else _slice(mask, 0, row, chunk_rows)
        return attend(query, key, value, bias=chunk_bias, mask=chunk_mask)

    num_chunks = batch // chunk_rows * chunks_per_row
    chunks = (x.reshape(num_chunks, chunk_rows, chunk_heads, *x.shape[2:]) for x in (query, key, value))
    return jax.lax.map(attend_chunk, (jnp.arange(num_chunks), *chunks)).reshape(query.shape)


def _largest_divisor(number: int, limit: int) -> int:
    return next(divisor for divisor in range(max(limit, 1), 0, -1) if number % divisor == 0)


def _slice(x: Array, axis: int, start: Array, size: int) -> Array:
    """Return `size` entries along an axis; an axis of 1 stands for all."""
    return x if x.shape[axis] == 1 else jax.lax.dynamic_slice_in_dim(x, start, size, axis)
