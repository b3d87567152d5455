"""Mapping of EVA's vision transformer, and interpolation of its position embedding."""

import numpy as np

from calce_jax.checkpoints.convert.mapping import (
    TRANSPOSE,
    IgnoredKey,
    KeyMapping,
    MappingRow,
    ParamArrays,
    TensorTransform,
    split_fused,
    squeeze_leading,
)


def _patches_to_flax(kernel: np.ndarray) -> ParamArrays:
    return (kernel.transpose(2, 3, 1, 0).reshape(-1, kernel.shape[0]),)


def _patches_to_torch(arrays: ParamArrays) -> np.ndarray:
    rows, width = arrays[0].shape
    side = round((rows / 3) ** 0.5)
    return arrays[0].reshape(side, side, 3, width).transpose(3, 2, 0, 1)


# The patch convolution (D, 3, p, p) as a matrix product with patches of p * p pixels of 3 colours.
PATCH_EMBED = TensorTransform(_patches_to_flax, _patches_to_torch)

KEY_MAPPING: KeyMapping = (
    MappingRow("cls_token", "class_token", squeeze_leading(2)),
    MappingRow("pos_embed", "positions", squeeze_leading(1)),
    MappingRow("patch_embed.proj.weight", "patches/kernel", PATCH_EMBED),
    MappingRow("patch_embed.proj.bias", "patches/bias"),
    MappingRow("blocks.{layer}.norm1.weight", "blocks/attention_norm/scale"),
    MappingRow("blocks.{layer}.norm1.bias", "blocks/attention_norm/bias"),
    MappingRow(
        "blocks.{layer}.attn.qkv.weight",
        ("blocks/attention/q/kernel", "blocks/attention/k/kernel", "blocks/attention/v/kernel"),
        split_fused(3),
    ),
    MappingRow("blocks.{layer}.attn.q_bias", "blocks/attention/q/bias"),
    MappingRow("blocks.{layer}.attn.v_bias", "blocks/attention/v/bias"),
    MappingRow("blocks.{layer}.attn.proj.weight", "blocks/attention/o/kernel", TRANSPOSE),
    MappingRow("blocks.{layer}.attn.proj.bias", "blocks/attention/o/bias"),
    MappingRow("blocks.{layer}.norm2.weight", "blocks/mlp_norm/scale"),
    MappingRow("blocks.{layer}.norm2.bias", "blocks/mlp_norm/bias"),
    MappingRow("blocks.{layer}.mlp.fc1.weight", "blocks/mlp/wi/kernel", TRANSPOSE),
    MappingRow("blocks.{layer}.mlp.fc1.bias", "blocks/mlp/wi/bias"),
    MappingRow("blocks.{layer}.mlp.fc2.weight", "blocks/mlp/wo/kernel", TRANSPOSE),
    MappingRow("blocks.{layer}.mlp.fc2.bias", "blocks/mlp/wo/bias"),
    IgnoredKey("blocks.39.*", "EVA-g has 40 blocks, BLIP-2 uses 39"),
    IgnoredKey("norm.*", "BLIP-2 has no final norm"),
    IgnoredKey("fc_norm.*", "of EVA's classifier"),
    IgnoredKey("head.*", "of EVA's classifier"),
)


def interpolate_positions(positions: np.ndarray, grid: int) -> np.ndarray:
    """Interpolate a position embedding to another grid, as a bicubic image resize (a = -0.75, no antialias).

    Args:
      positions: float (1 + P, D); the class token, then P = side * side patches in rows.
      grid: patches along one side of the result.

    Returns:
      (1 + grid * grid, D) in the same dtype; the class token's row is unchanged.

    Raises:
      ValueError: P is not a square.
    """
    side = round((len(positions) - 1) ** 0.5)
    if side * side != len(positions) - 1:
        raise ValueError(f"positions: must be a class token and a square of patches, got {len(positions)} rows")
    if side == grid:
        return positions
    weights = _bicubic(side, grid)
    plane = positions[1:].reshape(side, side, -1).astype(np.float64)
    resized = np.einsum("ys,xt,std->yxd", weights, weights, plane).reshape(grid * grid, -1)
    return np.concatenate([positions[:1], resized.astype(positions.dtype)])


def _bicubic(size: int, target_size: int) -> np.ndarray:
    """Return the weights (target_size, size) of a cubic convolution between pixel centres, edges repeated."""
    a = -0.75
    centres = (np.arange(target_size) + 0.5) * size / target_size - 0.5
    taps = np.floor(centres)[:, None] + np.arange(-1, 3)
    distances = np.abs(centres[:, None] - taps)
    near = ((a + 2) * distances - (a + 3)) * distances**2 + 1
    far = ((distances - 5) * distances + 8) * distances * a - 4 * a
    weights = np.zeros((target_size, size))
    rows = np.broadcast_to(np.arange(target_size)[:, None], taps.shape)
    np.add.at(weights, (rows, np.clip(taps, 0, size - 1).astype(int)), np.where(distances <= 1, near, far))
    return weights
