"""Annotations held against their videos and captions, before anything is decoded: what training would stumble over."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from calce_jax.datasets.prepared_video import Settings, UnusableVideo, find_job
from calce_jax.moments.annotations import Annotation
from calce_jax.storage.failures import Failure
from calce_jax.text.captions import CaptionError, clean, read_srt
from calce_jax.video.decode import VideoError, duration_of

# Annotated and real durations may differ by this much: annotations are rounded, headers too.
ROUNDING_S = 1.0


@dataclass(frozen=True)
class Checked:
    """What was found.

    Attributes:
      queries: by split.
      videos: that are annotated.
      hours: that the readable ones of them last.
      longest: of those, seconds.
      windows: true ones, of all queries.
      without_windows: queries that have none.
      without_items: queries whose things are not listed.
      faults: in order of the videos' ids.
    """

    queries: dict[str, int]
    videos: int
    hours: float
    longest: float
    windows: int
    without_windows: int
    without_items: int
    faults: list[Failure]

    def lines(self) -> list[str]:
        """Return what a person wants to know before training."""
        return [
            *(f"{split}: {count} queries" for split, count in self.queries.items()),
            f"{self.videos} videos, {self.hours:.2f} hours, the longest of {self.longest:.1f} s",
            f"{self.windows} windows; {self.without_windows} queries have none, {self.without_items} have no items",
            f"{len(self.faults)} faults",
        ]


def check(splits: Mapping[str, Sequence[Annotation]], videos: str | Path, srts: str | Path | None) -> Checked:
    """Look at every annotated video's header and captions; nothing is written.

    Args:
      splits: the annotated queries by split.
      videos: folder of <video id>.mp4, or another of the suffixes known.
      srts: folder of <video id>.srt; None for a dataset without captions.
    """
    rows = [row for each in splits.values() for row in each]
    of_video: dict[str, list[Annotation]] = {}
    for row in rows:
        of_video.setdefault(row.video, []).append(row)
    faults: list[Failure] = list(_shared(splits))
    durations: list[float] = []
    for video in sorted(of_video):
        try:
            job = find_job(video, Path(videos), None if srts is None else Path(srts), Path(), Settings(frames=1))
            durations.append(duration_of(job.source))
        except (UnusableVideo, VideoError) as error:
            faults.append(Failure(video, error.reason, error.remedy))
            continue
        faults += _of_windows(of_video[video], durations[-1])
        if job.captions is not None:
            faults += _of_captions(video, job.captions, durations[-1])
    return Checked(
        queries={split: len(each) for split, each in splits.items()},
        videos=len(of_video),
        hours=sum(durations) / 3600,
        longest=max(durations, default=0.0),
        windows=sum(len(row.windows) for row in rows),
        without_windows=sum(not row.windows for row in rows),
        without_items=sum(not row.items for row in rows),
        faults=sorted(faults, key=lambda fault: fault.video),
    )


def _shared(splits: Mapping[str, Sequence[Annotation]]) -> Iterator[Failure]:
    """Name the videos that are learnt from and judged by."""
    train = {row.video for row in splits.get("train", ())}
    for split in ("val", "test"):
        for video in sorted({row.video for row in splits.get(split, ())} & train):
            yield Failure(video, f"it is in train and in {split}", "leave it in one of them, or the scores say nothing")


def _of_windows(rows: Sequence[Annotation], duration: float) -> Iterator[Failure]:
    for row in rows:
        if row.duration is not None and abs(float(row.duration) - duration) > ROUNDING_S:
            reason = f"query {row.qid}: annotated with {row.duration} s, and the file lasts {duration:.1f} s"
            yield Failure(row.video, reason, "mend the duration, or fetch the right video")
        for window in row.windows:
            if window[0] >= duration:
                reason = f"query {row.qid}: window {window} begins after the video's end at {duration:.1f} s"
                yield Failure(row.video, reason, "mend the window, or fetch the whole video")


def _of_captions(video: str, srt: Path, duration: float) -> Iterator[Failure]:
    try:
        said = read_srt(srt)
    except CaptionError as error:
        yield Failure.of(video, error)
        return
    if said and not clean(said):
        yield Failure(video, f"none of the {len(said)} captions in {srt} is English", "the model reads English alone")
    if late := [caption for caption in said if float(caption.start) > duration + ROUNDING_S]:
        reason = f"{len(late)} captions in {srt} begin after the video's end at {duration:.1f} s"
        yield Failure(video, reason, "they belong to another cut of the video; caption this one")
