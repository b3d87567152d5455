"""The captions that a search reads of each video: files, subtitles inside, or those that Whisper hears."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from calce_jax.errors import UserFileNotFoundError
from calce_jax.moments.player_time import format_time
from calce_jax.search.inputs import load_captions
from calce_jax.search.reporter import Reporter
from calce_jax.storage.file_names import single_line
from calce_jax.text.caption import Caption

Transcribe = Callable[[Sequence[Path]], dict[Path, Path]]  # files of captions, of the videos that had none


def read_video_captions(
    durations: Mapping[Path, float],
    srt: str,
    reporter: Reporter,
    transcribe: Transcribe | None = None,
    language: str | None = None,
) -> dict[Path, list[Caption]]:
    """Return the captions of each video; those that cannot be read are reported, and their videos left out.

    A video for which a folder of captions has no file is searched without, and a notice says so.

    Args:
      durations: of the video files, seconds.
      srt: see `calce_jax.search.inputs.load_captions`.
      reporter: gets an error for each video that is left out, and a notice if all captions are after its end.
      transcribe: such as `calce_jax.search.captions.caption_with_cache`; its files come before `srt`.
      language: see `calce_jax.search.inputs.load_captions`.
    """
    transcripts = transcribe(list(durations)) if transcribe else {}
    captions = {}

    def load(video: Path) -> list[Caption]:
        try:
            return load_captions(video, transcripts.get(video, srt), language)
        except UserFileNotFoundError as error:
            if not Path(srt).is_dir():
                raise
            reporter.notice(single_line(f"{video}: {error.reason}; it is searched without captions"))
            return []

    for video, duration in durations.items():
        found = reporter.attempt(load, video)
        if found is not None:
            captions[video] = found
            if found and (first := min(caption.start for caption in found)) >= duration:
                reporter.notice(
                    f"{single_line(str(video))}: its captions begin at {format_time(float(first))}, and it ends at "
                    f"{format_time(duration)}; they are not used: are they those of another video?"
                )
    return captions
