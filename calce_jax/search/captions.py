"""Captions of videos that have none, written by Whisper once and kept by content."""

from collections.abc import Sequence
from pathlib import Path

from calce_jax.search.inputs import SearchError
from calce_jax.speech.captioning import captions_for
from calce_jax.storage.atomic_files import write_output
from calce_jax.storage.disk_cache import Cache, content_of, key_of
from calce_jax.text.captions import check_srt


def hear(videos: Sequence[Path], folder: str | Path, whisper: str, cache: Cache) -> dict[Path, Path]:
    """Write the captions of all videos without an .srt beside them.

    Args:
      videos: the files.
      folder: of the new .srt files, called like their videos; what it has of other videos is replaced.
      whisper: as for `calce_jax.speech.whisper_model.open_whisper`, which says what it raises.
      cache: what was heard before is taken from there.

    Returns:
      The .srt of each video that needed one and could be captioned.

    Raises:
      SearchError: two videos without captions have the same name.
      OSError: a file cannot be written.
    """
    silent = [video for video in videos if not video.with_suffix(".srt").is_file()]
    targets = {video: Path(folder) / f"{video.stem}.srt" for video in silent}
    if len(set(targets.values())) < len(silent):
        raise SearchError(
            "two videos have the same name, and so would their captions", "search them one after the other"
        )
    keys = {video: key_of(content=content_of(video), whisper=whisper) for video in silent}
    for video, target in targets.items():
        kept = _kept(cache, keys[video])
        if kept is None:
            target.unlink(missing_ok=True)
        else:
            write_output(target, kept)
    heard = captions_for(silent, folder, whisper)
    for video, srt in heard.items():
        cache.write("captions", keys[video], srt.read_bytes())
    return heard


def _kept(cache: Cache, key: str) -> bytes | None:
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
