"""One prepared video on disk: key frames as JPEG, when they are shown, and what is said, in one .npz.

The file also says what it was made of and how, so that a later run knows whether it may stay.
"""

import io
import json
import zipfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from calce_jax.config import Behaviour
from calce_jax.datasets.tables import VideoRecord
from calce_jax.errors import UserError
from calce_jax.storage.atomic_files import write_atomic
from calce_jax.text.captions import CaptionError, read_srt
from calce_jax.video.decode import VideoError, encode_jpeg, read_frames
from calce_jax.video.files import VIDEO_SUFFIXES, find_video

# File systems take names of 255 bytes; what is being written has a longer one.
MAX_ID_BYTES = 200
# Of the bytes of the uncompressed frames; films at quality 95 take less.
JPEG_COMPRESSION_RATIO = 0.14
# What numpy raises for a file that is cut off, damaged (RuntimeError: it seems encrypted), or no .npz (TypeError).
DAMAGED = (ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


class UnusableVideoError(UserError):
    """A video that cannot be prepared, or whose prepared file cannot be read."""


@dataclass(frozen=True)
class PrepareSettings:
    """How videos are prepared.

    Attributes:
      frames: of a video; shorter videos give all they have.
      image_size: height and width, pixels.
      quality: of the JPEGs, up to 100.
      behaviour: how videos and .srt files are read; see `read_frames` and `read_srt`.
    """

    frames: int
    image_size: int = 224
    quality: int = 95
    behaviour: Behaviour = "default"

    def __post_init__(self) -> None:
        for field, value, max_value in (("frames", self.frames, 10_000), ("image_size", self.image_size, 4096)):
            if not 1 <= value <= max_value:
                raise UserError(f"{field}: {value} is not from 1 to {max_value}", "choose another number")

    @property
    def bytes_per_video(self) -> int:
        """About how many bytes a prepared video takes."""
        return int(self.frames * self.image_size**2 * 3 * JPEG_COMPRESSION_RATIO)


@dataclass(frozen=True)
class PrepareJob:
    """A video to be prepared.

    Attributes:
      video: id.
      video_path: the video file.
      srt_path: the .srt file, or None for a dataset without speech.
      output_path: where the result goes.
      settings: how.
    """

    video: str
    video_path: Path
    srt_path: Path | None
    output_path: Path
    settings: PrepareSettings

    def fingerprint(self) -> str:
        """Return a text that changes with the settings and with the files."""
        files = [
            (path.name, path.stat().st_size, path.stat().st_mtime_ns)
            for path in (self.video_path, self.srt_path)
            if path
        ]
        return json.dumps({"settings": asdict(self.settings), "files": files})


def make_job(video: str, videos: Path, srts: Path | None, folder: Path, settings: PrepareSettings) -> PrepareJob:
    """Find the files of a video.

    Args:
      video: id; the files are called like it, with a suffix.
      videos: folder of the videos.
      srts: folder of the captions.
      folder: of the prepared videos.
      settings: how to prepare it.

    Raises:
      UnusableVideo: a file is missing, or the id is not the name of a file.
    """
    if not video or video in (".", "..") or set(video) & set("/\\\0") or len(video.encode()) > MAX_ID_BYTES:
        raise UnusableVideoError("the id cannot be the name of a file", "correct it in the annotations")
    video_path = find_video(videos, video)
    if video_path is None:
        suffixes = "|".join(suffix[1:] for suffix in VIDEO_SUFFIXES)
        raise UnusableVideoError(f"there is no {videos / video}.({suffixes})", "put the video there")
    srt_path = srts and srts / f"{video}.srt"
    if srt_path and not srt_path.is_file():
        raise UnusableVideoError(f"there is no {srt_path}", "put it there, empty if nothing is said")
    return PrepareJob(video, video_path, srt_path, prepared_path(folder, video), settings)


def prepared_path(folder: Path, video: str) -> Path:
    """Return where a prepared video is kept."""
    return folder / f"{video}.npz"


def is_prepared(job: PrepareJob) -> bool:
    """Return whether the result is there, whole, and made of these files in this way."""
    try:
        # Opened here, because numpy leaves a damaged file open.
        with job.output_path.open("rb") as file, np.load(file) as archive:
            # The duration is read of every prepared video, also of one that the tables hold already.
            return str(archive["made_of"]) == job.fingerprint() and float(archive["duration"]) > 0
    except (OSError, *DAMAGED):
        return False


def prepare_video(job: PrepareJob) -> None:
    """Decode, shrink and store one video.

    Raises:
      UnusableVideo: the video or its captions cannot be read.
      OSError: the result cannot be written; nothing is left half-written.
    """
    behaviour = job.settings.behaviour
    try:
        fingerprint = job.fingerprint()
        captions = read_srt(job.srt_path, behaviour) if job.srt_path else []
        # One thread a video: there are as many processes as cores.
        video = read_frames(
            job.video_path, job.settings.frames, job.settings.image_size, behaviour=behaviour, threads=1
        )
    except VideoError as error:
        raise UnusableVideoError(f"{error.path}: {error.reason}", error.remedy) from error
    except CaptionError as error:
        raise UnusableVideoError(error.reason, error.remedy) from error
    except OSError as error:
        raise UnusableVideoError(str(error), "make the file readable") from error
    jpegs = encode_jpeg(video.frames, job.settings.quality)
    content = io.BytesIO()
    np.savez(
        content,
        made_of=np.array(fingerprint),
        jpegs=np.frombuffer(b"".join(jpegs), np.uint8),
        sizes=np.array([len(jpeg) for jpeg in jpegs], np.int64),
        indices=video.indices.astype(np.int32),
        times=video.times,
        total=np.int64(video.total_frames),
        rate=np.float64(video.fps),
        duration=np.float64(video.duration),
        captions=np.array(json.dumps([(caption.start, caption.end, caption.text) for caption in captions])),
    )
    write_atomic(job.output_path, content.getvalue())


def load_video(folder: Path, video: str) -> VideoRecord:
    """Read a prepared video back.

    Raises:
      UnusableVideo: it is damaged.
      OSError: it is not there.
    """
    path = prepared_path(folder, video)
    try:
        with path.open("rb") as file, np.load(file) as archive:
            ends = np.cumsum(archive["sizes"])
            jpegs = archive["jpegs"].tobytes()
            return VideoRecord(
                video=video,
                total_frames=int(archive["total"]),
                fps=float(archive["rate"]),
                duration=float(archive["duration"]),
                indices=archive["indices"],
                times=archive["times"],
                jpegs=[jpegs[end - size : end] for end, size in zip(ends, archive["sizes"], strict=True)],
                captions=[(start, end, text) for start, end, text in json.loads(str(archive["captions"]))],
            )
    except DAMAGED as error:
        raise UnusableVideoError(f"{path}: damaged on the disk ({error})", "remove it and prepare it again") from error


def load_duration(folder: Path, video: str) -> float:
    """Return the seconds a prepared video lasts, without reading its frames."""
    with np.load(prepared_path(folder, video)) as archive:
        return float(archive["duration"])
