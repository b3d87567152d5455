"""What depends on the size of the model: precision, adapters, mesh, prompt lengths."""

from calce_jax.config import LoraConfig, ModelConfig, Size

SIZES: dict[Size, ModelConfig] = {
    "full": ModelConfig(size="full", frozen_dtype="bfloat16", compute_dtype="bfloat16", remat="full"),
    "full_xxl": ModelConfig(size="full_xxl", frozen_dtype="bfloat16", compute_dtype="bfloat16", remat="full"),
    "small": ModelConfig(size="small", frozen_dtype="float32", compute_dtype="float32", remat="none"),
    "tiny": ModelConfig(size="tiny", frozen_dtype="float32", compute_dtype="float32", remat="none"),
}
LORA: dict[Size, LoraConfig] = {size: LoraConfig(rank=8, alpha=8.0, dropout=0.05) for size in SIZES}
MESH: dict[Size, str] = {"full": "a100x4", "full_xxl": "a100x4", "small": "single", "tiny": "data"}

# Query tokens of a key frame, and of a frame compressed.
TOKENS: dict[Size, tuple[int, int]] = {"full": (32, 8), "full_xxl": (32, 8), "small": (16, 4), "tiny": (4, 1)}
MULTIPLE = 32


def buckets(size: Size, frames: int, stage: int, *, text: int, lengths: int) -> tuple[int, ...]:
    """Return prompt lengths: from all frames compressed to all in full detail, each with its time token.

    Args:
      size: of the model, which decides the tokens of a frame.
      frames: of a video; stage 2 keeps at most half of them.
      stage: 1 or 2.
      text: tokens that captions, query, items and task together seldom exceed.
      lengths: how many; each is compiled.
    """
    kept = frames // 2 if stage == 2 else frames
    few, many = (kept * (tokens + 1) + text for tokens in reversed(TOKENS[size]))
    steps = (few + (many - few) * (i + 1) // lengths for i in range(lengths))
    return tuple(sorted({-(-length // MULTIPLE) * MULTIPLE for length in steps}))
