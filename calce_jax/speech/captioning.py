"""Folders of videos to folders of .srt files: going on where it stopped, past whatever is broken."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import jax
import srt
from absl import logging
from tqdm import tqdm

from calce_jax.errors import UserError
from calce_jax.speech.audio import AudioError, NoAudioError
from calce_jax.speech.transcribe import AudioFeatures, Transcriber, Transcript, TranscriptionOptions
from calce_jax.speech.whisper_model import Dtype, open_whisper
from calce_jax.storage.atomic_files import write_atomic
from calce_jax.storage.failures import Failure, write_failures
from calce_jax.text.text_row import Caption
from calce_jax.video.files import is_video_name

# What is looked for in a folder; a file that is named itself may be called anything.
SOUND_SUFFIXES = frozenset((".wav", ".flac", ".mp3", ".m4a", ".aac", ".ogg", ".opus"))
# Threads that decode sound and look for voices, several hundred times as fast as it plays each.
NUM_READERS = min(os.cpu_count() or 1, 8)


class CaptioningError(UserError):
    """Nothing can be captioned; the message says what is wrong and the remedy."""


@dataclass
class CaptioningResult:
    """What came of it.

    Attributes:
      written: .srt files that were written now, those of `no_audio` and `no_speech_prob` included.
      existing: .srt files that were there already.
      no_audio: videos without sound: their .srt is empty.
      no_speech: videos with sound in which nobody speaks: theirs is empty too.
      failures: videos that could not be captioned.
      seconds: of sound that was transcribed.
    """

    written: list[Path] = field(default_factory=list)
    existing: list[Path] = field(default_factory=list)
    no_audio: list[Path] = field(default_factory=list)
    no_speech: list[Path] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0

    def write_failures(self, path: Path) -> None:
        """Write one line a failure; where there is none, see that no list is there."""
        if self.failures:
            write_failures(path, self.failures)
        else:
            path.unlink(missing_ok=True)


def find_videos(source: str | Path) -> list[Path]:
    """Return a file, or the media files of a folder by name.

    Raises:
      CaptioningError: there is no such place, or no media file in the folder.
    """
    source = Path(source)
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise CaptioningError(f"videos: there is no file or folder {source}", "correct the flag")
    media_files = sorted(
        path
        for path in source.iterdir()
        if path.is_file() and (is_video_name(path) or path.suffix.lower() in SOUND_SUFFIXES)
    )
    if not media_files:
        raise CaptioningError(f"videos: no file in {source} has a suffix of video or sound", "give another folder")
    return media_files


def caption_videos(
    videos: Sequence[Path],
    out: str | Path,
    transcriber: Callable[[], Transcriber],
    *,
    process_index: int | None = None,
    process_count: int | None = None,
) -> CaptioningResult:
    """Write `<video's name>.srt` for every video that has none there yet.

    Args:
      videos: the files.
      out: folder of the .srt files; also gets `failures.jsonl`, one line a failure, when there is one.
      transcriber: opens the model; not called when everything is there.
      process_index, process_count: which of several machines this is, each of which takes its share; JAX's own numbers unless given.

    Raises:
      OSError: an .srt cannot be written.
    """
    out = Path(out)
    process_index, process_count = (
        jax.process_index() if process_index is None else process_index,
        jax.process_count() if process_count is None else process_count,
    )
    unique_videos, duplicate_failures = deduplicate_names(videos)
    result = caption_missing(unique_videos[process_index::process_count], out, transcriber)
    result.failures = duplicate_failures + result.failures
    result.write_failures(
        out / ("failures.jsonl" if process_count == 1 else f"failures-{process_index + 1}-of-{process_count}.jsonl")
    )
    return result


def deduplicate_names(videos: Sequence[Path]) -> tuple[list[Path], list[Failure]]:
    """Return the first video of every name, whose captions its .srt holds, and of the others that they are left out."""
    first_by_stem: dict[str, Path] = {}
    failures = []
    for video in videos:
        if (first := first_by_stem.setdefault(video.stem, video)) != video:
            reason = f"{video}: {first.name} has the same name, and its captions are in {video.stem}.srt"
            failures.append(Failure(str(video), reason, "rename one of them"))
    return list(first_by_stem.values()), failures


def caption_missing(videos: Sequence[Path], out: Path, transcriber: Callable[[], Transcriber]) -> CaptioningResult:
    """Write `<video's name>.srt` for those of these videos that have none there yet; see `caption_videos`."""
    result = CaptioningResult(existing=[_srt_path(out, video) for video in videos if _srt_path(out, video).is_file()])
    pending = [video for video in videos if not _srt_path(out, video).is_file()]
    if pending:
        _caption_all(pending, out, transcriber(), result)
    return result


def lazy_transcriber(
    whisper: str | Path, options: TranscriptionOptions | None = None, dtype: Dtype = "float32"
) -> Callable[[], Transcriber]:
    """Return what opens a model when it turns out to be needed; see `open_whisper_weights` and `Transcriber` for its errors."""
    return lambda: Transcriber(open_whisper(whisper, dtype), options or TranscriptionOptions())


def caption_without_srt(videos: Sequence[Path], folder: str | Path, whisper: str | Path) -> dict[Path, Path]:
    """Caption the videos that have no .srt beside them, and say of those that cannot be why.

    Args:
      videos: the files.
      folder: of the new .srt files; those that are there already stay.
      whisper: as for `open_whisper_weights`.

    Returns:
      The new .srt of each video that needed one and could be captioned.
    """
    uncaptioned = [video for video in videos if not video.with_suffix(".srt").is_file()]
    result = caption_videos(uncaptioned, folder, lazy_transcriber(whisper), process_index=0, process_count=1)
    for failure in result.failures:
        logging.warning("no captions: %s; %s", failure.reason, failure.remedy)
    failed = {failure.video for failure in result.failures}
    srt_files = {*result.written, *result.existing}
    return {
        video: _srt_path(Path(folder), video)
        for video in uncaptioned
        if str(video) not in failed and _srt_path(Path(folder), video) in srt_files
    }


def format_srt(captions: Iterable[Caption], seconds: float) -> str:
    """Return the contents of an .srt file; captions end with the sound."""
    entries = []
    for caption in captions:
        end = min(float(caption.end), seconds)
        if end > caption.start:
            start, end = (timedelta(milliseconds=round(1000 * float(second))) for second in (caption.start, end))
            entries.append(srt.Subtitle(len(entries) + 1, start, end, caption.text))
    return srt.compose(entries)


def _caption_all(videos: Sequence[Path], out: Path, transcriber: Transcriber, result: CaptioningResult) -> None:
    with tqdm(desc="caption", total=len(videos), unit="video", smoothing=0.05) as progress:
        start_time = time.monotonic()

        def finished(video: Path, content: str) -> None:
            write_atomic(_srt_path(out, video), content)
            result.written.append(_srt_path(out, video))
            progress.update()
            minutes = (time.monotonic() - start_time) / 60
            progress.set_postfix_str(
                f"{result.seconds / 3600 / minutes:.2f} hours of sound a minute, {len(result.failures)} failed"
            )

        def sounds() -> Iterator[tuple[Path, AudioFeatures]]:
            for video, future in _prefetch(videos, transcriber.load_audio, transcriber.options.batch_size):
                try:
                    audio = future.result()
                except NoAudioError:
                    result.no_audio.append(video)
                    finished(video, "")
                except AudioError as error:
                    result.failures.append(Failure(str(video), f"{error.path}: {error.reason}", error.remedy))
                    progress.update()
                else:
                    yield video, audio

        for video, transcript in transcriber.transcribe(sounds()):
            result.seconds += transcript.seconds
            content = format_srt(transcript.captions, transcript.seconds)
            if not content:
                result.no_speech.append(video)
            finished(video, content)


def _prefetch(
    videos: Sequence[Path], load_audio: Callable[[Path], AudioFeatures], batch_size: int
) -> Iterator[tuple[Path, Future[AudioFeatures]]]:
    """Yield files in order, the next ones being read by threads meanwhile; FFmpeg and numpy leave Python's lock."""
    remaining, in_flight = iter(videos), deque[tuple[Path, Future[AudioFeatures]]]()
    with ThreadPoolExecutor(NUM_READERS) as pool:
        try:
            while True:
                while (
                    len(in_flight) < min(batch_size + 1, 2 * NUM_READERS)
                    and (video := next(remaining, None)) is not None
                ):
                    in_flight.append((video, pool.submit(load_audio, video)))
                if not in_flight:
                    return
                yield in_flight.popleft()
        finally:
            for _, future in in_flight:
                future.cancel()


def _srt_path(out: Path, video: Path) -> Path:
    return out / f"{video.stem}.srt"


def transcribe_file(
    path: str | Path, whisper: str | Path, options: TranscriptionOptions | None = None, dtype: Dtype = "float32"
) -> Transcript:
    """Transcribe one video or audio file.

    Args:
      path: the file.
      whisper: folder, hub name or size, see `calce_jax.speech.whisper_model.open_whisper`.
      options: of the transcription.
      dtype: of weights and activations.

    Returns:
      The captions in seconds, the language, and the duration in seconds.

    Raises:
      SpeechModelError: the model cannot be opened.
      OptionsError: the model does not know the language.
      AudioError: the file has no audio, or cannot be decoded.
    """
    transcriber = lazy_transcriber(whisper, options, dtype)()
    [(_, transcript)] = transcriber.transcribe([(path, transcriber.load_audio(path))])
    return transcript
