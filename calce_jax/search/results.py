"""What a search leaves behind: `moments.json`, `index.html` that plays the videos, and clips.

OUT/index.html      works offline, also when the folder is moved
OUT/moments.json    one entry a video
OUT/videos/         the videos that were searched, linked where that is possible and copied where not
OUT/clips/          with clips asked for: every moment as an mp4
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from calce_jax.moments.annotations import Annotation
from calce_jax.report.search_page import BarView, FindingView, PictureView, VideoView, write_search_page
from calce_jax.search.ranking import Moment, together
from calce_jax.search.searcher import Found, Searched
from calce_jax.storage.atomic_files import replacing, write_output
from calce_jax.video.clips import cut, pictures_at

PICTURES = 48  # of a video on the page
Truth = Mapping[tuple[str, str], Sequence[Sequence[int | float]]]


@dataclass(frozen=True)
class Ranked:
    """A moment among those of all videos: the place counts from 1."""

    query: str
    place: int
    video: Path
    moment: Moment


def claim_folder(out: str | Path) -> Path:
    """Make a folder, and see that it can be written, before hours are spent.

    Raises:
      OSError: it cannot.
    """
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise OSError(error.errno, f"cannot write into {out} ({error.strerror}); choose another folder") from error
    return out


def ranked(searched: Sequence[Searched], top: int) -> list[Ranked]:
    """Return the best moments of all videos for each query, best first; scores as `told_apart` left them."""
    rows = []
    for number, first in enumerate(searched[0].found):
        moments = [(each.video, moment) for each in searched for moment in each.found[number].moments]
        moments.sort(key=lambda pair: -pair[1].score)
        rows += [Ranked(first.query, place, *pair) for place, pair in enumerate(moments[:top], 1)]
    return rows


def told_apart(searched: Sequence[Searched]) -> list[Searched]:
    """Return the results with scores that fall strictly over the moments of all videos for a query."""
    columns = [together([each.found[number].moments for each in searched]) for number in range(len(searched[0].found))]
    return [
        replace(each, found=[_with_moments(f, columns[q][n]) for q, f in enumerate(each.found)])
        for n, each in enumerate(searched)
    ]


def truth_in(annotations: Iterable[Annotation]) -> Truth:
    """Return the true windows by video and query, those that lie in the video."""
    return {(each.video, each.query.strip()): each.clamped for each in annotations}


def write_findings(
    out: str | Path, searched: Sequence[Searched], *, top: int, clips: bool = False, truth: Truth | None = None
) -> None:
    """Write everything.

    Args:
      out: the folder.
      searched: from `told_apart`.
      top: moments of a query that head the page.
      clips: whether to cut every moment out.
      truth: true windows, which the page shows beside the moments; by the video's name without its suffix, and query.

    Raises:
      OSError: something cannot be written.
    """
    out = Path(out)
    names = _names([each.video for each in searched])
    entries, views = [], []
    for each, name in zip(searched, names, strict=True):
        bring(each.video, out / "videos" / name)
        cut_to = _cut_all(each, out, Path(name).stem) if clips else {}
        entries.append(entry(each, cut_to))
        views.append(video_view(each, name, cut_to, truth or {}))
    write_output(out / "moments.json", json.dumps(entries, indent=2, ensure_ascii=False) + "\n")
    write_search_page(out / "index.html", views, top=top)


def entry(searched: Searched, clips: dict[tuple[int, int], str] | None = None) -> dict[str, Any]:
    """Return what `moments.json` says of a video; clips by number of query and moment."""
    clips = clips or {}
    return {
        "video": str(searched.video),
        "duration": round(searched.duration, 3),
        "queries": [
            {
                "query": found.query,
                "moments": [
                    {
                        "start": round(moment.start, 2),
                        "end": round(moment.end, 2),
                        "score": moment.score,
                        **({"clip": clips[number, n]} if (number, n) in clips else {}),
                    }
                    for n, moment in enumerate(found.moments)
                ],
                "captions": [
                    {"start": round(c.start, 2), "end": round(c.end, 2), "text": c.text, "similarity": c.similarity}
                    for c in found.captions
                ],
                "frames": _kept(found),
            }
            for number, found in enumerate(searched.found)
        ],
    }


def video_view(searched: Searched, name: str, clips: dict[tuple[int, int], str], truth: Truth) -> VideoView:
    """Return what the page shows of a video, which lies beside it in `videos/`."""
    seconds = np.linspace(0.0, searched.duration, PICTURES, endpoint=False).tolist()
    pictures = pictures_at(searched.video, seconds)
    return VideoView(
        name=searched.video.name,
        address=f"videos/{name}",
        duration=searched.duration,
        pictures=[PictureView(second, jpeg) for second, jpeg in zip(seconds, pictures, strict=True)],
        findings=[
            FindingView(
                query=found.query,
                stages={
                    stage: [BarView(m.start, m.end, m.score, clips.get((q, n), "")) for n, m in enumerate(moments)]
                    for stage, moments in found.stages.items()
                },
                captions=[BarView(c.start, c.end, c.similarity, text=c.text) for c in found.captions],
                treatments=[_treatment(found, second) for second in seconds],
                truth=[(start, end) for start, end in truth.get((searched.video.stem, found.query), [])],
            )
            for q, found in enumerate(searched.found)
        ],
    )


def bring(video: Path, to: Path) -> None:
    """Put a video where the page finds it: a second name for the same file, or a copy on another disk.

    Raises:
      OSError: it cannot be put there.
    """
    if to.exists() and to.samefile(video):
        return
    with replacing(to) as part:
        part.unlink(missing_ok=True)
        try:
            os.link(video.resolve(), part)
        except OSError:
            shutil.copyfile(video, part)


def _cut_all(searched: Searched, out: Path, stem: str) -> dict[tuple[int, int], str]:
    every = [(q, n, moment) for q, found in enumerate(searched.found) for n, moment in enumerate(found.moments)]
    names = {}
    for q, n, moment in tqdm(every, desc=f"cutting {stem}", unit="clip", dynamic_ncols=True, leave=False):
        name = f"clips/{stem}_query{q + 1}_{n + 1}.mp4"
        cut(searched.video, moment.start, moment.end, out / name)
        names[q, n] = name
    return names


def _names(videos: Sequence[Path]) -> list[str]:
    """Return names for files of many folders that do not clash, not even where case does not count."""
    taken: set[str] = set()
    names = []
    for video in videos:
        stem, number = re.sub(r"[^\w. -]", "_", video.stem), 1
        name = f"{stem}{video.suffix}"
        while name.lower() in taken:
            number += 1
            name = f"{stem}_{number}{video.suffix}"
        taken.add(name.lower())
        names.append(name)
    return names


def _with_moments(found: Found, moments: list[Moment]) -> Found:
    last = list(found.stages)[-1]
    return replace(found, stages={**found.stages, last: moments})


def _kept(found: Found) -> list[float]:
    """Return the seconds of the key frames that the answers around the moments were made from."""
    return [
        second
        for second, treatment in found.frames
        if treatment != "dropped" and any(piece.start <= second < piece.end for piece in found.shown)
    ]


def _treatment(found: Found, second: float) -> str:
    seconds = [at for at, _ in found.frames]
    return found.frames[int(np.abs(np.array(seconds) - second).argmin())][1]
