"""A query, and a query with its video: what a row of a batch is made from."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Query:
    """A query without its video.

    Fields:
      qid: id, a number or a string as annotated.
      video: id of the video.
      video_row: row of the video in the videos table of the split.
      query: the sentence.
      items: noun phrases of the sentence.
      duration: of the video in seconds, as annotated, or else that of the file.
      windows: annotated windows, float64 (n, 2) in seconds; (0, 2) if not annotated, and if `is_absent`.
      stage1_windows: float64 (n, 2) in seconds; None before stage-1 predictions are merged.
      kind: of the query, if annotated.
      is_absent: annotated as not happening in the video.
      fact: what the query asks for, "" if not annotated; equal for queries of the same meaning.
      facts: all that happens in the video, in the same form; empty if not annotated.
    """

    qid: str | int
    video: str
    video_row: int
    query: str
    items: list[str]
    duration: float
    windows: np.ndarray
    stage1_windows: np.ndarray | None
    kind: str | None
    is_absent: bool = field(default=False, kw_only=True)
    fact: str = field(default="", kw_only=True)
    facts: tuple[str, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True)
class Example(Query):
    """A query and its video.

    Fields beside those of `Query`:
      keyframes: the stored frames, T JPEG images.
      indices: of the stored frames in the file, int32 (T,).
      times: of the stored frames in seconds, float32 (T,).
      total_frames: frames in the file.
      fps: frames per second of the file.
      captions: (start, end, text), start and end in seconds.
      positions: among the stored frames, of those that a model reads; None for evenly spaced ones, see
        `calce_jax.input_pipeline.rows.stored_frame_positions`.
    """

    keyframes: list[bytes]
    indices: np.ndarray
    times: np.ndarray
    total_frames: int
    fps: float
    captions: list[tuple[float, float, str]]
    positions: list[int] | None = None
