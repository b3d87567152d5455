"""Captioning folders of videos to .srt files; resumable, and a broken file does not stop the others."""

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import jax
import srt
from absl import logging
from tqdm import tqdm

from calce_jax.speech.audio import AudioError, NoAudioError
from calce_jax.speech.options import TranscriptionOptions
from calce_jax.speech.transcribe import AudioFeatures, Transcriber, Transcript
from calce_jax.speech.whisper_model import Dtype, open_whisper
from calce_jax.storage.atomic_files import write_atomic
from calce_jax.storage.failures import Failure, write_failures
from calce_jax.storage.file_names import fit_name
from calce_jax.text.caption import Caption
from calce_jax.text.caption_files import find_captions

# Threads that decode audio and detect speech, each several hundred times faster than real time.
NUM_READERS = min(os.cpu_count() or 1, 8)


@dataclass
class CaptioningResult:
    """Result of captioning a list of videos.

    Attributes:
      written: new .srt files, those of `no_audio` and `no_speech` included.
      existing: .srt files from before.
      without_words: those of `existing` with no .json of words beside it, where words were asked for.
      no_audio: videos without audio; their .srt is empty.
      no_speech: videos with audio but without speech; their .srt is empty.
      failures: videos that could not be captioned.
      seconds: duration of the transcribed audio.
    """

    written: list[Path] = field(default_factory=list)
    existing: list[Path] = field(default_factory=list)
    without_words: list[Path] = field(default_factory=list)
    no_audio: list[Path] = field(default_factory=list)
    no_speech: list[Path] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0

    def silent_lines(self) -> list[str]:
        """Return a line for each video without sound or speech."""
        return [
            f"{path}: {reason}; its captions are empty"
            for reason, paths in (("no audio", self.no_audio), ("no speech", self.no_speech))
            for path in paths
        ]

    def write_failures(self, path: Path) -> None:
        """Write one JSON line per failure; without failures, remove an earlier file."""
        if self.failures:
            write_failures(path, self.failures)
        else:
            path.unlink(missing_ok=True)


def caption_videos(
    videos: Sequence[Path],
    out: str | Path,
    transcriber: Callable[[], Transcriber],
    *,
    word_timestamps: bool = False,
    process_index: int | None = None,
    process_count: int | None = None,
) -> CaptioningResult:
    """Write `<stem>.srt` for every video that has none in `out` yet; `<stem>.json` too if the transcriber times words.

    Args:
      videos: the files. Of those with the same stem, only the first is captioned.
      out: folder of the .srt files, and of `failures.jsonl` if there are failures.
      transcriber: loads the model; not called if no .srt is missing.
      word_timestamps: whether the transcriber times words: then existing .srt files without a .json are listed.
      process_index: number of this host; it captions every `process_count`-th video. By default JAX's.
      process_count: number of hosts that share the videos. By default JAX's.

    Raises:
      OSError: an .srt cannot be written.
    """
    out = Path(out)
    process_index, process_count = (
        jax.process_index() if process_index is None else process_index,
        jax.process_count() if process_count is None else process_count,
    )
    unique_videos, duplicate_failures = deduplicate_names(videos)
    result = caption_missing(
        unique_videos[process_index::process_count], out, transcriber, word_timestamps=word_timestamps
    )
    result.failures = duplicate_failures + result.failures
    result.write_failures(
        out / ("failures.jsonl" if process_count == 1 else f"failures-{process_index + 1}-of-{process_count}.jsonl")
    )
    return result


def deduplicate_names(videos: Sequence[Path]) -> tuple[list[Path], list[Failure]]:
    """Return the first video of every stem, and a failure for each of the others, as they would share its .srt."""
    first_by_stem: dict[str, Path] = {}
    failures = []
    for video in videos:
        if (first := first_by_stem.setdefault(video.stem, video)) != video:
            reason = f"{video}: {first.name} has the same name, and its captions are in {video.stem}.srt"
            failures.append(Failure(str(video), reason, "rename one of them"))
    return list(first_by_stem.values()), failures


def caption_missing(
    videos: Sequence[Path], out: Path, transcriber: Callable[[], Transcriber], *, word_timestamps: bool = False
) -> CaptioningResult:
    """Write `<stem>.srt` for the videos that have none in `out`; like `caption_videos`, on one host."""
    existing = {video: find_captions(out, video.stem) for video in videos}
    result = CaptioningResult(existing=[path for path in existing.values() if path is not None])
    if word_timestamps:
        result.without_words = [
            path for video, path in existing.items() if path is not None and not _words_path(out, video).is_file()
        ]
    pending = [video for video in videos if existing[video] is None]
    if pending:
        _caption_all(pending, out, transcriber(), result)
    return result


def lazy_transcriber(
    whisper: str | Path, options: TranscriptionOptions | None = None, dtype: Dtype = "float32"
) -> Callable[[], Transcriber]:
    """Return a function that loads a model; it raises the errors of `open_whisper` and `Transcriber`."""
    return lambda: Transcriber(open_whisper(whisper, dtype), options or TranscriptionOptions())


def caption_without_srt(
    videos: Sequence[Path],
    folder: str | Path,
    whisper: str | Path,
    options: TranscriptionOptions | None = None,
    notice: Callable[[str], None] = logging.info,
) -> dict[Path, Path]:
    """Caption the videos that have no .srt beside them; log a warning for each that cannot be captioned.

    Args:
      videos: the files.
      folder: of the .srt files; existing ones are kept.
      whisper: as for `open_whisper`.
      options: of the transcription; with a language, an .srt counts only if its name has it.
      notice: called with a line for each video without sound or speech, whose .srt is empty.

    Returns:
      The .srt in `folder` of each video that has none beside it and could be captioned.
    """
    language = options.language if options else None
    uncaptioned = [video for video in videos if find_captions(video.parent, video.stem, language) is None]
    result = caption_videos(uncaptioned, folder, lazy_transcriber(whisper, options), process_index=0, process_count=1)
    for line in result.silent_lines():
        notice(line)
    for failure in result.failures:
        logging.warning("not captioned: %s; %s", failure.reason, failure.remedy)
    failed = {failure.video for failure in result.failures}
    srt_files = {*result.written, *result.existing}
    return {
        video: _srt_path(Path(folder), video)
        for video in uncaptioned
        if str(video) not in failed and _srt_path(Path(folder), video) in srt_files
    }


def format_srt(captions: Iterable[Caption], seconds: float) -> str:
    """Return the content of an .srt file, with captions clipped to the `seconds` of the audio."""
    entries = []
    for caption in captions:
        end = min(float(caption.end), seconds)
        if end > caption.start:
            start, end = (timedelta(milliseconds=round(1000 * float(second))) for second in (caption.start, end))
            entries.append(srt.Subtitle(len(entries) + 1, start, end, caption.text))
    return srt.compose(entries)


def format_json(transcript: Transcript) -> str:
    """Return the JSON that openai-whisper writes, without its decoding statistics; captions end with the audio.

    {"text", "segments": [{"id", "start", "end", "text", "words": [{"word", "start", "end", "probability"}]}],
    "language"}; times are in seconds.
    """
    captions = [caption for caption in transcript.captions if caption.start < transcript.seconds]
    segments = [
        {
            "id": number,
            "start": round(float(caption.start), 3),
            "end": round(min(float(caption.end), transcript.seconds), 3),
            "text": caption.text,
            "words": [
                {
                    "word": word.word,
                    "start": round(min(word.start, transcript.seconds), 3),
                    "end": round(min(word.end, transcript.seconds), 3),
                    "probability": round(word.probability, 4),
                }
                for word in caption.words
            ],
        }
        for number, caption in enumerate(captions)
    ]
    content = {
        "text": " ".join(caption.text for caption in captions),
        "segments": segments,
        "language": transcript.language,
    }
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


def _caption_all(videos: Sequence[Path], out: Path, transcriber: Transcriber, result: CaptioningResult) -> None:
    with tqdm(desc="caption", total=len(videos), unit="video", smoothing=0.05) as progress:
        start_time = time.monotonic()

        def finish(video: Path, transcript: Transcript) -> None:
            # The .srt last: where it is, the video is done.
            if transcriber.options.word_timestamps:
                write_atomic(_words_path(out, video), format_json(transcript))
            write_atomic(_srt_path(out, video), format_srt(transcript.captions, transcript.seconds))
            result.written.append(_srt_path(out, video))
            progress.update()
            minutes = (time.monotonic() - start_time) / 60
            progress.set_postfix_str(
                f"{result.seconds / 3600 / minutes:.2f} hours of audio per minute, {len(result.failures)} failed"
            )

        def load_all() -> Iterator[tuple[Path, AudioFeatures]]:
            for video, future in _prefetch(videos, transcriber.load_audio, transcriber.options.batch_size):
                try:
                    audio = future.result()
                except NoAudioError:
                    result.no_audio.append(video)
                    finish(video, Transcript([], None, 0.0))
                except AudioError as error:
                    result.failures.append(Failure(str(video), f"{error.path}: {error.reason}", error.remedy))
                    progress.update()
                else:
                    yield video, audio

        for video, transcript in transcriber.transcribe(load_all()):
            result.seconds += transcript.seconds
            if not format_srt(transcript.captions, transcript.seconds):
                result.no_speech.append(video)
            finish(video, transcript)


def _prefetch(
    videos: Sequence[Path], load_audio: Callable[[Path], AudioFeatures], batch_size: int
) -> Iterator[tuple[Path, Future[AudioFeatures]]]:
    """Yield (video, future of its features) in order, read ahead by threads; FFmpeg and numpy release the GIL."""
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
    return out / fit_name(video.stem, ".srt")


def _words_path(out: Path, video: Path) -> Path:
    return out / fit_name(video.stem, ".json")


def transcribe_file(
    path: str | Path,
    whisper: str | Path,
    options: TranscriptionOptions | None = None,
    dtype: Dtype = "float32",
    **fields: Any,
) -> Transcript:
    """Transcribe one video or audio file.

    Args:
      path: the file.
      whisper: folder, hub name or size, see `calce_jax.speech.whisper_model.open_whisper`.
      options: of the transcription.
      dtype: of weights and activations.
      fields: of `TranscriptionOptions`, in place of those of `options`, such as `word_timestamps=True`.

    Returns:
      The captions in seconds, the language, and the duration in seconds.

    Raises:
      SpeechModelError: the model cannot be opened.
      OptionsError: an option is invalid, or the model does not know the language.
      TypeError: there is no such field.
      AudioError: the file has no audio, or cannot be decoded.
    """
    transcriber = lazy_transcriber(whisper, replace(options or TranscriptionOptions(), **fields), dtype)()
    [(_, transcript)] = transcriber.transcribe([(path, transcriber.load_audio(path))])
    return transcript
