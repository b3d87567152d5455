"""Transcribe videos to .srt files; the same as `calce caption`."""

from calce_jax.commands.cli import launch

if __name__ == "__main__":
    launch("caption")
