"""The sizes of OpenAI's Whisper models; without jax, so that their names are checked without importing it."""

# Width, heads, encoder blocks, decoder blocks.
WHISPER_SIZES: dict[str, tuple[int, int, int, int]] = {
    "tiny": (384, 6, 4, 4),
    "base": (512, 8, 6, 6),
    "small": (768, 12, 12, 12),
    "medium": (1024, 16, 24, 24),
    "large-v2": (1280, 20, 32, 32),
    "large-v3": (1280, 20, 32, 32),
    "turbo": (1280, 20, 32, 4),
}
ENGLISH_SIZES = ("tiny", "base", "small", "medium")  # those with an English-only variant
