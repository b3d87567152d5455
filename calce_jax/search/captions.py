"""Whisper captions for videos without captions, cached by the content of the video."""

from collections.abc import Callable, Sequence
from pathlib import Path

from absl import logging

from calce_jax.search.paths import SearchError
from calce_jax.speech.captioning import caption_without_srt
from calce_jax.speech.options import TranscriptionOptions
from calce_jax.storage.atomic_files import write_atomic
from calce_jax.storage.disk_cache import DiskCache, make_cache_key
from calce_jax.storage.file_names import fit_name
from calce_jax.storage.provenance import file_hash
from calce_jax.text.caption_files import find_captions
from calce_jax.text.captions import check_srt
from calce_jax.text.embedded_captions import has_embedded_captions
from calce_jax.video.container import MediaError


def caption_with_cache(
    videos: Sequence[Path],
    folder: str | Path,
    whisper: str,
    cache: DiskCache,
    *,
    language: str | None = None,
    hotwords: str | None = None,
    notice: Callable[[str], None] = logging.warning,
) -> dict[Path, Path]:
    """Transcribe the videos that have neither a file of captions beside them nor text subtitles inside.

    Args:
      videos: the video files.
      folder: receives `<video's stem>.srt`; a file of that name from an earlier search is replaced.
      whisper: folder, hub name or size, see `calce_jax.speech.whisper_model.open_whisper`.
      cache: holds captions of earlier searches.
      language: a code or an English name: only captions that say that they are in it count, and the others are
        transcribed as speech in it. By default all count, and Whisper detects the language.
      hotwords: see `calce_jax.speech.options.TranscriptionOptions`.
      notice: called with a line for each video that is not transcribed, or in which nothing is said.

    Returns:
      The new .srt file of each video that had none; without the videos that could not be transcribed.

    Raises:
      SearchError: two videos without captions have the same name.
      SpeechModelError: the Whisper model cannot be opened.
      OptionsError: hotwords are empty, or the model does not know the language.
      OSError: a file cannot be written.
    """
    options = TranscriptionOptions(language=language, hotwords=hotwords)
    uncaptioned = [video for video in videos if not _has_captions(video, language)]
    for video in videos:
        if video not in uncaptioned:
            notice(f"{video}: --whisper does nothing, since there are captions beside it or in it")
    targets = {video: Path(folder) / fit_name(video.stem, ".srt") for video in uncaptioned}
    if len(set(targets.values())) < len(uncaptioned):
        raise SearchError(
            "two videos without captions have the same file name", "rename one, or search them one after the other"
        )
    # Options that are not given are left out: then the keys are those of earlier versions.
    given = {name: value for name, value in (("language", language), ("hotwords", hotwords)) if value is not None}
    cache_keys = {video: make_cache_key(content=file_hash(video), whisper=whisper, **given) for video in uncaptioned}
    for video, target in targets.items():
        cached = _read_cached(cache, cache_keys[video])
        if cached is None:
            target.unlink(missing_ok=True)
        else:
            write_atomic(target, cached)
            if not cached:
                notice(f"{video}: no audio or no speech, as an earlier search found; its captions are empty")
    srt_files = caption_without_srt(uncaptioned, folder, whisper, options, notice)
    for video, srt in srt_files.items():
        cache.write("captions", cache_keys[video], srt.read_bytes())
    return srt_files


def _has_captions(video: Path, language: str | None) -> bool:
    if find_captions(video.parent, video.stem, language) is not None:
        return True
    try:
        return has_embedded_captions(video, language)
    except MediaError:  # which transcription names
        return False


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
