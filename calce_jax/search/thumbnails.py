"""The thumbnails of a video on the page of a search. Making them decodes much of the video, so they are cached."""

from collections.abc import Sequence

import numpy as np

from calce_jax.report.search_page import PictureView
from calce_jax.search.video_result import VideoResult
from calce_jax.storage.disk_cache import DiskCache, make_cache_key
from calce_jax.video.clips import thumbnails_at

NUM_THUMBNAILS = 48
VERSION = 1  # part of the cache key; increase it when thumbnails are made in another way


def read_thumbnails(result: VideoResult, cache: DiskCache | None) -> list[PictureView]:
    """Return thumbnails at evenly spaced times of a video.

    Args:
      result: of the video; without the hash of its content nothing is cached.
      cache: of thumbnails, or None.

    Raises:
      VideoError: the video cannot be read.
    """
    seconds = np.linspace(0.0, result.duration, NUM_THUMBNAILS, endpoint=False).tolist()
    return [PictureView(second, jpeg) for second, jpeg in zip(seconds, _jpegs(result, seconds, cache), strict=True)]


def _jpegs(result: VideoResult, seconds: Sequence[float], cache: DiskCache | None) -> list[bytes]:
    if cache is None or not result.content:
        return thumbnails_at(result.video, seconds)
    key = make_cache_key(content=result.content, seconds=seconds, version=VERSION)
    cached = cache.read_arrays("thumbnails", key)
    if cached is not None and len(cached) == len(seconds):
        return [array.tobytes() for array in cached.values()]
    jpegs = thumbnails_at(result.video, seconds)
    cache.write_arrays("thumbnails", key, {str(n): np.frombuffer(jpeg, np.uint8) for n, jpeg in enumerate(jpegs)})
    return jpegs
