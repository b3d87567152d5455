"""Opening media files with FFmpeg, and the errors and checks that video and audio share."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream

from calce_jax.errors import UserError
from calce_jax.video.clock import has_broken_clock

# Formats that hold a video themselves. FFmpeg's playlists, scripts and device readers can lead to other files or hosts.
VIDEO_FORMATS = (
    "mov,mp4,3gp,matroska,webm,avi,flv,asf,mpeg,mpegts,"
    "mpegvideo,m4v,h264,hevc,av1,obu,ivf,ogg,rm,nut,mxf,vob,wtv,dv,gif"
)
# Seconds that a stream may be shorter than its header says before it counts as truncated.
MAX_MISSING_SECONDS = 1.0
_TAG = re.compile(r"([0-9]{1,6}):([0-9]{1,2}):([0-9]{1,2}(?:\.[0-9]{1,12})?)")
REFETCH_REMEDY = "fetch the file again, or re-encode it with ffmpeg"
NOT_ALLOWED = ("you may not read it", "change its permissions, or those of its folder")
# Containers of audio alone.
AUDIO_FORMATS = f"{VIDEO_FORMATS},wav,w64,flac,mp3,aac,ac3,eac3,dts,aiff,au,caf,amr,ape,wv,tta,opus"


class MediaError(UserError):
    """A media file that cannot be used; its text is "PATH: REASON; REMEDY".

    Attributes:
      path: the file.
      reason: what is wrong with it, without the path.
      remedy: what to do about it.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str, remedy: str) -> None:
        super().__init__(f"{path}: {reason}", remedy)
        self.path, self.reason = Path(path), reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.reason, self.remedy)


@contextmanager
def open_container(
    path: str | os.PathLike[str], formats: str, error_type: type[MediaError], unreadable: str
) -> Iterator[InputContainer]:
    """Open a file for reading, and close it afterwards.

    Args:
      path: the file. FFmpeg opens this file alone: no URL, and nothing that a playlist names.
      formats: FFmpeg's names of the container formats to accept, separated by commas.
      error_type: the error to raise.
      unreadable: its reason where the file is in none of `formats`, such as "it is not a video".

    Raises:
      MediaError: of type `error_type`; the file is missing, empty, may not be read, or is in none of `formats`.
    """
    try:
        is_file = stat.S_ISREG(os.stat(path).st_mode)
    except PermissionError:  # of a folder above it
        raise error_type(path, *NOT_ALLOWED) from None
    except (OSError, ValueError):
        is_file = False
    if not is_file:
        raise error_type(path, "there is no such file", "put it there, or correct the name")
    try:
        # An absolute path cannot be mistaken for a URL.
        container = av.open(os.path.abspath(path), options={"protocol_whitelist": "file", "format_whitelist": formats})
    except PermissionError:
        raise error_type(path, *NOT_ALLOWED) from None
    except (FFmpegError, OSError) as error:
        reason = f"{unreadable} ({error.strerror})" if os.path.getsize(path) else "it is empty"
        raise error_type(path, reason, REFETCH_REMEDY) from error
    with container:
        yield container


@contextmanager
def decoder_errors(path: str | os.PathLike[str], error_type: type[MediaError]) -> Iterator[None]:
    """Turn whatever a decoder raises in the body into an error that names the file; errors of users pass.

    Raises:
      MediaError: of type `error_type`; the body raised something else than a `UserError`.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = f"it cannot be decoded ({type(error).__name__}: {error!s:.100})"
        raise error_type(path, reason, REFETCH_REMEDY) from error


def header_duration(container: InputContainer, stream: VideoStream | AudioStream) -> float | None:
    """Return a stream's duration in seconds as its header gives it, or None.

    Formats of broadcasts have no such header. A tag of Matroska is believed if it is a time, and if the whole file is
    as long. The container's own duration counts only if the stream is its only one: another stream may be longer.
    """
    if has_broken_clock(container):
        return None
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    start = float((stream.start_time or 0) * (stream.time_base or 0))
    whole = container.duration / av.time_base if container.duration else None
    tagged = _parse_tag(stream.metadata.get("DURATION", ""))
    if tagged is not None and (whole is None or tagged <= whole + MAX_MISSING_SECONDS):
        return tagged - start
    return whole - start if whole is not None and len(container.streams) == 1 else None


def _parse_tag(tag: str) -> float | None:
    """Return the seconds of a tag such as 00:01:02.500000000, or None if it is no such time, or zero."""
    match = _TAG.fullmatch(tag.strip())
    seconds = int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3]) if match else 0.0
    return seconds or None


def check_not_truncated(
    path: str | os.PathLike[str], expected: float | None, decoded: float | None, error_type: type[MediaError]
) -> None:
    """Compare the duration that a header gives with the decoded one.

    Args:
      path: the file.
      expected: seconds, from `header_duration`; None skips the check.
      decoded: seconds; None skips the check.
      error_type: the error to raise.

    Raises:
      MediaError: of type `error_type`; more than `MAX_MISSING_SECONDS` are missing.
    """
    if expected is not None and decoded is not None and expected - decoded > MAX_MISSING_SECONDS:
        reason = f"it is truncated: its header gives {expected:.1f} s, and {decoded:.1f} s can be decoded"
        raise error_type(path, reason, REFETCH_REMEDY)
