"""Names of the vision transformer in EVA's checkpoint, and positions for another number of patches."""

import numpy as np

from calce_jax.checkpoints.convert.mapping import (
    TRANSPOSE,
    Ignored,
    Operation,
    Parts,
    Row,
    Table,
    split_rows,
    without_leading,
)


def _patches_to_flax(kernel: np.ndarray) -> Parts:
    return (kernel.transpose(2, 3, 1, 0).reshape(-1, kernel.shape[0]),)


def _patches_to_torch(parts: Parts) -> np.ndarray:
    rows, width = parts[0].shape
    side = round((rows / 3) ** 0.5)
    return parts[0].reshape(side, side, 3, width).transpose(3, 2, 0, 1)


# A convolution (D, 3, p, p) without overlap is a product with patches of p * p pixels of 3 colours.
PATCHES = Operation(_patches_to_flax, _patches_to_torch)

TABLE: Table = (
    Row("cls_token", "class_token", without_leading(2)),
    Row("pos_embed", "positions", without_leading(1)),
    Row("patch_embed.proj.weight", "patches/kernel", PATCHES),
    Row("patch_embed.proj.bias", "patches/bias"),
    Row("blocks.{layer}.norm1.weight", "blocks/attention_norm/scale"),
    Row("blocks.{layer}.norm1.bias", "blocks/attention_norm/bias"),
    Row(
        "blocks.{layer}.attn.qkv.weight",
        ("blocks/attention/q/kernel", "blocks/attention/k/kernel", "blocks/attention/v/kernel"),
        split_rows(3),
    ),
    Row("blocks.{layer}.attn.q_bias", "blocks/attention/q/bias"),
    Row("blocks.{layer}.attn.v_bias", "blocks/attention/v/bias"),
    Row("blocks.{layer}.attn.proj.weight", "blocks/attention/o/kernel", TRANSPOSE),
    Row("blocks.{layer}.attn.proj.bias", "blocks/attention/o/bias"),
    Row("blocks.{layer}.norm2.weight", "blocks/mlp_norm/scale"),
    Row("blocks.{layer}.norm2.bias", "blocks/mlp_norm/bias"),
    Row("blocks.{layer}.mlp.fc1.weight", "blocks/mlp/wi/kernel", TRANSPOSE),
    Row("blocks.{layer}.mlp.fc1.bias", "blocks/mlp/wi/bias"),
    Row("blocks.{layer}.mlp.fc2.weight", "blocks/mlp/wo/kernel", TRANSPOSE),
    Row("blocks.{layer}.mlp.fc2.bias", "blocks/mlp/wo/bias"),
    Ignored("blocks.39.*", "EVA-g has 40 blocks, of which BLIP-2 runs 39"),
    Ignored("norm.*", "BLIP-2 takes the tokens as the last block leaves them"),
    Ignored("fc_norm.*", "belongs to EVA's classifier"),
    Ignored("head.*", "belongs to EVA's classifier"),
)


def interpolate_positions(positions: np.ndarray, grid: int) -> np.ndarray:
    """Stretch learned positions to another number of patches, as a bicubic image resize (a = -0.75, no antialias).

    Args:
      positions: float (1 + P, D), the class token's first, then P = side * side patches row by row.
      grid: patches along one side that are wanted.

    Returns:
      (1 + grid * grid, D) in the same dtype; the class token's position stays as it is.

    Raises:
      ValueError: if P is no square.
    """
    side = round((len(positions) - 1) ** 0.5)
    if side * side != len(positions) - 1:
        raise ValueError(f"{len(positions)} positions are not a class token and a square of patches")
    if side == grid:
        return positions
    weights = _bicubic(side, grid)
    plane = positions[1:].reshape(side, side, -1).astype(np.float64)
    stretched = np.einsum("ys,xt,std->yxd", weights, weights, plane).reshape(grid * grid, -1)
    return np.concatenate([positions[:1], stretched.astype(positions.dtype)])


def _bicubic(size: int, wanted: int) -> np.ndarray:
    """Return the weights (wanted, size) of a cubic convolution between pixel centres, edges repeated."""
    a = -0.75
    centres = (np.arange(wanted) + 0.5) * size / wanted - 0.5
    taps = np.floor(centres)[:, None] + np.arange(-1, 3)
    away = np.abs(centres[:, None] - taps)
    near = ((a + 2) * away - (a + 3)) * away**2 + 1
    far = ((away - 5) * away + 8) * away * a - 4 * a
    weights = np.zeros((wanted, size))
    rows = np.broadcast_to(np.arange(wanted)[:, None], taps.shape)
    np.add.at(weights, (rows, np.clip(taps, 0, size - 1).astype(int)), np.where(away <= 1, near, far))
    return weights
