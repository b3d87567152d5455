"""Captions inside a video file: its text subtitles, as .mkv, .mp4 and .webm have them."""

from pathlib import Path

from absl import logging

from calce_jax.text.caption import Caption
from calce_jax.text.captions import plain_lines, to_captions
from calce_jax.text.languages import is_language
from calce_jax.text.rolling_captions import Entry
from calce_jax.video.subtitles import SubtitleTrack, list_subtitle_tracks, read_subtitles

PREFERRED_LANGUAGE = "en"  # of captions in the prompt only English ones are kept


def read_embedded_captions(video: str | Path, language: str | None = None) -> list[Caption]:
    """Return the captions of a text subtitle stream of a video, in a player's seconds; none if it has no such stream.

    Of several streams a warning says which one is taken, unless a language is given; see `choose_track`.

    Args:
      video: the video file, which is read to its end if it has subtitles.
      language: a code or an English name; see `choose_track`.

    Raises:
      SubtitleError: the file cannot be read.
    """
    tracks = list_subtitle_tracks(video)
    track = choose_track(tracks, language)
    if track is None:
        return []
    if len(tracks) > 1 and language is None:
        others = ", ".join(other.describe() for other in tracks if other != track)
        logging.warning(
            "%s: of its subtitles %s is used, not %s; choose with --language", video, track.describe(), others
        )
    subtitles = read_subtitles(video, track)
    entries = [Entry(subtitle.start, subtitle.end, plain_lines(subtitle.text)) for subtitle in subtitles]
    return to_captions(entry for entry in entries if entry.lines)


def has_embedded_captions(video: str | Path, language: str | None = None) -> bool:
    """Whether a video has text subtitles, in a language if one is given; only its header is read.

    Raises:
      SubtitleError: the file cannot be read.
    """
    return choose_track(list_subtitle_tracks(video), language) is not None


def choose_track(tracks: list[SubtitleTrack], language: str | None = None) -> SubtitleTrack | None:
    """Return the stream to read: by default an English one, else the default one, else the first.

    A forced stream, which has signs and foreign lines alone, is taken only if there is no other.

    Args:
      tracks: of a video, in order.
      language: a code or an English name: only a stream of this language is returned.
    """
    candidates = [track for track in tracks if language is None or is_language(track.language, language)]
    return min(
        candidates,
        key=lambda track: (
            track.is_forced,
            not is_language(track.language, PREFERRED_LANGUAGE),
            not track.is_default,
            track.index,
        ),
        default=None,
    )
