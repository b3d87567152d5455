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
from calce_jax.speech.audio import NoSound, SoundError
from calce_jax.speech.transcribe import Options, Sound, Transcriber
from calce_jax.speech.whisper_model import Dtype, open_whisper
from calce_jax.storage.atomic_files import write_output
from calce_jax.storage.failures import Failure, write_failures
from calce_jax.text.text_row import Caption
from calce_jax.video.files import is_video_name

# What is looked for in a folder; a file that is named itself may be called anything.
SOUND_SUFFIXES = frozenset((".wav", ".flac", ".mp3", ".m4a", ".aac", ".ogg", ".opus"))
# Threads that decode sound and look for voices, several hundred times as fast as it plays each.
READERS = min(os.cpu_count() or 1, 8)


class CaptioningError(UserError):
    """Nothing can be captioned; the message says what is wrong and the remedy."""


@dataclass
class Captioned:
    """What came of it.

    Attributes:
      written: .srt files that were written now, those of `soundless` and `speechless` included.
      there: .srt files that were there already.
      soundless: videos without sound: their .srt is empty.
      speechless: videos with sound in which nobody speaks: theirs is empty too.
      failures: videos that could not be captioned.
      seconds: of sound that was transcribed.
    """

    written: list[Path] = field(default_factory=list)
    there: list[Path] = field(default_factory=list)
    soundless: list[Path] = field(default_factory=list)
    speechless: list[Path] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0

    def list_failures(self, path: Path) -> None:
        """Write one line a failure; where there is none, see that no list is there."""
        if self.failures:
            write_failures(path, self.failures)
        else:
            path.unlink(missing_ok=True)


def find_videos(place: str | Path) -> list[Path]:
    """Return a file, or the media files of a folder by name.

    Raises:
      CaptioningError: there is no such place, or no media file in the folder.
    """
    place = Path(place)
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise CaptioningError(f"videos: there is no file or folder {place}", "correct the flag")
    found = sorted(
        path
        for path in place.iterdir()
        if path.is_file() and (is_video_name(path) or path.suffix.lower() in SOUND_SUFFIXES)
    )
    if not found:
        raise CaptioningError(f"videos: no file in {place} has a suffix of video or sound", "give another folder")
    return found


def caption_videos(
    videos: Sequence[Path],
    out: str | Path,
    transcriber: Callable[[], Transcriber],
    *,
    host: int | None = None,
    hosts: int | None = None,
) -> Captioned:
    """Write `<video's name>.srt` for every video that has none there yet.

    Args:
      videos: the files.
      out: folder of the .srt files; also gets `failures.jsonl`, one line a failure, when there is one.
      transcriber: opens the model; not called when everything is there.
      host, hosts: which of several machines this is, each of which takes its share; JAX's own numbers unless given.

    Raises:
      OSError: an .srt cannot be written.
    """
    out = Path(out)
    host, hosts = jax.process_index() if host is None else host, jax.process_count() if hosts is None else hosts
    named, alike = distinct(videos)
    done = caption_each(named[host::hosts], out, transcriber)
    done.failures = alike + done.failures
    done.list_failures(out / ("failures.jsonl" if hosts == 1 else f"failures-{host + 1}-of-{hosts}.jsonl"))
    return done


def distinct(videos: Sequence[Path]) -> tuple[list[Path], list[Failure]]:
    """Return the first video of every name, whose captions its .srt holds, and of the others that they are left out."""
    taken: dict[str, Path] = {}
    failures = []
    for video in videos:
        if (first := taken.setdefault(video.stem, video)) != video:
            reason = f"{video}: {first.name} has the same name, and its captions are in {video.stem}.srt"
            failures.append(Failure(str(video), reason, "rename one of them"))
    return list(taken.values()), failures


def caption_each(videos: Sequence[Path], out: Path, transcriber: Callable[[], Transcriber]) -> Captioned:
    """Write `<video's name>.srt` for those of these videos that have none there yet; see `caption_videos`."""
    done = Captioned(there=[_target(out, video) for video in videos if _target(out, video).is_file()])
    todo = [video for video in videos if not _target(out, video).is_file()]
    if todo:
        _caption(todo, out, transcriber(), done)
    return done


def opener(whisper: str | Path, options: Options | None = None, dtype: Dtype = "float32") -> Callable[[], Transcriber]:
    """Return what opens a model when it turns out to be needed; see `open_whisper` and `Transcriber` for its errors."""
    return lambda: Transcriber(open_whisper(whisper, dtype), options or Options())


def captions_for(videos: Sequence[Path], folder: str | Path, whisper: str | Path) -> dict[Path, Path]:
    """Caption the videos that have no .srt beside them, and say of those that cannot be why.

    Args:
      videos: the files.
      folder: of the new .srt files; those that are there already stay.
      whisper: as for `open_whisper`.

    Returns:
      The new .srt of each video that needed one and could be captioned.
    """
    silent = [video for video in videos if not video.with_suffix(".srt").is_file()]
    done = caption_videos(silent, folder, opener(whisper), host=0, hosts=1)
    for failure in done.failures:
        logging.warning("no captions: %s; %s", failure.reason, failure.remedy)
    failed = {failure.video for failure in done.failures}
    there = {*done.written, *done.there}
    return {
        video: _target(Path(folder), video)
        for video in silent
        if str(video) not in failed and _target(Path(folder), video) in there
    }


def compose(captions: Iterable[Caption], seconds: float) -> str:
    """Return the contents of an .srt file; captions end with the sound."""
    entries = []
    for caption in captions:
        end = min(float(caption.end), seconds)
        if end > caption.start:
            start, end = (timedelta(milliseconds=round(1000 * float(second))) for second in (caption.start, end))
            entries.append(srt.Subtitle(len(entries) + 1, start, end, caption.text))
    return srt.compose(entries)


def _caption(videos: Sequence[Path], out: Path, transcriber: Transcriber, done: Captioned) -> None:
    with tqdm(desc="caption", total=len(videos), unit="video", smoothing=0.05) as bar:
        began = time.monotonic()

        def finished(video: Path, content: str) -> None:
            write_output(_target(out, video), content)
            done.written.append(_target(out, video))
            bar.update()
            minutes = (time.monotonic() - began) / 60
            bar.set_postfix_str(
                f"{done.seconds / 3600 / minutes:.2f} hours of sound a minute, {len(done.failures)} failed"
            )

        def sounds() -> Iterator[tuple[Path, Sound]]:
            for video, sound in _ahead(videos, transcriber.listen, transcriber.options.batch_size):
                try:
                    heard = sound.result()
                except NoSound:
                    done.soundless.append(video)
                    finished(video, "")
                except SoundError as error:
                    done.failures.append(Failure(str(video), f"{error.path}: {error.reason}", error.remedy))
                    bar.update()
                else:
                    yield video, heard

        for video, transcript in transcriber.transcribe(sounds()):
            done.seconds += transcript.seconds
            content = compose(transcript.captions, transcript.seconds)
            if not content:
                done.speechless.append(video)
            finished(video, content)


def _ahead(videos: Sequence[Path], listen: Callable[[Path], Sound], many: int) -> Iterator[tuple[Path, Future[Sound]]]:
    """Yield files in order, the next ones being read by threads meanwhile; FFmpeg and numpy leave Python's lock."""
    waiting, running = iter(videos), deque[tuple[Path, Future[Sound]]]()
    with ThreadPoolExecutor(READERS) as pool:
        try:
            while True:
                while len(running) < min(many + 1, 2 * READERS) and (video := next(waiting, None)) is not None:
                    running.append((video, pool.submit(listen, video)))
                if not running:
                    return
                yield running.popleft()
        finally:
            for _, future in running:
                future.cancel()


def _target(out: Path, video: Path) -> Path:
    return out / f"{video.stem}.srt"
