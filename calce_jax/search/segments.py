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

from calce_jax.storage.disk_cache import Cache, key_of
from calce_jax.text.prompt import Caption
from calce_jax.video.decode import VideoError, duration_of, encode_jpeg, frames_at, read_frames

LONGEST_HOURS = 4.0
# Longer by so much, a video is still one piece: 150.02 s are the 150 s that were annotated.
TOLERANCE = 1.02
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
VERSION = 1  # of how frames are taken; another one does not find what an earlier one kept


@dataclass(frozen=True)
class Piece:
    """From second `start` to second `end` of a video."""

    start: float
    end: float

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.end - self.start


@dataclass(frozen=True)
class Sampling:
    """How videos are looked at: pieces of at most `longest` seconds, T `frames` of a piece, `size` pixels a side."""

    longest: float
    frames: int
    size: int


@dataclass(frozen=True)
class Footage:
    """The key frames of a piece, as `calce_jax.input_pipeline.dataset.Example` has them; times count from the piece's start.

    Attributes:
      piece: which.
      keyframes: T JPEG images, fewer where the video has fewer frames.
      indices: of the key frames among `total`.
      times: of the key frames, seconds.
      total: frames that were there to choose from.
      rate: of those, frames a second.
    """

    piece: Piece
    keyframes: list[bytes]
    indices: Int[np.ndarray, " T"]
    times: Float[np.ndarray, " T"]
    total: int
    rate: float


def pieces_of(duration: float, longest: float) -> list[Piece]:
    """Cut `duration` seconds into pieces of `longest` seconds, the last one ending with the video."""
    if duration <= longest * TOLERANCE:
        return [Piece(0.0, duration)]
    steps = ceil((duration - longest) / (longest / 2))
    return [Piece(start, start + longest) for start in np.linspace(0.0, duration - longest, steps + 1).tolist()]


def length_of(path: str | os.PathLike[str]) -> float:
    """Return a video's duration in seconds, of one that is not too long to be searched.

    Raises:
      VideoError: it is, or cannot be read.
    """
    duration = duration_of(path)
    if duration > LONGEST_HOURS * 3600:
        reason = f"it lasts {duration / 3600:.1f} hours, and {LONGEST_HOURS:g} are searched at most"
        raise VideoError(path, reason, "cut it with `ffmpeg -i FILE -c copy -f segment -segment_time 3600 part%d.mp4`")
    return duration


def footage(
    video: str | Path, content: str, sampling: Sampling, cache: Cache
) -> tuple[float, list[Piece], Iterator[Footage]]:
    """Return a video's duration, its pieces, and their key frames one after the other, from the cache if it has them.

    Args:
      video: the file.
      content: what names it in the cache, from `calce_jax.storage.disk_cache.content_of`.
      sampling: how it is looked at.
      cache: where frames are kept.

    Raises:
      VideoError: the file is no video, is damaged or too long; when the frames are read, where decoding shows it.
    """
    duration = length_of(video)
    pieces = pieces_of(duration, sampling.longest)
    keys = [
        key_of(content=content, start=p.start, end=p.end, frames=sampling.frames, size=sampling.size, version=VERSION)
        for p in pieces
    ]
    read = _read(video, list(zip(pieces, keys, strict=True)), sampling, cache)
    if len(pieces) > 1:
        return duration, pieces, read
    # What the header says and what the frames add up to may differ; a short video's windows are counted in the latter.
    only = next(read)
    return only.piece.duration, [only.piece], iter([only])


def captions_in(captions: Sequence[Caption], piece: Piece) -> list[Caption]:
    """Return what is said in a piece, in seconds from its start."""
    return [
        Caption(
            max(float(caption.start) - piece.start, 0.0),
            min(float(caption.end), piece.end) - piece.start,
            caption.text,
        )
        for caption in captions
        if float(caption.start) < piece.end and float(caption.end) > piece.start
    ]


def _read(
    video: str | Path, wanted: Sequence[tuple[Piece, str]], sampling: Sampling, cache: Cache
) -> Iterator[Footage]:
    """Read pieces by their keys; from the first that is not in the cache on, all of them from the video."""
    left = list(wanted)
    while left and (kept := _kept(*left[0], sampling, cache, whole=len(wanted) == 1)) is not None:
        yield kept
        left.pop(0)
    if not left:
        return
    decoded = iter([_whole(video, sampling)]) if len(wanted) == 1 else _decode(video, [p for p, _ in left], sampling)
    for (_, key), found in zip(left, decoded, strict=True):
        cache.write_arrays("frames", key, _packed(found))
        yield found


def _whole(video: str | Path, sampling: Sampling) -> Footage:
    looked = read_frames(video, sampling.frames, sampling.size)
    keyframes = encode_jpeg(looked.frames)
    return Footage(Piece(0.0, looked.duration), keyframes, looked.indices, looked.times, looked.total, looked.rate)


def _decode(video: str | Path, pieces: Sequence[Piece], sampling: Sampling) -> Iterator[Footage]:
    """Decode once; a picture is encoded when it comes and dropped with the last piece that shows it."""
    frames = sampling.frames
    times = [[round(p.start + n * p.duration / frames, 4) for n in range(frames)] for p in pieces]
    wanted = sorted({second for each in times for second in each})  # overlapping pieces mostly show the same frames
    pictures: dict[float, bytes] = {}
    done = 0
    for second, picture in zip(wanted, frames_at(video, wanted, sampling.size), strict=True):
        pictures[second] = encode_jpeg(picture[None])[0]
        while done < len(pieces) and second >= times[done][-1]:
            piece = pieces[done]
            yield Footage(
                piece=piece,
                keyframes=[pictures[second] for second in times[done]],
                indices=np.arange(frames),
                times=np.array([second - piece.start for second in times[done]], np.float32),
                total=frames,
                rate=frames / piece.duration,
            )
            done += 1
            still = times[done][0] if done < len(pieces) else second
            pictures = {at: jpeg for at, jpeg in pictures.items() if at >= still}


def _kept(piece: Piece, key: str, sampling: Sampling, cache: Cache, *, whole: bool) -> Footage | None:
    """Return a piece from the cache, or nothing if it is not there or is not what `_packed` wrote of this piece."""
    entry = cache.read_arrays("frames", key)
    if entry is None:
        return None
    try:
        found = _unpacked(entry)
        # How long a whole video is, its frames say.
        if found.piece.start != piece.start or (found.piece.end != piece.end and not whole):
            raise ValueError(f"it is of {found.piece}, not of {piece}")
        if len(found.keyframes) > sampling.frames:
            raise ValueError(f"it has {len(found.keyframes)} frames, not {sampling.frames}")
    except ValueError as error:
        cache.refuse("frames", key, error)
        return None
    return found


def _packed(found: Footage) -> dict[str, np.ndarray]:
    ends = np.cumsum([len(jpeg) for jpeg in found.keyframes])
    return {
        "jpeg": np.frombuffer(b"".join(found.keyframes), np.uint8),
        "ends": ends.astype(np.int64),
        "indices": found.indices.astype(np.int64),
        "times": found.times.astype(np.float32),
        "about": np.array([found.piece.start, found.piece.end, found.total, found.rate], np.float64),
    }


def _unpacked(entry: dict[str, np.ndarray]) -> Footage:
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
    return Footage(Piece(start, end), keyframes, indices, times, int(total), rate)
