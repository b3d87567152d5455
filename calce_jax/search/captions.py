"""Whisper captions for videos without an .srt file, cached by the content of the video."""

from collections.abc import Sequence
from pathlib import Path

from absl import logging

from calce_jax.search.paths import SearchError
from calce_jax.speech.captioning import caption_without_srt
from calce_jax.storage.atomic_files import write_atomic
from calce_jax.storage.disk_cache import DiskCache, make_cache_key
from calce_jax.storage.file_names import fit_name
from calce_jax.storage.provenance import file_hash
from calce_jax.text.caption_files import find_captions
from calce_jax.text.captions import check_srt


def caption_with_cache(videos: Sequence[Path], folder: str | Path, whisper: str, cache: DiskCache) -> dict[Path, Path]:
    """Transcribe the videos that have no .srt file beside them.

    Args:
      videos: the video files.
      folder: receives `<video's stem>.srt`; a file of that name from an earlier search is replaced.
      whisper: folder, hub name or size, see `calce_jax.speech.whisper_model.open_whisper`.
      cache: holds captions of earlier searches.

    Returns:
      The new .srt file of each video that had none; without the videos that could not be transcribed.

    Raises:
      SearchError: two videos without captions have the same name.
      SpeechModelError: the Whisper model cannot be opened.
      OSError: a file cannot be written.
    """
    uncaptioned = [video for video in videos if find_captions(video.parent, video.stem) is None]
    for video in videos:
        if video not in uncaptioned:
            logging.warning("%s: --whisper does nothing, since there are captions beside it", video)
    targets = {video: Path(folder) / fit_name(video.stem, ".srt") for video in uncaptioned}
    if len(set(targets.values())) < len(uncaptioned):
        raise SearchError(
            "two videos without captions have the same file name", "rename one, or search them one after the other"
        )
    cache_keys = {video: make_cache_key(content=file_hash(video), whisper=whisper) for video in uncaptioned}
    for video, target in targets.items():
        cached = _read_cached(cache, cache_keys[video])
        if cached is None:
            target.unlink(missing_ok=True)
        else:
            write_atomic(target, cached)
    srt_files = caption_without_srt(uncaptioned, folder, whisper)
    for video, srt in srt_files.items():
        cache.write("captions", cache_keys[video], srt.read_bytes())
    return srt_files


def _read_cached(cache: DiskCache, cache_key: str) -> bytes | None:
    """Return the bytes of an .srt file, or None if the cache has none that can be parsed."""
    content = cache.read("captions", cache_key)
    if content is None:
        return None
    try:
        check_srt(content)
    except ValueError as error:
        cache.refuse("captions", cache_key, error)
        return None
    return content
