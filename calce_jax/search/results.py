"""Write the results of a search to a folder.

OUT/index.html      the page that plays the moments; works offline, also after the folder was moved
OUT/moments.json    the moments, one entry a video
OUT/videos/         the searched videos: hard links, or copies if they are on another disk
OUT/clips/          with `clips=True`: every moment as an mp4
"""

import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from calce_jax.errors import UsageError, UserError
from calce_jax.models.keyframes.treatment import Treatment
from calce_jax.report.search_page import BarView, PictureView, QueryResultView, VideoView, write_search_page
from calce_jax.search.ranking import ScoredWindow, break_ties_jointly
from calce_jax.search.thumbnails import read_thumbnails
from calce_jax.search.video_result import WORDS_STAGE, QueryResult, VideoResult
from calce_jax.storage.atomic_files import link_or_copy, write_atomic
from calce_jax.storage.disk_cache import DiskCache
from calce_jax.storage.failures import Failure
from calce_jax.storage.file_names import fit_name
from calce_jax.video.clips import cut_clip

if TYPE_CHECKING:  # most searches have none
    from calce_jax.moments.annotations import Annotation

CLIP_SLUG_LENGTH = 24  # characters of the query in a clip's name
GroundTruth = Mapping[
    tuple[str, str], Sequence[Sequence[int | float]]
]  # (video id, query): [[start, end], ...], seconds


@dataclass(frozen=True)
class RankedMoment:
    """A moment with its position in the ranking of a query over all videos, counted from 1."""

    query: str
    position: int
    video: Path
    moment: ScoredWindow


def check_owns(out: Path) -> None:
    """Check that what a search writes replaces no file but those of an earlier search.

    Raises:
      UsageError: the folder has such files, and no moments.json.
    """
    if (out / "moments.json").is_file():
        return
    taken = [name for name in ("videos", "clips") if (out / name).is_dir() and any((out / name).iterdir())]
    taken += [name for name in ("index.html",) if (out / name).exists()]
    if taken:
        raise UsageError(f"--out={out} has {' and '.join(taken)} that no search has written", "choose another folder")


def ensure_writable(out: str | Path) -> Path:
    """Check the output folder by a test file, so that a bad folder fails before the search and not after it.

    A folder that is created for this is removed again: a search that is interrupted or fails leaves none.

    Raises:
      UsageError: see `check_owns`.
      OSError: it cannot be created or written.
    """
    out = Path(out)
    check_owns(out)
    created = [folder for folder in (out, *out.parents) if not os.path.exists(folder)]
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise OSError(error.errno, f"cannot write into {out} ({error.strerror}); choose another folder") from error
    finally:
        for folder in created:
            with suppress(OSError):  # it was not created, or somebody else has written into it
                folder.rmdir()
    return out


def rank_moments(results: Sequence[VideoResult], max_moments: int) -> list[RankedMoment]:
    """Return the `max_moments` best moments of each query over all videos, from `break_ties_across_videos`."""
    rows = []
    for number, first in enumerate(results[0].query_results):
        moments = [(result.video, moment) for result in results for moment in result.query_results[number].moments]
        moments.sort(key=lambda pair: -pair[1].score)
        rows += [RankedMoment(first.query, position, *pair) for position, pair in enumerate(moments[:max_moments], 1)]
    return rows


def break_ties_across_videos(results: Sequence[VideoResult]) -> list[VideoResult]:
    """Return the results with distinct scores: no two moments of a query, in any video, have the same one."""
    columns = [
        break_ties_jointly([result.query_results[number].moments for result in results])
        for number in range(len(results[0].query_results))
    ]
    return [
        replace(
            result,
            query_results=[
                _replace_moments(query_result, columns[q][n]) for q, query_result in enumerate(result.query_results)
            ],
        )
        for n, result in enumerate(results)
    ]


def drop_below(results: Sequence[VideoResult], min_score: float) -> list[VideoResult]:
    """Return the results without the moments whose score is lower."""
    return [
        replace(
            result,
            query_results=[
                _replace_moments(found, [moment for moment in found.moments if moment.score >= min_score])
                for found in result.query_results
            ],
        )
        for result in results
    ]


def drop_absent(results: Sequence[VideoResult], threshold: float) -> list[VideoResult]:
    """Return the results without the moments of queries that probably do not happen in a video.

    Args:
      results: of the videos.
      threshold: of the best moment's score, see `calce_jax.search.calibration`. Words that are said have none.
    """

    def drop(found: QueryResult) -> QueryResult:
        if list(found.stages)[-1] == WORDS_STAGE or not found.moments or found.moments[0].score >= threshold:
            return found
        return replace(_replace_moments(found, []), segments_with_moments=[], absence_score=found.moments[0].score)

    return [replace(result, query_results=[drop(found) for found in result.query_results]) for result in results]


def keep_best(results: Sequence[VideoResult], top: int) -> list[VideoResult]:
    """Return the `top` best moments of each query over all videos, and the videos that have one of them.

    Args:
      results: of many videos, from `break_ties_across_videos`.
      top: maximum number of moments of a query.
    """
    if not results:
        return []
    best = {
        (ranked.query, ranked.video, ranked.moment.start, ranked.moment.end) for ranked in rank_moments(results, top)
    }
    kept = [
        replace(
            result,
            query_results=[
                _replace_moments(
                    found,
                    [m for m in found.moments if (found.query, result.video, m.start, m.end) in best],
                )
                for found in result.query_results
            ],
        )
        for result in results
    ]
    return [result for result in kept if any(found.moments for found in result.query_results)]


def ground_truth(annotations: "Iterable[Annotation]") -> GroundTruth:
    """Return the annotated windows by (video id, query), clipped to the video."""
    return {(annotation.video, annotation.query.strip()): annotation.clipped_windows for annotation in annotations}


def write_results(
    out: str | Path,
    results: Sequence[VideoResult],
    *,
    max_moments: int,
    clips: bool = False,
    truth: GroundTruth | None = None,
    notice: str = "",
    handles: float = 0.0,
    cache: DiskCache | None = None,
) -> list[Failure]:
    """Write `moments.json`, the page, the videos and the clips.

    The moments are written first. A clip or thumbnails that cannot be made cost nothing else.

    Args:
      out: the output folder.
      results: one for each video, from `break_ties_across_videos`.
      max_moments: length of the ranking of a query at the top of the page.
      clips: also write each moment as an mp4.
      truth: true windows to show on the page; the video id is the file name without its suffix.
      notice: why the answers may be meaningless, shown above them.
      handles: seconds by which a clip begins earlier and ends later.
      cache: of thumbnails.

    Returns:
      What could not be made: clips, which moments.json then does not name; thumbnails; videos, which are then not on
      the page.

    Raises:
      OSError: `moments.json` or the page cannot be written.
    """
    out = Path(out)
    failures: list[Failure] = []
    _write_moments(out, [to_json(result) for result in results])
    names = unique_names([result.video for result in results])
    all_clips: list[dict[tuple[int, int], str]] = []
    views = []
    for result, name in zip(results, names, strict=True):
        all_clips.append(_cut_clips(result, out, Path(name).stem, handles, failures) if clips else {})
        try:
            link_or_copy(result.video, out / "videos" / name)
        except OSError as error:
            failures.append(Failure.of(str(result.video), error))
            continue
        try:
            pictures = read_thumbnails(result, cache)
        except (UserError, OSError) as error:
            failures.append(Failure.of(str(result.video), error))
            pictures = []
        views.append(video_view(result, name, all_clips[-1], truth or {}, pictures))
    if any(all_clips):
        entries = [to_json(result, names) for result, names in zip(results, all_clips, strict=True)]
        try:
            _write_moments(out, entries)
        except OSError as error:  # those without clips stay
            failures.append(Failure.of(str(out / "moments.json"), error))
    if views:
        write_search_page(out / "index.html", views, max_moments=max_moments, notice=notice)
    else:  # that of an earlier search shows other moments
        (out / "index.html").unlink(missing_ok=True)
    return failures


def _write_moments(out: Path, entries: Sequence[dict[str, Any]]) -> None:
    write_atomic(out / "moments.json", json.dumps(entries, indent=2, ensure_ascii=False) + "\n")


def to_json(result: VideoResult, clips: dict[tuple[int, int], str] | None = None) -> dict[str, Any]:
    """Return the entry of a video in `moments.json`; `clips` maps (index of query, index of moment) to a file."""
    clips = clips or {}
    return {
        "video": str(result.video),
        "duration": round(result.duration, 3),
        "queries": [
            {
                "query": query_result.query,
                "moments": [
                    {
                        "start": round(moment.start, 2),
                        "end": round(moment.end, 2),
                        "score": moment.score,
                        **({} if moment.probability is None else {"probability": moment.probability}),
                        **({"clip": clips[number, n]} if (number, n) in clips else {}),
                    }
                    for n, moment in enumerate(query_result.moments)
                ],
                "captions": [
                    {"start": round(c.start, 2), "end": round(c.end, 2), "text": c.text, "similarity": c.similarity}
                    for c in query_result.captions
                ],
                "frames": _kept_keyframes(query_result),
            }
            for number, query_result in enumerate(result.query_results)
        ],
    }


def video_view(
    result: VideoResult,
    name: str,
    clips: dict[tuple[int, int], str],
    truth: GroundTruth,
    pictures: Sequence[PictureView],
) -> VideoView:
    """Return the page's view of a video that is stored as `videos/<name>`; `clips` as in `to_json`."""
    return VideoView(
        name=result.video.name,
        address=f"videos/{name}",
        duration=result.duration,
        pictures=pictures,
        query_results=[
            QueryResultView(
                query=query_result.query,
                stages={
                    stage: [
                        BarView(m.start, m.end, m.score, clips.get((q, n), ""), probability=m.probability)
                        for n, m in enumerate(moments)
                    ]
                    for stage, moments in query_result.stages.items()
                },
                captions=[BarView(c.start, c.end, c.similarity, text=c.text) for c in query_result.captions],
                treatments=[_treatment_at(query_result, picture.second) for picture in pictures],
                truth=[(start, end) for start, end in truth.get((result.video.stem, query_result.query), [])],
                absence_score=query_result.absence_score,
                saliency=query_result.saliency,
            )
            for q, query_result in enumerate(result.query_results)
        ],
    )


def _cut_clips(
    result: VideoResult, out: Path, stem: str, handles: float, failures: list[Failure]
) -> dict[tuple[int, int], str]:
    """Write the clips of a video; return their paths relative to `out`, by (index of query, index of moment)."""
    numbered_moments = [
        (q, n, moment)
        for q, query_result in enumerate(result.query_results)
        for n, moment in enumerate(query_result.moments)
    ]
    names, used_names = {}, set[str]()
    for q, n, moment in tqdm(numbered_moments, desc=f"cutting {stem}", unit="clip", dynamic_ncols=True, leave=False):
        name = f"clips/{clip_name(stem, result.query_results[q].query, moment.start, used_names)}"
        try:
            end = min(moment.end + handles, max(result.duration, moment.end))
            cut_clip(result.video, max(moment.start - handles, 0.0), end, out / name)
        except (UserError, OSError) as error:
            failures.append(Failure.of(str(result.video), error))
        else:
            names[q, n] = name
    return names


def clip_name(stem: str, query: str, start: float, used_names: set[str]) -> str:
    """Return a file name that tells what is in a clip, such as "holiday_00-01-06_a-dog-catches.mp4".

    Args:
      stem: name of the video without its suffix.
      query: the sentence; its first words become part of the name.
      start: second at which the clip begins.
      used_names: names that are taken, in lower case; the new one is added.
    """
    hours, minutes = divmod(int(start) // 60, 60)
    slug = "-".join(re.findall(r"\w+", query.lower()))
    if len(slug) > CLIP_SLUG_LENGTH:  # whole words, unless the first is longer
        slug = slug[: CLIP_SLUG_LENGTH + 1].rpartition("-")[0] or slug[:CLIP_SLUG_LENGTH]
    suffix = f"_{hours:02d}-{minutes:02d}-{int(start) % 60:02d}_{slug or 'moment'}"
    name, number = fit_name(stem, f"{suffix}.mp4"), 1
    while name.lower() in used_names:
        number += 1
        name = fit_name(stem, f"{suffix}-{number}.mp4")
    used_names.add(name.lower())
    return name


def unique_names(videos: Sequence[Path]) -> list[str]:
    """Return a distinct file name for each video, also on file systems that ignore case."""
    used_names: set[str] = set()
    names = []
    for video in videos:
        stem, number = re.sub(r"[^\w. -]", "_", video.stem), 1
        name = fit_name(stem, video.suffix)
        while name.lower() in used_names:
            number += 1
            name = fit_name(stem, f"_{number}{video.suffix}")
        used_names.add(name.lower())
        names.append(name)
    return names


def _replace_moments(query_result: QueryResult, moments: list[ScoredWindow]) -> QueryResult:
    last = list(query_result.stages)[-1]
    return replace(query_result, stages={**query_result.stages, last: moments})


def _kept_keyframes(query_result: QueryResult) -> list[float]:
    """Return the seconds of the key frames in the last stage's prompts, for segments that contain a moment."""
    return [
        second
        for second, treatment in query_result.frames
        if treatment != "dropped"
        and any(segment.start <= second < segment.end for segment in query_result.segments_with_moments)
    ]


def _treatment_at(query_result: QueryResult, second: float) -> Treatment:
    """Return the treatment of the key frame nearest to a second; "full" where no frames were chosen."""
    if not query_result.frames:
        return "full"
    seconds = [at for at, _ in query_result.frames]
    return query_result.frames[int(np.abs(np.array(seconds) - second).argmin())][1]
