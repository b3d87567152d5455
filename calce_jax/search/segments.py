"""Split a video into segments of the length that a model was trained on, and sample their key frames.

A video up to that length is one segment, sampled as for training. A longer one is split into segments that overlap by
at least half, so that every moment of up to half a segment lies completely in one of them; their frames are evenly
spaced in time. The video is decoded once, segment after segment: memory does not grow with its length.

Dimensions: T key frames of a segment.
"""

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from calce_jax.storage.disk_cache import DiskCache, make_cache_key
from calce_jax.text.caption import Caption
from calce_jax.video.decode import VideoError, encode_jpeg, frames_at, read_frames, video_duration

MAX_HOURS = 4.0
# A video longer by this factor is still one segment: videos annotated with 150 s last up to 150.02 s.
LENGTH_TOLERANCE = 1.02
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
FRAMES_VERSION = 2  # part of the cache key; increase it when the sampling of frames changes


@dataclass(frozen=True)
class Segment:
    """The part of a video from `start` to `end`, in seconds."""

    start: float
    end: float

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return self.end - self.start


@dataclass(frozen=True)
class SegmentSampling:
    """Segments of at most `max_seconds` seconds with T = `num_frames` frames of `image_size` x `image_size` pixels."""

    max_seconds: float
    num_frames: int
    image_size: int


@dataclass(frozen=True)
class SegmentFrames:
    """The key frames of a segment, with the fields of `calce_jax.input_pipeline.example.Example`.

    Attributes:
      segment: the part of the video.
      keyframes: T JPEG images, fewer if the video has fewer frames.
      indices: of the key frames among `total_frames`.
      times: of the key frames, in seconds from the segment's start.
      total_frames: number of frames that the key frames were sampled from.
      fps: frames per second of those.
    """

    segment: Segment
    keyframes: list[bytes]
    indices: Int[np.ndarray, " T"]
    times: Float[np.ndarray, " T"]
    total_frames: int
    fps: float


@dataclass(frozen=True)
class ChosenSegments:
    """The segments of a video that are asked about.

    Attributes:
      video: the file.
      content: its hash from `calce_jax.storage.provenance.file_hash`.
      captions: of the video, in order of time.
      starts: for each query, where its segments start, in seconds.
    """

    video: Path
    content: str
    captions: Sequence[Caption]
    starts: Sequence[Collection[float]]


def split_into_segments(duration: float, max_seconds: float) -> list[Segment]:
    """Split `duration` seconds into overlapping segments of `max_seconds` seconds; the last one ends with the video."""
    if duration <= max_seconds * LENGTH_TOLERANCE:
        return [Segment(0.0, duration)]
    steps = ceil((duration - max_seconds) / (max_seconds / 2))
    return [
        Segment(start, start + max_seconds) for start in np.linspace(0.0, duration - max_seconds, steps + 1).tolist()
    ]


def check_file(path: str | os.PathLike[str]) -> None:
    """Check that a path can be that of a video; there may be no such file.

    Raises:
      VideoError: it is no regular file, which might never end, or its name is no Unicode text.
    """
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise VideoError(path, "it is no regular file", "leave it out")
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        printable = Path(os.fsencode(path).decode("utf-8", "backslashreplace"))
        raise VideoError(printable, "its name is not UTF-8", "rename it") from None


def searchable_duration(path: str | os.PathLike[str]) -> float:
    """Return a video's duration in seconds.

    Raises:
      VideoError: the video is longer than `MAX_HOURS`, or cannot be read; see also `check_file`.
    """
    check_file(path)
    duration = video_duration(path)
    if duration > MAX_HOURS * 3600:
        reason = f"it lasts {duration / 3600:.1f} hours, the maximum is {MAX_HOURS:g}"
        raise VideoError(path, reason, "cut it with `ffmpeg -i FILE -c copy -f segment -segment_time 3600 part%d.mp4`")
    return duration


def read_segments(
    video: str | Path,
    content: str,
    sampling: SegmentSampling,
    cache: DiskCache,
    starts: Collection[float] | None = None,
) -> tuple[float, list[Segment], Iterator[SegmentFrames]]:
    """Return a video's duration in seconds, its segments, and an iterator over their key frames.

    Args:
      video: the video file.
      content: its hash from `calce_jax.storage.provenance.file_hash`, for the cache key.
      sampling: lengths and sizes.
      cache: of key frames; segments that it lacks are decoded and added.
      starts: in seconds, of the segments that are wanted; by default all.

    Raises:
      VideoError: the file is not a video, is damaged or too long. The iterator raises it if decoding fails later.
    """
    duration = searchable_duration(video)
    segments = split_into_segments(duration, sampling.max_seconds)
    is_single = len(segments) == 1
    if starts is not None:
        segments = [segment for segment in segments if segment.start in starts]
    cache_keys = [
        make_cache_key(
            content=content,
            start=segment.start,
            end=segment.end,
            frames=sampling.num_frames,
            size=sampling.image_size,
            version=FRAMES_VERSION,
        )
        for segment in segments
    ]
    keyed_segments = list(zip(segments, cache_keys, strict=True))
    if not is_single:
        return duration, segments, _read_cached(video, keyed_segments, sampling, cache, is_single=False)
    # The duration in the header and that of the decoded frames may differ. The windows of a short video, which training
    # samples whole, refer to the latter.
    frames = list(_read_cached(video, keyed_segments, sampling, cache, is_single=True))
    return frames[0].segment.duration if frames else duration, [single.segment for single in frames], iter(frames)


def segment_captions(captions: Sequence[Caption], segment: Segment) -> list[Caption]:
    """Return the captions that overlap a segment, clipped to it, in seconds from its start."""
    return [
        Caption(
            max(float(caption.start) - segment.start, 0.0),
            min(float(caption.end), segment.end) - segment.start,
            caption.text,
        )
        for caption in captions
        if float(caption.start) < segment.end and float(caption.end) > segment.start
    ]


def _read_cached(
    video: str | Path,
    keyed_segments: Sequence[tuple[Segment, str]],
    sampling: SegmentSampling,
    cache: DiskCache,
    *,
    is_single: bool,
) -> Iterator[SegmentFrames]:
    """Yield segments from the cache up to the first that is missing; decode that one and all later ones."""
    remaining = list(keyed_segments)
    while remaining and (cached := _load_cached(*remaining[0], sampling, cache, is_whole_video=is_single)) is not None:
        yield cached
        remaining.pop(0)
    if not remaining:
        return
    decoded = (
        iter([_read_whole_video(video, sampling)])
        if is_single
        else _decode_segments(video, [segment for segment, _ in remaining], sampling)
    )
    for (_, cache_key), segment_frames in zip(remaining, decoded, strict=True):
        cache.write_arrays("frames", cache_key, _pack(segment_frames))
        yield segment_frames


def _read_whole_video(video: str | Path, sampling: SegmentSampling) -> SegmentFrames:
    video_frames = read_frames(video, sampling.num_frames, sampling.image_size)
    keyframes = encode_jpeg(video_frames.frames)
    return SegmentFrames(
        Segment(0.0, video_frames.duration),
        keyframes,
        video_frames.indices,
        video_frames.times,
        video_frames.total_frames,
        video_frames.fps,
    )


def _decode_segments(
    video: str | Path, segments: Sequence[Segment], sampling: SegmentSampling
) -> Iterator[SegmentFrames]:
    """Decode the video once; the JPEG of a frame is kept until the last segment that contains it."""
    frames = sampling.num_frames
    times = [[round(segment.start + n * segment.duration / frames, 4) for n in range(frames)] for segment in segments]
    # Overlapping segments have most of their times in common.
    all_times = sorted({second for segment_times in times for second in segment_times})
    pictures: dict[float, bytes] = {}
    num_done = 0
    for second, picture in zip(all_times, frames_at(video, all_times, sampling.image_size), strict=True):
        pictures[second] = encode_jpeg(picture[None])[0]
        while num_done < len(segments) and second >= times[num_done][-1]:
            segment = segments[num_done]
            yield SegmentFrames(
                segment=segment,
                keyframes=[pictures[second] for second in times[num_done]],
                indices=np.arange(frames),
                times=np.array([second - segment.start for second in times[num_done]], np.float32),
                total_frames=frames,
                fps=frames / segment.duration,
            )
            num_done += 1
            min_time = times[num_done][0] if num_done < len(segments) else second
            pictures = {at: jpeg for at, jpeg in pictures.items() if at >= min_time}


def _load_cached(
    segment: Segment, cache_key: str, sampling: SegmentSampling, cache: DiskCache, *, is_whole_video: bool
) -> SegmentFrames | None:
    """Return the key frames of a segment from the cache, or None if the entry is missing or does not fit."""
    entry = cache.read_arrays("frames", cache_key)
    if entry is None:
        return None
    try:
        cached = _unpack(entry)
        # The end of a whole video is that of its decoded frames, see `read_segments`.
        if cached.segment.start != segment.start or (cached.segment.end != segment.end and not is_whole_video):
            raise ValueError(f"it is of {cached.segment}, not of {segment}")
        if len(cached.keyframes) > sampling.num_frames:
            raise ValueError(f"it has {len(cached.keyframes)} frames, more than {sampling.num_frames}")
    except ValueError as error:
        cache.refuse("frames", cache_key, error)
        return None
    return cached


def _pack(segment_frames: SegmentFrames) -> dict[str, np.ndarray]:
    """Return the arrays of a cache entry: all JPEG images in one, and where each ends."""
    ends = np.cumsum([len(jpeg) for jpeg in segment_frames.keyframes])
    return {
        "jpeg": np.frombuffer(b"".join(segment_frames.keyframes), np.uint8),
        "ends": ends.astype(np.int64),
        "indices": segment_frames.indices.astype(np.int64),
        "times": segment_frames.times.astype(np.float32),
        "about": np.array(
            [segment_frames.segment.start, segment_frames.segment.end, segment_frames.total_frames, segment_frames.fps],
            np.float64,
        ),
    }


def _unpack(entry: dict[str, np.ndarray]) -> SegmentFrames:
    """Return the key frames that `_pack` stored.

    Raises:
      ValueError: names, dtypes, shapes or values are not those of `_pack`.
    """
    count = entry["ends"].size if "ends" in entry else 0
    expected = {
        "jpeg": (np.uint8, (entry["jpeg"].size if "jpeg" in entry else 0,)),
        "ends": (np.int64, (count,)),
        "indices": (np.int64, (count,)),
        "times": (np.float32, (count,)),
        "about": (np.float64, (4,)),
    }
    actual = {name: (array.dtype, array.shape) for name, array in entry.items()}
    if actual != expected:
        raise ValueError(f"expected arrays {expected}, got {actual}")
    jpeg, ends = entry["jpeg"].tobytes(), [0, *entry["ends"].tolist()]
    start, end, total_frames, fps = entry["about"].tolist()
    keyframes = [jpeg[a:b] for a, b in pairwise(ends)]
    indices, times = entry["indices"], entry["times"]
    is_consistent = (
        count > 0
        and ends[-1] == len(jpeg)
        and all(picture.startswith(JPEG_START) and picture.endswith(JPEG_END) for picture in keyframes)
        and np.isfinite([start, end, total_frames, fps]).all()
        and np.isfinite(times).all()
        and min(end - start, fps) > 0
        and 0 <= indices.min() <= indices.max() < total_frames
    )
    if not is_consistent:
        raise ValueError("its JPEG images, frame indices and times are inconsistent")
    return SegmentFrames(Segment(start, end), keyframes, indices, times, int(total_frames), fps)
