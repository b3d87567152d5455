"""Check annotations against videos and captions before anything is decoded."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from calce_jax.datasets.prepared_video import PrepareSettings, UnusableVideoError, make_job
from calce_jax.moments.annotations import DURATION_TOLERANCE_S, Annotation, windows_without_length
from calce_jax.moments.json_rows import first_faults, name_queries
from calce_jax.storage.failures import Failure, failure_table
from calce_jax.text.caption_files import read_captions
from calce_jax.text.captions import CaptionError, clean_captions
from calce_jax.video.decode import VideoError, video_duration


@dataclass(frozen=True)
class ValidationReport:
    """Counts and faults of a dataset.

    Attributes:
      queries: number of queries by split.
      num_videos: number of annotated videos.
      num_readable: number of those whose file is there and can be read.
      hours: total duration of the readable ones.
      max_duration: longest duration of those, seconds.
      num_windows: number of annotated windows of all queries.
      without_windows: number of queries whose windows are not known.
      num_absent: number of queries that do not happen in their video.
      without_items: number of queries without items.
      without_length: ids of queries with a window of no length, which no answer can meet.
      row_faults: of queries, "FILE, line N, FIELD: what is wrong; remedy", by split.
      faults: of videos and captions, ordered by video id.
    """

    queries: dict[str, int]
    num_videos: int
    num_readable: int
    hours: float
    max_duration: float
    num_windows: int
    without_windows: int
    num_absent: int
    without_items: int
    without_length: list[str | int]
    row_faults: dict[str, list[str]]
    faults: list[Failure]

    @property
    def num_faults(self) -> int:
        """Number of all faults."""
        return len(self.faults) + sum(map(len, self.row_faults.values()))

    def _length(self) -> str:
        if not self.num_readable:
            return "none of which can be read"
        some = "" if self.num_readable == self.num_videos else f"{self.num_readable} of which can be read, "
        return f"{some}{self.hours:.2f} hours; the longest is {self.max_duration:.1f} s"

    def fault_lines(self) -> list[str]:
        """Return the faults as lines of text: the first of each split's rows, then those of videos."""
        lines = [line for split, faults in self.row_faults.items() for line in first_faults(faults, split)]
        return list(dict.fromkeys(lines)) + ([failure_table(self.faults, all_are_in="")] if self.faults else [])

    def summary_lines(self) -> list[str]:
        """Return the counts as lines of text."""
        lines = [
            *(f"{split}: {count} queries" for split, count in self.queries.items()),
            f"{self.num_videos} videos, {self._length()}",
            f"{self.num_windows} windows; {self.without_windows} queries have none, "
            f"{self.without_items} have no items, and get the nouns of their sentence",
            f"{self.num_absent} queries do not happen in their video" if self.num_absent else "",
            name_queries("queries have a window of no length, which no answer can meet", self.without_length),
            f"{self.num_faults} faults",
        ]
        return [line for line in lines if line]


def validate_dataset(
    splits: Mapping[str, Sequence[Annotation]],
    videos: str | Path,
    srts: str | Path | None,
    faults_by_split: Mapping[str, Sequence[str]] | None = None,
) -> ValidationReport:
    """Check the rows, and the header and the captions of every annotated video; nothing is decoded or written.

    Args:
      splits: annotated queries by split.
      videos: folder of <video id>.mp4, or another suffix of `VIDEO_SUFFIXES`.
      srts: folder of <video id>.srt or .vtt; None for a dataset without captions.
      faults_by_split: of the rows that could not be read, from `calce_jax.datasets.prepare.check_splits`.
    """
    rows = [row for split_rows in splits.values() for row in split_rows]
    videos_in_order = sorted({row.video for row in rows})
    row_faults = {split: list(found) for split, found in (faults_by_split or {}).items()}
    faults: list[Failure] = list(_check_split_leakage(splits))
    durations: dict[str, float] = {}
    for video in videos_in_order:
        try:
            job = make_job(video, Path(videos), None if srts is None else Path(srts), Path(), PrepareSettings(frames=1))
            duration = durations[video] = video_duration(job.video_path)
        except (UnusableVideoError, VideoError, OSError) as error:
            faults.append(Failure.of(video, error, "make the file readable"))
            continue
        if job.srt_path is not None:
            faults += _check_captions(video, job.srt_path, duration)
    for split, split_rows in splits.items():
        found = [fault for row in split_rows for fault in _check_row(row, split, durations.get(row.video))]
        row_faults.setdefault(split, []).extend(found)
    return ValidationReport(
        queries={split: len(split_rows) for split, split_rows in splits.items()},
        num_videos=len(videos_in_order),
        num_readable=len(durations),
        hours=sum(durations.values()) / 3600,
        max_duration=max(durations.values(), default=0.0),
        num_windows=sum(len(row.windows or ()) for row in rows),
        without_windows=sum(row.windows is None for row in rows),
        num_absent=sum(row.is_absent for row in rows),
        without_items=sum(not row.items for row in rows),
        without_length=[row.qid for row in windows_without_length(rows)],
        row_faults=row_faults,
        faults=sorted(faults, key=lambda fault: fault.video),
    )


def _check_split_leakage(splits: Mapping[str, Sequence[Annotation]]) -> Iterator[Failure]:
    """Yield a fault for each video that is in train and in another split."""
    train = {row.video for row in splits.get("train", ())}
    for split in ("val", "test"):
        for video in sorted({row.video for row in splits.get(split, ())} & train):
            yield Failure(
                video,
                f"it is in train and in {split}",
                "remove it from one of them: the scores would be of seen videos",
            )


def _check_row(row: Annotation, split: str, duration: float | None) -> Iterator[str]:
    """Yield the faults of a query that can be read; `duration` is that of the file in seconds, None if unreadable."""
    location = f"{row.location or split} (query {row.qid})"
    if split == "train" and row.windows is None:
        yield f"{location}, relevant_windows: none, so it cannot be trained on; add the windows or drop the row"
    if duration is not None and row.duration is not None and abs(row.duration - duration) > DURATION_TOLERANCE_S:
        yield (
            f"{location}, duration: annotated with {row.duration} s, but the file of {row.video} has {duration:.1f} s; "
            "correct the duration, or get the right video"
        )
    end = float(math.inf if row.duration is None else row.duration) if duration is None else duration
    for window in row.windows or ():
        if window[0] >= end or window[1] > end + DURATION_TOLERANCE_S:
            verb = "begins" if window[0] >= end else "ends"
            yield (
                f"{location}, relevant_windows: {window} {verb} after the end of {row.video} at {end:.2f} s; correct "
                "the window, or get the whole video"
            )


def windows_after_end(row: Annotation, duration: float) -> Iterator[Failure]:
    """Yield a failure for each window of a query that begins after its video's end, `duration` in seconds."""
    for window in row.windows or ():
        if window[0] >= duration:
            reason = f"query {row.qid}: window {window} begins after the video's end at {duration:.2f} s"
            yield Failure(row.video, reason, "correct the window, or get the whole video")


def _check_captions(video: str, srt: Path, duration: float) -> Iterator[Failure]:
    try:
        captions = read_captions(srt)
    except (CaptionError, OSError) as error:
        yield Failure.of(video, error, "make the file readable")
        return
    if captions and not clean_captions(captions):
        yield Failure(video, f"none of the {len(captions)} captions in {srt} is English", "give English captions")
    if late := [caption for caption in captions if float(caption.start) > duration + DURATION_TOLERANCE_S]:
        reason = f"{len(late)} captions in {srt} begin after the video's end at {duration:.1f} s"
        yield Failure(video, reason, "give the captions of this cut of the video, or transcribe it")
