"""Check annotations against videos and captions before anything is decoded."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from calce_jax.datasets.prepared_video import PrepareSettings, UnusableVideoError, make_job
from calce_jax.moments.annotations import (
    DURATION_TOLERANCE_S,
    Annotation,
    windows_beyond_video,
    windows_without_length,
)
from calce_jax.moments.json_rows import name_queries
from calce_jax.storage.failures import Failure
from calce_jax.text.caption_files import read_captions
from calce_jax.text.captions import CaptionError, clean_captions
from calce_jax.video.decode import VideoError, video_duration


@dataclass(frozen=True)
class ValidationReport:
    """Counts and faults of a dataset.

    Attributes:
      queries: number of queries by split.
      num_videos: number of annotated videos.
      hours: total duration of the readable ones.
      max_duration: longest duration of those, seconds.
      num_windows: number of annotated windows of all queries.
      without_windows: number of queries without windows.
      without_items: number of queries without items.
      without_length: ids of queries with a window of no length, which no answer can meet.
      beyond_video: ids of queries with a window that ends more than a second after its video, where it is cut.
      faults: ordered by video id.
    """

    queries: dict[str, int]
    num_videos: int
    hours: float
    max_duration: float
    num_windows: int
    without_windows: int
    without_items: int
    without_length: list[str | int]
    beyond_video: list[str | int]
    faults: list[Failure]

    def summary_lines(self) -> list[str]:
        """Return the counts as lines of text."""
        lines = [
            *(f"{split}: {count} queries" for split, count in self.queries.items()),
            f"{self.num_videos} videos, {self.hours:.2f} hours; the longest is {self.max_duration:.1f} s",
            f"{self.num_windows} windows; {self.without_windows} queries have none, {self.without_items} have no items",
            name_queries("queries have a window of no length, which no answer can meet", self.without_length),
            name_queries("queries have a window that ends more than a second after its video", self.beyond_video),
            f"{len(self.faults)} faults",
        ]
        return [line for line in lines if line]


def validate_dataset(
    splits: Mapping[str, Sequence[Annotation]], videos: str | Path, srts: str | Path | None
) -> ValidationReport:
    """Check the header and the captions of every annotated video; nothing is decoded or written.

    Args:
      splits: annotated queries by split.
      videos: folder of <video id>.mp4, or another suffix of `VIDEO_SUFFIXES`.
      srts: folder of <video id>.srt or .vtt; None for a dataset without captions.
    """
    rows = [row for split_rows in splits.values() for row in split_rows]
    rows_by_video: dict[str, list[Annotation]] = {}
    for row in rows:
        rows_by_video.setdefault(row.video, []).append(row)
    faults: list[Failure] = list(_check_split_leakage(splits))
    durations: dict[str, float] = {}
    for video in sorted(rows_by_video):
        try:
            job = make_job(video, Path(videos), None if srts is None else Path(srts), Path(), PrepareSettings(frames=1))
            duration = durations[video] = video_duration(job.video_path)
        except (UnusableVideoError, VideoError, OSError) as error:
            faults.append(Failure.of(video, error, "make the file readable"))
            continue
        faults += _check_windows(rows_by_video[video], duration)
        if job.srt_path is not None:
            faults += _check_captions(video, job.srt_path, duration)
    return ValidationReport(
        queries={split: len(split_rows) for split, split_rows in splits.items()},
        num_videos=len(rows_by_video),
        hours=sum(durations.values()) / 3600,
        max_duration=max(durations.values(), default=0.0),
        num_windows=sum(len(row.windows) for row in rows),
        without_windows=sum(not row.windows for row in rows),
        without_items=sum(not row.items for row in rows),
        without_length=[row.qid for row in windows_without_length(rows)],
        beyond_video=[row.qid for row in windows_beyond_video(rows, durations)],
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


def _check_windows(rows: Sequence[Annotation], duration: float) -> Iterator[Failure]:
    for row in rows:
        if row.duration is not None and abs(float(row.duration) - duration) > DURATION_TOLERANCE_S:
            reason = f"query {row.qid}: annotated with {row.duration} s, but the file has {duration:.1f} s"
            yield Failure(row.video, reason, "correct the duration, or get the right video")
        yield from windows_after_end(row, duration)


def windows_after_end(row: Annotation, duration: float) -> Iterator[Failure]:
    """Yield a failure for each window of a query that begins after its video's end, `duration` in seconds."""
    for window in row.windows:
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
