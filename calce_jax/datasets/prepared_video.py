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
from calce_jax.storage.atomic_files import write_output
from calce_jax.text.captions import CaptionError, read_srt
from calce_jax.video.decode import VideoError, encode_jpeg, read_frames
from calce_jax.video.files import VIDEO_SUFFIXES, find_video

# File systems take names of 255 bytes; what is being written has a longer one.
LONGEST_ID = 200
# Of the bytes of the uncompressed frames; films at quality 95 take less.
JPEG_SHARE = 0.14
# What numpy raises for a file that is cut off, damaged (RuntimeError: it seems encrypted), or no .npz (TypeError).
DAMAGED = (ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


class UnusableVideo(UserError):
    """A video that cannot be prepared, or whose prepared file cannot be read."""


@dataclass(frozen=True)
class Settings:
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
        for field, value, most in (("frames", self.frames, 10_000), ("image_size", self.image_size, 4096)):
            if not 1 <= value <= most:
                raise UserError(f"{field}: {value} is not from 1 to {most}", "choose another number")

    @property
    def bytes_per_video(self) -> int:
        """About how many bytes a prepared video takes."""
        return int(self.frames * self.image_size**2 * 3 * JPEG_SHARE)


@dataclass(frozen=True)
class Job:
    """A video to be prepared.

    Attributes:
      video: id.
      source: the video file.
      captions: the .srt file, or None for a dataset without speech.
      target: where the result goes.
      settings: how.
    """

    video: str
    source: Path
    captions: Path | None
    target: Path
    settings: Settings

    def made_of(self) -> str:
        """Return a text that changes with the settings and with the files."""
        files = [
            (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in (self.source, self.captions) if path
        ]
        return json.dumps({"settings": asdict(self.settings), "files": files})


def find_job(video: str, videos: Path, srts: Path | None, folder: Path, settings: Settings) -> Job:
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
    if not video or video in (".", "..") or set(video) & set("/\\\0") or len(video.encode()) > LONGEST_ID:
        raise UnusableVideo("the id cannot be the name of a file", "correct it in the annotations")
    source = find_video(videos, video)
    if source is None:
        suffixes = "|".join(suffix[1:] for suffix in VIDEO_SUFFIXES)
        raise UnusableVideo(f"there is no {videos / video}.({suffixes})", "put the video there")
    captions = srts and srts / f"{video}.srt"
    if captions and not captions.is_file():
        raise UnusableVideo(f"there is no {captions}", "put it there, empty if nothing is said")
    return Job(video, source, captions, prepared_path(folder, video), settings)


def prepared_path(folder: Path, video: str) -> Path:
    """Return where a prepared video is kept."""
    return folder / f"{video}.npz"


def is_prepared(job: Job) -> bool:
    """Return whether the result is there, whole, and made of these files in this way."""
    try:
        # Opened here, because numpy leaves a damaged file open.
        with job.target.open("rb") as file, np.load(file) as stored:
            # The duration is read of every prepared video, also of one that the tables hold already.
            return str(stored["made_of"]) == job.made_of() and float(stored["duration"]) > 0
    except (OSError, *DAMAGED):
        return False


def prepare_video(job: Job) -> None:
    """Decode, shrink and store one video.

    Raises:
      UnusableVideo: the video or its captions cannot be read.
      OSError: the result cannot be written; nothing is left half-written.
    """
    behaviour = job.settings.behaviour
    try:
        made_of = job.made_of()
        captions = read_srt(job.captions, behaviour) if job.captions else []
        # One thread a video: there are as many processes as cores.
        video = read_frames(job.source, job.settings.frames, job.settings.image_size, behaviour=behaviour, threads=1)
    except VideoError as error:
        raise UnusableVideo(f"{error.path}: {error.reason}", error.remedy) from error
    except CaptionError as error:
        raise UnusableVideo(error.reason, error.remedy) from error
    except OSError as error:
        raise UnusableVideo(str(error), "make the file readable") from error
    jpegs = encode_jpeg(video.frames, job.settings.quality)
    content = io.BytesIO()
    np.savez(
        content,
        made_of=np.array(made_of),
        jpegs=np.frombuffer(b"".join(jpegs), np.uint8),
        sizes=np.array([len(jpeg) for jpeg in jpegs], np.int64),
        indices=video.indices.astype(np.int32),
        times=video.times,
        total=np.int64(video.total),
        rate=np.float64(video.rate),
        duration=np.float64(video.duration),
        captions=np.array(json.dumps([(caption.start, caption.end, caption.text) for caption in captions])),
    )
    write_output(job.target, content.getvalue())


def load_video(folder: Path, video: str) -> VideoRecord:
    """Read a prepared video back.

    Raises:
      UnusableVideo: it is damaged.
      OSError: it is not there.
    """
    path = prepared_path(folder, video)
    try:
        with path.open("rb") as file, np.load(file) as stored:
            ends = np.cumsum(stored["sizes"])
            jpegs = stored["jpegs"].tobytes()
            return VideoRecord(
                video=video,
                total=int(stored["total"]),
                rate=float(stored["rate"]),
                duration=float(stored["duration"]),
                indices=stored["indices"],
                times=stored["times"],
                jpegs=[jpegs[end - size : end] for end, size in zip(ends, stored["sizes"], strict=True)],
                captions=[(start, end, text) for start, end, text in json.loads(str(stored["captions"]))],
            )
    except DAMAGED as error:
        raise UnusableVideo(f"{path}: damaged on the disk ({error})", "remove it and prepare it again") from error


def load_duration(folder: Path, video: str) -> float:
    """Return the seconds a prepared video lasts, without reading its frames."""
    with np.load(prepared_path(folder, video)) as stored:
        return float(stored["duration"])
