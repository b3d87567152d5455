"""A video of any length as pieces of the length that a model was trained on.

A video up to that length is one piece, sampled as for training. A longer one is cut into pieces that overlap by half or
more, so that every moment of up to half a piece lies whole in one of them. The frames of a piece are evenly spaced in
time. A video is gone through once, piece after piece; memory does not grow with its length.

Dimensions: T frames of a piece.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from calce_jax.storage.disk_cache import DiskCache, make_cache_key
from calce_jax.text.prompt import Caption
from calce_jax.video.decode import VideoError, encode_jpeg, frames_at, read_frames, video_duration

MAX_HOURS = 4.0
# Longer by so much, a video is still one piece: 150.02 s are the 150 s that were annotated.
LENGTH_TOLERANCE = 1.02
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
FRAMES_VERSION = 1  # of how frames are taken; another one does not find what an earlier one kept


@dataclass(frozen=True)
class Segment:
    """From second `start` to second `end` of a video."""

    start: float
    end: float

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.end - self.start


@dataclass(frozen=True)
class SegmentSampling:
    """How videos are looked at: pieces of at most `max_seconds` seconds, T `num_frames` of a piece, `image_size` pixels a side."""

    max_seconds: float
    num_frames: int
    image_size: int


@dataclass(frozen=True)
class SegmentFrames:
    """The key frames of a piece, as `calce_jax.input_pipeline.dataset.Example` has them; times count from the piece's start.

    Attributes:
      segment: which.
      keyframes: T JPEG images, fewer where the video has fewer frames.
      indices: of the key frames among `total_frames`.
      times: of the key frames, seconds.
      total_frames: frames that were there to choose from.
      fps: of those, frames a second.
    """

    segment: Segment
    keyframes: list[bytes]
    indices: Int[np.ndarray, " T"]
    times: Float[np.ndarray, " T"]
    total_frames: int
    fps: float


def split_into_segments(duration: float, max_seconds: float) -> list[Segment]:
    """Cut `duration` seconds into pieces of `max_seconds` seconds, the last one ending with the video."""
    if duration <= max_seconds * LENGTH_TOLERANCE:
        return [Segment(0.0, duration)]
    steps = ceil((duration - max_seconds) / (max_seconds / 2))
    return [
        Segment(start, start + max_seconds) for start in np.linspace(0.0, duration - max_seconds, steps + 1).tolist()
    ]


def searchable_duration(path: str | os.PathLike[str]) -> float:
    """Return a video's duration in seconds, of one that is not too long to be searched.

    Raises:
      VideoError: it is, or cannot be read.
    """
    duration = video_duration(path)
    if duration > MAX_HOURS * 3600:
        reason = f"it lasts {duration / 3600:.1f} hours, and {MAX_HOURS:g} are searched at most"
        raise VideoError(path, reason, "cut it with `ffmpeg -i FILE -c copy -f segment -segment_time 3600 part%d.mp4`")
    return duration


def read_segments(
    video: str | Path, content: str, sampling: SegmentSampling, cache: DiskCache
) -> tuple[float, list[Segment], Iterator[SegmentFrames]]:
    """Return a video's duration, its pieces, and their key frames one after the other, from the cache if it has them.

    Args:
      video: the file.
      content: what names it in the cache, from `calce_jax.storage.provenance.file_hash`.
      sampling: how it is looked at.
      cache: where frames are kept.

    Raises:
      VideoError: the file is no video, is damaged or too long; when the frames are read, where decoding shows it.
    """
    duration = searchable_duration(video)
    segments = split_into_segments(duration, sampling.max_seconds)
    cache_keys = [
        make_cache_key(
            content=content,
            start=p.start,
            end=p.end,
            frames=sampling.num_frames,
            size=sampling.image_size,
            version=FRAMES_VERSION,
        )
        for p in segments
    ]
    segment_frames = _read_cached(video, list(zip(segments, cache_keys, strict=True)), sampling, cache)
    if len(segments) > 1:
        return duration, segments, segment_frames
    # What the header says and what the frames add up to may differ; a short video's windows are counted in the latter.
    single = next(segment_frames)
    return single.segment.duration, [single.segment], iter([single])


def segment_captions(captions: Sequence[Caption], segment: Segment) -> list[Caption]:
    """Return what is said in a piece, in seconds from its start."""
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
    video: str | Path, keyed_segments: Sequence[tuple[Segment, str]], sampling: SegmentSampling, cache: DiskCache
) -> Iterator[SegmentFrames]:
    """Read pieces by their keys; from the first that is not in the cache on, all of them from the video."""
    remaining = list(keyed_segments)
    while remaining and (kept := _kept(*remaining[0], sampling, cache, whole=len(keyed_segments) == 1)) is not None:
        yield kept
        remaining.pop(0)
    if not remaining:
        return
    decoded = (
        iter([_read_whole_video(video, sampling)])
        if len(keyed_segments) == 1
        else _decode_segments(video, [p for p, _ in remaining], sampling)
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
    """Decode once; a picture is encoded when it comes and dropped with the last piece that shows it."""
    frames = sampling.num_frames
    times = [[round(p.start + n * p.duration / frames, 4) for n in range(frames)] for p in segments]
    all_times = sorted(
        {second for segment_times in times for second in segment_times}
    )  # overlapping pieces mostly show the same frames
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


def _kept(
    piece: Segment, key: str, sampling: SegmentSampling, cache: DiskCache, *, whole: bool
) -> SegmentFrames | None:
    """Return a piece from the cache, or nothing if it is not there or is not what `_packed` wrote of this piece."""
    entry = cache.read_arrays("frames", key)
    if entry is None:
        return None
    try:
        found = _unpack(entry)
        # How long a whole video is, its frames say.
        if found.segment.start != piece.start or (found.segment.end != piece.end and not whole):
            raise ValueError(f"it is of {found.segment}, not of {piece}")
        if len(found.keyframes) > sampling.num_frames:
            raise ValueError(f"it has {len(found.keyframes)} frames, not {sampling.num_frames}")
    except ValueError as error:
        cache.refuse("frames", key, error)
        return None
    return found


def _pack(segment_frames: SegmentFrames) -> dict[str, np.ndarray]:
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
    """Undo `_packed`.

    Raises:
      ValueError: the entry is something else.
    """
    count = entry["ends"].size if "ends" in entry else 0
    expected = {
        "jpeg": (np.uint8, (entry["jpeg"].size if "jpeg" in entry else 0,)),
        "ends": (np.int64, (count,)),
        "indices": (np.int64, (count,)),
        "times": (np.float32, (count,)),
        "about": (np.float64, (4,)),
    }
    there = {name: (array.dtype, array.shape) for name, array in entry.items()}
    if there != expected:
        raise ValueError(f"it holds {there}, not the frames of a piece")
    jpeg, ends = entry["jpeg"].tobytes(), [0, *entry["ends"].tolist()]
    start, end, total, rate = entry["about"].tolist()
    keyframes = [jpeg[a:b] for a, b in pairwise(ends)]
    indices, times = entry["indices"], entry["times"]
    sound = (
        count > 0
        and ends[-1] == len(jpeg)
        and all(picture.startswith(JPEG_START) and picture.endswith(JPEG_END) for picture in keyframes)
        and np.isfinite([start, end, total, rate]).all()
        and np.isfinite(times).all()
        and min(end - start, rate) > 0
        and 0 <= indices.min() <= indices.max() < total
    )
    if not sound:
        raise ValueError("its frames, their places and their times do not fit together")
    return SegmentFrames(Segment(start, end), keyframes, indices, times, int(total), rate)
