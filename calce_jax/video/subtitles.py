"""Text subtitles inside a video file: which tracks there are, and what they say when, in seconds of a player."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.subtitles.stream import SubtitleStream
from av.subtitles.subtitle import AssSubtitle

from calce_jax.video.clock import clock_origin
from calce_jax.video.container import REFETCH_REMEDY, VIDEO_FORMATS, MediaError, decoder_errors, open_container

# FFmpeg's decoders of subtitles that are text; those of discs and broadcasts are pictures.
TEXT_CODECS = frozenset({"srt", "subrip", "mov_text", "webvtt", "ass", "ssa", "text"})
MAX_CHARACTERS = 50_000_000  # of a track, as the bytes of a file of captions
DEFAULT_SECONDS = 5.0  # the longest that a subtitle without a duration lasts, if no other follows
# FFmpeg turns every format into an event of Advanced SubStation Alpha, of which the ninth field is the text.
_NUM_FIELDS = 9
_DISCARD_ALL = 48  # FFmpeg's AVDISCARD_ALL
_DRAWING = re.compile(r"\\p[1-9]")  # in an override; looked for in both at once it would take quadratic time
_OVERRIDES = re.compile(r"\{[^{}]*\}")
_LINE_BREAK = re.compile(r"\\[Nn]")


class SubtitleError(MediaError):
    """Subtitles of a file that cannot be read."""


@dataclass(frozen=True)
class SubtitleTrack:
    """A text subtitle stream of a file.

    Attributes:
      index: of the stream in the file.
      language: as the file writes it, such as "eng" or "de"; empty if it does not.
      title: as the file writes it; may be empty.
      is_default: whether players show it unasked.
      is_forced: whether it has only what needs a translation, such as signs.
    """

    index: int
    language: str
    title: str
    is_default: bool
    is_forced: bool

    def describe(self) -> str:
        """Return the number of the stream with its language and title, for a message."""
        names = ", ".join(filter(None, (self.language or "no language", self.title)))
        return f"stream {self.index} ({names})"


@dataclass(frozen=True)
class Subtitle:
    r"""Text shown from second `start` to second `end`, with "\n" between its lines; it may have markup of HTML."""

    start: float
    end: float
    text: str


def list_subtitle_tracks(path: str | os.PathLike[str]) -> list[SubtitleTrack]:
    """Return the text subtitle streams of a video file, in its order; only the header is read.

    Raises:
      SubtitleError: the file is missing, or no video.
    """
    with open_container(path, VIDEO_FORMATS, SubtitleError, "it is not a video") as container:
        return [_describe_track(stream) for stream in _text_streams(container)]


def read_subtitles(path: str | os.PathLike[str], track: SubtitleTrack) -> list[Subtitle]:
    """Return the subtitles of a track in order of start, in seconds as `calce_jax.video.clock` counts them.

    The whole file is read, since subtitles lie between its pictures. Drawings are left out. A subtitle that cannot be
    decoded is left out, too.

    Raises:
      SubtitleError: the file is missing, no video, has no such track, or more than 50,000,000 characters in it.
    """
    with (
        open_container(path, VIDEO_FORMATS, SubtitleError, "it is not a video") as container,
        decoder_errors(path, SubtitleError),
    ):
        streams = [stream for stream in _text_streams(container) if stream.index == track.index]
        if not streams:
            raise SubtitleError(path, f"it has no text subtitles in {track.describe()}", REFETCH_REMEDY)
        timed: list[tuple[float, float, str]] = []
        num_characters = 0
        for start, duration, text in _decode_events(container, streams[0]):
            num_characters += len(text)
            if num_characters > MAX_CHARACTERS:
                reason = f"{track.describe()} has more than {MAX_CHARACTERS:,} characters"
                raise SubtitleError(path, reason, "give the captions as an .srt file")
            timed.append((start, duration, text))
    timed.sort(key=lambda event: event[0])
    following = [*(start for start, _, _ in timed[1:]), float("inf")][: len(timed)]
    return [
        Subtitle(start, start + (duration or min(after - start, DEFAULT_SECONDS)), text)
        for (start, duration, text), after in zip(timed, following, strict=True)
    ]


def _text_streams(container: InputContainer) -> list[SubtitleStream]:
    # Without a decoder, a stream has no codec context.
    return [
        stream for stream in container.streams.subtitles if getattr(stream.codec_context, "name", "") in TEXT_CODECS
    ]


def _describe_track(stream: SubtitleStream) -> SubtitleTrack:
    language = stream.metadata.get("language", "")
    return SubtitleTrack(
        stream.index,
        "" if language in ("und", "mis", "zxx") else language,
        stream.metadata.get("title", ""),
        bool(stream.disposition & Disposition.default),
        bool(stream.disposition & Disposition.forced),
    )


def _decode_events(container: InputContainer, stream: SubtitleStream) -> Iterator[tuple[float, float, str]]:
    """Yield the start and the duration of each subtitle, in seconds, and its text; 0 for an unknown duration.

    Timestamps are not corrected as those of pictures are: minutes without a subtitle are no fault.
    """
    origin = clock_origin(container)
    for other in container.streams:
        if other.index != stream.index:
            with suppress(AttributeError):  # before PyAV 17 pictures are read, and dropped
                other.discard = _DISCARD_ALL  # pyright: ignore[reportAttributeAccessIssue]
    for packet in container.demux(stream):
        if packet.pts is None or packet.time_base is None or not packet.size:
            continue
        start = float(packet.pts * packet.time_base) - origin
        duration = float((packet.duration or 0) * packet.time_base)
        with suppress(FFmpegError):
            decoded = stream.codec_context.decode2(packet)
            events = [event.ass for event in decoded or () if isinstance(event, AssSubtitle)]
            text = "\n".join(filter(None, (_event_text(event.decode("utf-8", "replace")) for event in events)))
            if text and start + duration >= 0:
                yield max(start, 0.0), duration + min(start, 0.0), text


def _event_text(event: str) -> str:
    """Return the text of an event without its overrides; empty if it is a drawing."""
    fields = event.split(",", _NUM_FIELDS - 1)
    if len(fields) < _NUM_FIELDS or any(map(_DRAWING.search, _OVERRIDES.findall(fields[-1]))):
        return ""
    return _LINE_BREAK.sub("\n", _OVERRIDES.sub("", fields[-1])).replace("\\h", " ").strip()
