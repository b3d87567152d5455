"""The captions that a search reads of each video: files, subtitles inside, or those that Whisper hears."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from calce_jax.search.inputs import load_captions
from calce_jax.search.reporter import Reporter
from calce_jax.text.caption import Caption

Transcribe = Callable[[Sequence[Path]], dict[Path, Path]]  # files of captions, of the videos that had none


def read_video_captions(
    videos: Iterable[Path],
    srt: str,
    reporter: Reporter,
    transcribe: Transcribe | None = None,
    language: str | None = None,
) -> dict[Path, list[Caption]]:
    """Return the captions of each video; those that cannot be read are reported, and their videos left out.

    Args:
      videos: the video files.
      srt: see `calce_jax.search.inputs.load_captions`.
      reporter: gets an error for each video that is left out.
      transcribe: such as `calce_jax.search.captions.caption_with_cache`; its files come before `srt`.
      language: see `calce_jax.search.inputs.load_captions`.
    """
    videos = list(videos)
    transcripts = transcribe(videos) if transcribe else {}
    captions = {}
    for video in videos:
        found = reporter.attempt(load_captions, video, transcripts.get(video, srt), language)
        if found is not None:
            captions[video] = found
    return captions
