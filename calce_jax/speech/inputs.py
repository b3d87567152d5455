"""The inputs of a transcription: the videos, and the model by its name; without jax, so that mistakes show at once."""

import os
from pathlib import Path

from calce_jax.errors import UsageError, UserError
from calce_jax.models.whisper_sizes import ENGLISH_SIZES, WHISPER_SIZES
from calce_jax.video.files import is_video_name

# Suffixes that are taken from a folder beside those of videos; a single file may have any suffix.
AUDIO_SUFFIXES = frozenset((".wav", ".flac", ".mp3", ".m4a", ".aac", ".ogg", ".opus"))


class CaptioningError(UserError):
    """There are no videos to caption, or none could be captioned; the message says why, and the remedy."""


class SpeechModelError(UserError):
    """A Whisper model cannot be opened; the message names it, what is wrong and the remedy."""


class SpeechModelNameError(SpeechModelError, UsageError):
    """There is no Whisper model of this name."""


def resolve_whisper_name(source: str | Path) -> Path | str:
    """Return the folder of a model, or its full name on the Hugging Face hub.

    Args:
      source: a folder, a model of the hub ("openai/whisper-small"), or a size ("small", "tiny.en", "turbo").

    Raises:
      SpeechModelError: it can only be a folder, and there is none.
      SpeechModelNameError: there is no such size.
    """
    if os.path.isdir(source):
        return Path(source)
    name, stem = str(source), str(source).removesuffix(".en")
    if name.startswith((os.sep, ".", "~")) or name.count("/") > 1 or name.endswith("/"):
        raise SpeechModelError(f"{name}: no such folder", "give the folder of a Whisper model")
    if "/" in name:
        return name
    if stem not in WHISPER_SIZES or (name != stem and stem not in ENGLISH_SIZES):
        sizes = ", ".join(WHISPER_SIZES)
        raise SpeechModelNameError(
            f"{name}: no such folder, and no size of Whisper",
            f"give a folder, a model of the Hugging Face hub, or one of {sizes} (up to medium also with .en)",
        )
    return f"openai/whisper-{'large-v3-turbo' if stem == 'turbo' else name}"


def find_videos(source: str | Path) -> list[Path]:
    """Return [source] for a file, or the media files of a folder, sorted by name.

    Raises:
      CaptioningError: `source` does not exist, or is a folder without media files.
    """
    source = Path(source)
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise CaptioningError(f"--videos={source}: no such file or folder", "correct the flag")
    media_files = sorted(
        path
        for path in source.iterdir()
        if path.is_file() and (is_video_name(path) or path.suffix.lower() in AUDIO_SUFFIXES)
    )
    if not media_files:
        raise CaptioningError(
            f"--videos: no file in {source} has the suffix of a video or audio file", "give another folder"
        )
    return media_files
