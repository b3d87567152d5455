"""One prepared video as an .npz file: key frames as JPEG, their times, and the captions.

The file also holds a fingerprint of its source files and settings, so that a later run prepares only what has changed.
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
from calce_jax.errors import UsageError, UserError
from calce_jax.storage.atomic_files import write_atomic
from calce_jax.storage.file_names import MAX_NAME_BYTES
from calce_jax.text.caption_files import caption_languages, find_captions
from calce_jax.text.captions import CaptionError, read_srt
from calce_jax.video.decode import VideoError, encode_jpeg, read_frames
from calce_jax.video.files import VIDEO_SUFFIXES, find_video

MAX_ID_BYTES = MAX_NAME_BYTES - len(".npz")
# JPEG bytes per byte of uncompressed frames; videos at quality 95 need less.
JPEG_COMPRESSION_RATIO = 0.14
# Raised by numpy for a truncated or damaged file (RuntimeError: it seems encrypted), or another format (TypeError).
DAMAGED_FILE_ERRORS = (ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


class UnusableVideoError(UserError):
    """A video that cannot be prepared, or a prepared file that cannot be read."""


@dataclass(frozen=True)
class PrepareSettings:
    """How videos are prepared.

    Attributes:
      frames: key frames of a video; of a video with fewer frames, all.
      image_size: height and width, pixels.
      quality: JPEG quality, up to 100.
      behaviour: passed to `read_frames` and `read_srt`.
    """

    frames: int
    image_size: int = 224
    quality: int = 95
    behaviour: Behaviour = "default"

    def __post_init__(self) -> None:
        for field, value, max_value in (("frames", self.frames, 10_000), ("image_size", self.image_size, 4096)):
            if not 1 <= value <= max_value:
                raise UsageError(f"--{field}={value}: must be from 1 to {max_value}", "choose another number")

    @property
    def bytes_per_video(self) -> int:
        """Estimated size of a prepared video."""
        return int(self.frames * self.image_size**2 * 3 * JPEG_COMPRESSION_RATIO)


@dataclass(frozen=True)
class PrepareJob:
    """A video to prepare.

    Attributes:
      video: id.
      video_path: the video file.
      srt_path: the .srt file, or None for a dataset without captions.
      output_path: the .npz file.
      settings: how to prepare it.
    """

    video: str
    video_path: Path
    srt_path: Path | None
    output_path: Path
    settings: PrepareSettings

    def fingerprint(self) -> str:
        """Return settings, and names, sizes and modification times of the source files, as JSON."""
        files = [
            (path.name, path.stat().st_size, path.stat().st_mtime_ns)
            for path in (self.video_path, self.srt_path)
            if path
        ]
        return json.dumps({"settings": asdict(self.settings), "files": files})


def make_job(video: str, videos: Path, srts: Path | None, folder: Path, settings: PrepareSettings) -> PrepareJob:
    """Return the job of a video: find its source files.

    Args:
      video: id, which is the stem of the file names.
      videos: folder of the videos.
      srts: folder of the .srt files, or None for a dataset without captions.
      folder: output folder of the prepared videos.
      settings: how to prepare it.

    Raises:
      UnusableVideoError: a file is missing, or the id cannot be a file name.
    """
    if not video or video in (".", "..") or set(video) & set("/\\\0") or len(video.encode()) > MAX_ID_BYTES:
        raise UnusableVideoError("its id cannot be a file name", "correct it in the annotations")
    video_path = find_video(videos, video)
    if video_path is None:
        suffixes = "|".join(suffix[1:] for suffix in VIDEO_SUFFIXES)
        raise UnusableVideoError(f"there is no {videos / video}.({suffixes})", "add the video")
    srt_path = srts and find_captions(srts, video)
    if srts and not srt_path:
        if languages := caption_languages(srts, video):
            names = ", ".join(path.name for path in languages.values())
            raise UnusableVideoError(f"{srts} has captions of it in several languages: {names}", "leave one of them")
        raise UnusableVideoError(
            f"there is no {srts / f'{video}.srt'}", "add the captions, an empty file if there are none"
        )
    return PrepareJob(video, video_path, srt_path, prepared_path(folder, video), settings)


def prepared_path(folder: Path, video: str) -> Path:
    """Return the path of a prepared video."""
    return folder / f"{video}.npz"


def is_prepared(job: PrepareJob) -> bool:
    """Return whether the output file exists, is undamaged, and was made from these files with these settings."""
    try:
        # Opened here: numpy would not close a damaged file.
        with job.output_path.open("rb") as file, np.load(file) as archive:
            # The duration is needed also of videos that the tables hold already.
            return str(archive["made_of"]) == job.fingerprint() and float(archive["duration"]) > 0
    except (OSError, *DAMAGED_FILE_ERRORS):
        return False


def prepare_video(job: PrepareJob) -> None:
    """Decode and resize the key frames of a video, and write them with its captions.

    Raises:
      UnusableVideoError: the video or its captions cannot be read.
      OSError: the output file cannot be written; a partial file is removed.
    """
    behaviour = job.settings.behaviour
    try:
        fingerprint = job.fingerprint()
        captions = read_srt(job.srt_path, behaviour) if job.srt_path else []
        # One thread for each video: there are as many processes as cores.
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
    """Read a prepared video.

    Raises:
      UnusableVideoError: the file is damaged.
      OSError: there is no such file.
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
    except DAMAGED_FILE_ERRORS as error:
        raise UnusableVideoError(
            f"{path}: the file is damaged ({error})", "remove it and run `calce prepare` again"
        ) from error


def load_duration(folder: Path, video: str) -> float:
    """Return the duration of a prepared video in seconds, without reading its frames."""
    with np.load(prepared_path(folder, video)) as archive:
        return float(archive["duration"])
