"""Fields that depend on the size of the model: precision, adapters, mesh, prompt lengths."""

from calce_jax.config import LoraConfig, ModelConfig, ModelSize

SIZES: dict[ModelSize, ModelConfig] = {
    "full": ModelConfig(size="full", frozen_dtype="bfloat16", compute_dtype="bfloat16", remat="full"),
    "full_xxl": ModelConfig(size="full_xxl", frozen_dtype="bfloat16", compute_dtype="bfloat16", remat="full"),
    "small": ModelConfig(size="small", frozen_dtype="float32", compute_dtype="float32", remat="none"),
    "tiny": ModelConfig(size="tiny", frozen_dtype="float32", compute_dtype="float32", remat="none"),
}
LORA: dict[ModelSize, LoraConfig] = {size: LoraConfig(rank=8, alpha=8.0, dropout=0.05) for size in SIZES}
MESH: dict[ModelSize, str] = {"full": "a100x4", "full_xxl": "a100x4", "small": "single", "tiny": "data"}

# Pixels of a side of a frame, those of the model's ViT.
IMAGE_SIZES: dict[ModelSize, int] = {"full": 224, "full_xxl": 224, "small": 224, "tiny": 56}
# Query tokens of a key frame, and of a compressed frame.
TOKENS_PER_FRAME: dict[ModelSize, tuple[int, int]] = {
    "full": (32, 8),
    "full_xxl": (32, 8),
    "small": (16, 4),
    "tiny": (4, 1),
}
BUCKET_MULTIPLE = 32


def prompt_buckets(size: ModelSize, frames: int, stage: int, *, text_tokens: int, num_buckets: int) -> tuple[int, ...]:
    """Return prompt lengths, ascending: from all frames compressed to all being key frames, each with its time token.

    Args:
      size: of the model, which sets the tokens of a frame.
      frames: of a video; stage 2 keeps at most half of them.
      stage: 1 or 2.
      text_tokens: tokens of captions, query, items and task; rarely exceeded.
      num_buckets: number of lengths before equal ones are removed; each is compiled.
    """
    kept_frames = frames // 2 if stage == 2 else frames
    min_length, max_length = (kept_frames * (tokens + 1) + text_tokens for tokens in reversed(TOKENS_PER_FRAME[size]))
    steps = (min_length + (max_length - min_length) * (i + 1) // num_buckets for i in range(num_buckets))
    return tuple(sorted({-(-length // BUCKET_MULTIPLE) * BUCKET_MULTIPLE for length in steps}))
