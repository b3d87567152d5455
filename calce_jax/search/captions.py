"""Captions of videos that have none, written by Whisper once and kept by content."""

from collections.abc import Sequence
from pathlib import Path

from calce_jax.search.inputs import SearchError
from calce_jax.speech.captioning import caption_without_srt
from calce_jax.storage.atomic_files import write_atomic
from calce_jax.storage.disk_cache import DiskCache, make_cache_key
from calce_jax.storage.provenance import file_hash
from calce_jax.text.captions import check_srt


def caption_with_cache(videos: Sequence[Path], folder: str | Path, whisper: str, cache: DiskCache) -> dict[Path, Path]:
    """Write the captions of all videos without an .srt beside them.

    Args:
      videos: the files.
      folder: of the new .srt files, called like their videos; what it has of other videos is replaced.
      whisper: as for `calce_jax.speech.whisper_model.open_whisper_weights`, which says what it raises.
      cache: what was heard before is taken from there.

    Returns:
      The .srt of each video that needed one and could be captioned.

    Raises:
      SearchError: two videos without captions have the same name.
      OSError: a file cannot be written.
    """
    uncaptioned = [video for video in videos if not video.with_suffix(".srt").is_file()]
    targets = {video: Path(folder) / f"{video.stem}.srt" for video in uncaptioned}
    if len(set(targets.values())) < len(uncaptioned):
        raise SearchError(
            "two videos have the same name, and so would their captions", "search them one after the other"
        )
    cache_keys = {video: make_cache_key(content=file_hash(video), whisper=whisper) for video in uncaptioned}
    for video, target in targets.items():
        cached = _kept(cache, cache_keys[video])
        if cached is None:
            target.unlink(missing_ok=True)
        else:
            write_atomic(target, cached)
    srt_files = caption_without_srt(uncaptioned, folder, whisper)
    for video, srt in srt_files.items():
        cache.write("captions", cache_keys[video], srt.read_bytes())
    return srt_files


def _kept(cache: DiskCache, key: str) -> bytes | None:
    """Return the content of an .srt file, or nothing if it is not in the cache or cannot be read as captions."""
    content = cache.read("captions", key)
    if content is None:
        return None
    try:
        check_srt(content)
    except ValueError as error:
        cache.refuse("captions", key, error)
        return None
    return content
