"""Prepare all videos of a dataset on all cores, and build its tables.

A second run prepares only what is missing or has changed. Videos that are missing or cannot be decoded are listed and
skipped.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from calce_jax.datasets.items import fill_items
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
from calce_jax.datasets.validate import windows_after_end
from calce_jax.datasets.workers import end_with_parent
from calce_jax.errors import UsageError, UserError, UserFileNotFoundError
from calce_jax.moments.annotations import Annotation, AnnotationError, parse_annotations, warn_windows_beyond_video
from calce_jax.moments.json_rows import first_faults
from calce_jax.storage.disk_space import format_bytes, free_bytes
from calce_jax.storage.failures import Failure, write_failures
from calce_jax.storage.locks import FileLock
from calce_jax.video.files import find_video

SPLITS = ("train", "val", "test")


class PrepareError(UserError):
    """The dataset cannot be prepared."""


@dataclass(frozen=True)
class PrepareResult:
    """Result of a preparation.

    Attributes:
      num_ready: number of prepared videos.
      num_decoded: number of those that were decoded now; the others were prepared before.
      queries: number of queries in the tables, by split.
      extracted_items: number of those whose items are not annotated but nouns of the sentence, by split.
      failures: skipped videos and queries with the reasons, ordered by video id.
    """

    num_ready: int
    num_decoded: int
    queries: dict[str, int]
    extracted_items: dict[str, int]
    failures: list[Failure]


def read_splits(files: Sequence[str], items_file: str | None = None) -> dict[str, list[Annotation]]:
    """Read annotation files, each "SPLIT=FILE", or FILE if its name contains train, val or test.

    Args:
      files: one for each split.
      items_file: items file of the original CALCE, for annotations without items.

    Raises:
      UsageError: the split of a file is unknown or given twice.
      AnnotationError: the faults of all files together; a file that is missing is one.
    """
    splits, faults = check_splits(files, items_file)
    if lines := [line for split, found in faults.items() for line in first_faults(found, split)]:
        raise AnnotationError("\n".join(dict.fromkeys(lines)))
    for split, rows in splits.items():
        warn_windows_beyond_video(split, rows)
    return splits


def check_splits(
    files: Sequence[str], items_file: str | None = None
) -> tuple[dict[str, list[Annotation]], dict[str, list[str]]]:
    """Read annotation files like `read_splits`, and go on after faults.

    Args:
      files: as for `read_splits`.
      items_file: as for `read_splits`.

    Returns:
      The rows that can be used, and "FILE, LOCATION, FIELD: what is wrong; remedy" for the others, both by split.

    Raises:
      UsageError: the split of a file is unknown or given twice.
    """
    splits: dict[str, list[Annotation]] = {}
    faults: dict[str, list[str]] = {}
    for file in files:
        split, path = _parse_split(file)
        if split in splits:
            raise UsageError(
                f"--annotations: {split} is given twice, the second time by {path}", "give one file for each split"
            )
        try:
            splits[split], found = parse_annotations(path, items=items_file)
            faults[split] = [f"{path}, {fault}" for fault in found]
        except (AnnotationError, UserFileNotFoundError) as error:
            splits[split], faults[split] = [], [str(error)]
    return splits, faults


def _parse_split(file: str) -> tuple[str, str]:
    split, equals, path = file.partition("=")
    if split in SPLITS and path:
        return split, path
    if equals and os.sep not in split:
        reason = f"{split or 'an empty name'} is no split" if split not in SPLITS else f"{split} has no file"
        raise UsageError(f"--annotations={file}: {reason}", "write train=FILE, val=FILE or test=FILE")
    matching_splits = [split for split in SPLITS if split in re.split("[^a-z]+", Path(file).stem.lower())]
    if len(matching_splits) != 1:
        raise UsageError(
            f"--annotations: the name of {file} does not tell its split", f"write train={file}, or val or test"
        )
    return matching_splits[0], file


def annotated_videos(splits: Mapping[str, Sequence[Annotation]], videos: str | Path) -> list[Path]:
    """Return the files of all annotated videos in a folder, the same ones that `prepare_dataset` decodes."""
    ids = {row.video for rows in splits.values() for row in rows}
    paths = (find_video(Path(videos), video) for video in sorted(ids))
    return [path for path in paths if path is not None]


def caption_missing_videos(
    splits: Mapping[str, Sequence[Annotation]], videos: str | Path, srts: str | Path, whisper: str
) -> None:
    """Transcribe every annotated video without an .srt in the folder; a video that fails gets none.

    Args:
      splits: annotated queries by split.
      videos: folder of the videos.
      srts: folder of the .srt files; created if missing.
      whisper: folder, name or size, see `calce_jax.speech.whisper_model.open_whisper`.

    Raises:
      SpeechModelError: the model cannot be opened.
      OSError: an .srt cannot be written.
    """
    # Imported here: preparation without transcription needs no jax.
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
    """Prepare every annotated video once, and build the tables; only `queries` if `videos` is up to date.

    Queries without items get the nouns of the sentence, as a search gives a new one; under "reference" they get none.

    Args:
      dataset: "qvhighlights", "charades_sta", "activitynet" or "shapes".
      splits: annotated queries by split.
      videos: folder of <video id>.mp4, or another suffix of `VIDEO_SUFFIXES`.
      srts: folder of <video id>.srt or .vtt; None for a dataset without captions.
      out: output folder of `videos/<video id>.npz`, `tables/` and `failures.jsonl`.
      settings: how to prepare a video. Videos with other settings, or whose files have changed, are prepared again.
      workers: number of processes; that of the cores if None. With 1 this process decodes.
      decode: prepares the jobs it is given and returns the failures, such as `calce_jax.datasets.beam.make_prepare_fn`
        returns; by default `workers` processes do.

    Raises:
      PrepareError: a folder is missing, the disk has too little space, or a prepared video cannot be written.
      TablesError: the tables cannot be built.
      LockError: another process writes to `out` (`prepare.lock` there).
      OSError: the tables or failures.jsonl cannot be written.
    """
    out = Path(out)
    for field, path in (("videos", videos), ("srts", srts)):
        if path is not None and not Path(path).is_dir():
            raise PrepareError(f"--{field}={path}: no such folder", "correct the flag")
    if not any(splits.values()):
        raise PrepareError("--annotations: there is no query in any file", "check the files")
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
    pending = [job for job in jobs if not is_prepared(job)]
    decode_failures: list[Failure] = []
    if pending:
        # The tables hold the videos a second time.
        _check_free_disk(out, (len(pending) + len(jobs)) * settings.bytes_per_video)
        decode_failures = (
            decode(pending) if decode else _prepare_all(pending, len(jobs), workers or os.cpu_count() or 1)
        )
    ready = {job.video for job in jobs} - {failure.video for failure in decode_failures}
    durations = {video: load_duration(folder, video) for video in sorted(ready)}
    usable, window_failures = _usable_queries(splits, durations)
    extracted_items = dict.fromkeys(usable, 0)
    if settings.behaviour == "default":
        for split, rows in usable.items():
            usable[split], extracted_items[split] = fill_items(rows, dataset)
    failures += decode_failures + window_failures
    _write_failures(out, failures)
    queries = {split: len(rows) for split, rows in usable.items()}
    skipped: list[SkippedQuery] = []
    if usable and videos_table_matches(out, dataset, usable, latest_mtime=_latest_mtime(folder, ready)):
        rebuild_queries(out, dataset, usable)
    elif usable:
        _check_free_disk(out, len(ready) * settings.bytes_per_video)
        # Skipped are queries of prepared videos that can no longer be read.
        skipped = build_tables(out, dataset, usable, partial(load_video, folder))
    if skipped:
        failures += {row.video: Failure(row.video, row.reason, row.remedy) for row in skipped}.values()
        _write_failures(out, failures)
    for row in skipped:
        queries[row.split] -= 1
        ready.discard(row.video)
    failures.sort(key=lambda failure: failure.video)
    return PrepareResult(len(ready), len(pending) - len(decode_failures), queries, extracted_items, failures)


def _write_failures(out: Path, failures: Sequence[Failure]) -> None:
    write_failures(out / "failures.jsonl", sorted(failures, key=lambda failure: failure.video))


def _latest_mtime(folder: Path, videos: Iterable[str]) -> float:
    """Return when the last of these videos was prepared, in seconds of the file system's clock."""
    return max(prepared_path(folder, video).stat().st_mtime for video in videos)


def _check_free_disk(out: Path, needed: int) -> None:
    """Create `out`, and check that its disk has `needed` free bytes.

    Raises:
      PrepareError: the folder cannot be created, or the disk has too little space.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        free = free_bytes(out)
    except OSError as error:
        raise PrepareError(f"--out={out}: cannot create it ({error.strerror})", "choose another place") from None
    if needed > free:
        raise PrepareError(
            f"--out={out} needs about {format_bytes(needed)} and {format_bytes(free)} are free",
            "make room, choose another place, or prepare fewer or smaller frames",
        )


def _prepare_all(pending: Sequence[PrepareJob], total: int, workers: int) -> list[Failure]:
    """Prepare videos with a progress bar over all `total`; return the failures."""
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
            raise PrepareError(str(error.strerror), "then run the same command again to continue") from error
    return failures


def _try_prepare(job: PrepareJob) -> Failure | None:
    try:
        prepare_video(job)
    except UnusableVideoError as error:
        return Failure(job.video, error.reason, error.remedy)
    return None


def prepare_in_processes(jobs: Sequence[PrepareJob], workers: int) -> Iterator[Failure | None]:
    """Prepare videos in worker processes; yield a failure, or None, for each in the order of completion.

    A video that crashes its process is a failure; the others of that pool are tried again, one process each.

    Raises:
      OSError: a prepared video cannot be written.
    """
    remaining = iter(jobs)
    while chunk := list(islice(remaining, 2 * workers)):
        crashed: list[PrepareJob] = []
        with _worker_pool(min(workers, len(jobs))) as pool:
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
        # One of these jobs crashed the pool, which ended all of them.
        for job in crashed:
            with _worker_pool(1) as pool:
                try:
                    yield pool.submit(_try_prepare, job).result()
                except BrokenProcessPool:
                    reason = f"{job.video_path}: the decoder crashed"
                    yield Failure(job.video, reason, "encode it again with ffmpeg, or remove it")


@contextmanager
def _worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of processes; after an error in the body what has not begun is not begun."""
    # Spawned, not forked: the parent may have threads, those of JAX for instance.
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=end_with_parent) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _usable_queries(
    splits: Mapping[str, Sequence[Annotation]], durations: Mapping[str, float]
) -> tuple[dict[str, list[Annotation]], list[Failure]]:
    """Return the queries of prepared videos, and failures of those with a window that begins after the video's end.

    A window may end after the video's end, where it is cut.
    """
    usable: dict[str, list[Annotation]] = {}
    failures: list[Failure] = []
    for split, rows in splits.items():
        for row in rows:
            if row.video not in durations:
                continue
            if failure := next(windows_after_end(row, durations[row.video]), None):
                failures.append(failure)
            else:
                usable.setdefault(split, []).append(row)
    return usable, failures
