"""All videos of a dataset at once: on all cores, going on where it stopped, past whatever is broken or missing."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from calce_jax.datasets.prepared_video import (
    PrepareJob,
    PrepareSettings,
    UnusableVideoError,
    is_prepared,
    load_duration,
    load_video,
    make_job,
    prepare_video,
    prepared_path,
)
from calce_jax.datasets.tables import SkippedQuery, build_tables, rebuild_queries, videos_table_matches
from calce_jax.errors import UserError
from calce_jax.moments.annotations import Annotation, read_annotations
from calce_jax.storage.disk_space import free_bytes
from calce_jax.storage.failures import Failure, write_failures
from calce_jax.storage.locks import FileLock
from calce_jax.video.files import find_video

SPLITS = ("train", "val", "test")


class PrepareError(UserError):
    """Nothing can be prepared; the message says what is wrong and the remedy."""


@dataclass(frozen=True)
class PrepareResult:
    """What came of it.

    Attributes:
      num_ready: videos that are prepared.
      num_decoded: those of them that were decoded now; the others were there already.
      queries: in the tables, by split.
      failures: what was left out and why, in order of the videos' ids.
    """

    num_ready: int
    num_decoded: int
    queries: dict[str, int]
    failures: list[Failure]


def read_splits(files: Sequence[str], items_file: str | None = None) -> dict[str, list[Annotation]]:
    """Read annotation files, each "SPLIT=FILE" or a FILE whose name says train, val or test.

    Args:
      files: one a split.
      items_file: the original's file of items, for annotations that have none.

    Raises:
      PrepareError: a file's split cannot be told, or is given twice.
      FileNotFoundError: there is no such file.
      AnnotationError: faults in a file.
    """
    splits: dict[str, list[Annotation]] = {}
    for file in files:
        split, path = _parse_split(file)
        if split in splits:
            raise PrepareError(
                f"annotations: {split} is given twice, the second time by {path}", "name one file a split"
            )
        splits[split] = read_annotations(path, items=items_file)
    return splits


def _parse_split(file: str) -> tuple[str, str]:
    split, _, path = file.partition("=")
    if split in SPLITS and path:
        return split, path
    matching_splits = [split for split in SPLITS if split in re.split("[^a-z]+", Path(file).stem.lower())]
    if len(matching_splits) != 1:
        raise PrepareError(
            f"annotations: which split {file} is cannot be told by its name", f"write train={file}, or val or test"
        )
    return matching_splits[0], file


def annotated_videos(splits: Mapping[str, Sequence[Annotation]], videos: str | Path) -> list[Path]:
    """Return the files of annotated videos in a folder: of several files of one video, that which `prepare` takes."""
    ids = {row.video for rows in splits.values() for row in rows}
    paths = (find_video(Path(videos), video) for video in sorted(ids))
    return [path for path in paths if path is not None]


def caption_missing_videos(
    splits: Mapping[str, Sequence[Annotation]], videos: str | Path, srts: str | Path, whisper: str
) -> None:
    """Write the .srt of every annotated video that has none in the folder; those that fail are missing afterwards, too.

    Args:
      splits: the annotated queries by split.
      videos: folder of the videos.
      srts: folder of the .srt files; made if it is not there.
      whisper: as for `calce_jax.speech.whisper_model.open_whisper_weights`, which says what it raises.

    Raises:
      SpeechModelError: the model cannot be opened.
      OSError: an .srt cannot be written.
    """
    # Whisper is opened by those alone who want it.
    from calce_jax.speech.captioning import caption_videos, lazy_transcriber  # noqa: PLC0415

    Path(srts).mkdir(parents=True, exist_ok=True)
    caption_videos(annotated_videos(splits, videos), srts, lazy_transcriber(whisper), process_index=0, process_count=1)


def prepare_dataset(
    dataset: str,
    splits: Mapping[str, Sequence[Annotation]],
    *,
    videos: str | Path,
    srts: str | Path | None,
    out: str | Path,
    settings: PrepareSettings,
    workers: int | None = None,
    decode: Callable[[Sequence[PrepareJob]], list[Failure]] | None = None,
) -> PrepareResult:
    """Prepare every annotated video once and build the tables; where all videos are in them, that of the queries only.

    Args:
      dataset: "qvhighlights", "charades_sta" or "shapes".
      splits: the annotated queries by split.
      videos: folder of <video id>.mp4, or another of the suffixes known.
      srts: folder of <video id>.srt; None for a dataset without captions.
      out: gets `videos/<video id>.npz`, `tables/` and `failures.jsonl`.
      settings: how. Results made in another way, or of files that changed since, are made again.
      workers: processes; all cores unless given. One means this process itself.
      decode: prepares the videos that are not, in place of this machine, and returns those that could not be.

    Raises:
      PrepareError: a folder is missing, there is not enough room, or a result cannot be written.
      TablesError: the tables cannot be built.
      LockError: another process prepares into `out` (`prepare.lock` there).
      OSError: the tables or the list of failures cannot be written.
    """
    out = Path(out)
    for field, path in (("videos", videos), ("srts", srts)):
        if path is not None and not Path(path).is_dir():
            raise PrepareError(f"{field}: there is no folder {path}", "correct the flag")
    if not any(splits.values()):
        raise PrepareError("annotations: they hold no query", "give files that do")
    with FileLock(out / "prepare.lock"):
        return _prepare(
            dataset,
            splits,
            videos=Path(videos),
            srts=None if srts is None else Path(srts),
            out=out,
            settings=settings,
            workers=workers,
            decode=decode,
        )


def _prepare(
    dataset: str,
    splits: Mapping[str, Sequence[Annotation]],
    *,
    videos: Path,
    srts: Path | None,
    out: Path,
    settings: PrepareSettings,
    workers: int | None,
    decode: Callable[[Sequence[PrepareJob]], list[Failure]] | None,
) -> PrepareResult:
    folder = out / "videos"
    failures: list[Failure] = []
    jobs: list[PrepareJob] = []
    for video in sorted({row.video for rows in splits.values() for row in rows}):
        try:
            jobs.append(make_job(video, videos, srts, folder, settings))
        except UnusableVideoError as error:
            failures.append(Failure(video, error.reason, error.remedy))
    todo = [job for job in jobs if not is_prepared(job)]
    broken: list[Failure] = []
    if todo:
        # The tables hold the videos a second time.
        _check_free_disk(out, (len(todo) + len(jobs)) * settings.bytes_per_video)
        broken = decode(todo) if decode else _prepare_all(todo, len(jobs), workers or os.cpu_count() or 1)
    ready = {job.video for job in jobs} - {failure.video for failure in broken}
    durations = {video: load_duration(folder, video) for video in sorted(ready)}
    usable, outside = _usable_queries(splits, durations)
    failures += broken + outside
    _write_failures(out, failures)
    queries = {split: len(rows) for split, rows in usable.items()}
    left_out: list[SkippedQuery] = []
    if usable and videos_table_matches(out, dataset, usable, latest_mtime=_latest_mtime(folder, ready)):
        rebuild_queries(out, dataset, usable)
    elif usable:
        _check_free_disk(out, len(ready) * settings.bytes_per_video)
        # Left out is what was prepared and can no longer be read.
        left_out = build_tables(out, dataset, usable, partial(load_video, folder))
    if left_out:
        failures += {row.video: Failure(row.video, row.reason, row.remedy) for row in left_out}.values()
        _write_failures(out, failures)
    for row in left_out:
        queries[row.split] -= 1
        ready.discard(row.video)
    failures.sort(key=lambda failure: failure.video)
    return PrepareResult(len(ready), len(todo) - len(broken), queries, failures)


def _write_failures(out: Path, failures: Sequence[Failure]) -> None:
    write_failures(out / "failures.jsonl", sorted(failures, key=lambda failure: failure.video))


def _latest_mtime(folder: Path, videos: Iterable[str]) -> float:
    """Return when the last of these videos was prepared, seconds of the file system's clock."""
    return max(prepared_path(folder, video).stat().st_mtime for video in videos)


def _check_free_disk(out: Path, needed: int) -> None:
    """Refuse to begin where the disk does not take so many bytes."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        free = free_bytes(out)
    except OSError as error:
        raise PrepareError(f"out: cannot make the folder {out} ({error.strerror})", "choose another place") from None
    if needed > free:
        raise PrepareError(
            f"out: {out} needs about {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free",
            "make room, choose another place, or prepare fewer or smaller frames",
        )


def _prepare_all(pending: Sequence[PrepareJob], total: int, workers: int) -> list[Failure]:
    """Prepare videos behind a progress bar; return those that could not be."""
    failures = []
    with tqdm(desc="prepare", total=total, initial=total - len(pending), unit="video", smoothing=0.05) as bar:
        outcomes = map(_try_prepare, pending) if workers == 1 else prepare_in_processes(pending, workers)
        try:
            for failure in outcomes:
                bar.update()
                if failure is not None:
                    failures.append(failure)
                    bar.set_postfix(failed=len(failures))
        except OSError as error:
            raise PrepareError(f"{error.strerror}", "the same command then goes on from here") from error
    return failures


def _try_prepare(job: PrepareJob) -> Failure | None:
    try:
        prepare_video(job)
    except UnusableVideoError as error:
        return Failure(job.video, error.reason, error.remedy)
    return None


def prepare_in_processes(jobs: Sequence[PrepareJob], workers: int) -> Iterator[Failure | None]:
    """Prepare videos in processes, a few ahead; a video that takes its process with it is found and left out.

    Raises:
      OSError: a result cannot be written.
    """
    # Spawned, not forked: the parent may have threads, of JAX for instance.
    context = get_context("spawn")
    remaining = iter(jobs)
    while chunk := list(islice(remaining, 2 * workers)):
        crashed: list[PrepareJob] = []
        with ProcessPoolExecutor(min(workers, len(jobs)), context) as pool:
            running: dict[Future[Failure | None], PrepareJob] = {pool.submit(_try_prepare, job): job for job in chunk}
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job = running.pop(future)
                    if isinstance(future.exception(), BrokenProcessPool):
                        crashed.append(job)
                        continue
                    yield future.result()
                    if not crashed and (next_job := next(remaining, None)) is not None:
                        try:
                            running[pool.submit(_try_prepare, next_job)] = next_job
                        except BrokenProcessPool:
                            crashed.append(next_job)
        # One of these ended the pool, and all that were in it with it.
        for job in crashed:
            with ProcessPoolExecutor(1, context) as pool:
                try:
                    yield pool.submit(_try_prepare, job).result()
                except BrokenProcessPool:
                    reason = f"{job.video_path}: the decoder crashed on it"
                    yield Failure(job.video, reason, "make it again with ffmpeg, or remove it")


def _usable_queries(
    splits: Mapping[str, Sequence[Annotation]], durations: Mapping[str, float]
) -> tuple[dict[str, list[Annotation]], list[Failure]]:
    """Return the queries whose video is there and long enough, and which are not for their windows.

    A window may reach beyond the video's end (it ends with it), but not begin there.
    """
    usable: dict[str, list[Annotation]] = {}
    invalid_windows = []
    for split, rows in splits.items():
        for row in rows:
            if row.video not in durations:
                continue
            duration = durations[row.video]
            windows_after_end = [window for window in row.windows if window[0] >= duration]
            if windows_after_end:
                reason = (
                    f"query {row.qid}: window {windows_after_end[0]} begins after the video's end at {duration:.2f} s"
                )
                invalid_windows.append(Failure(row.video, reason, "mend the window, or fetch the whole video"))
            else:
                usable.setdefault(split, []).append(row)
    return usable, invalid_windows
