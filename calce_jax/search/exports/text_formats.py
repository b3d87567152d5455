"""JSON, CSV, WebVTT and chapters. Chapters are in the metadata format of ffmpeg, which puts them into a video:

ffmpeg -i film.mp4 -i chapters.txt -map_metadata 1 -codec copy film_with_chapters.mp4
"""

import csv
import io
import json
import re
from collections.abc import Sequence
from itertools import pairwise

from calce_jax.errors import UserError
from calce_jax.moments.player_time import format_time
from calce_jax.search.moment import Moment

CSV_FIELDS = ("query", "position", "video", "start", "end", "start_time", "end_time", "score")


class ExportError(UserError):
    """The moments cannot be written in a format."""


def to_json(moments: Sequence[Moment]) -> str:
    """Return a JSON list of `Moment.to_dict`."""
    return json.dumps([moment.to_dict() for moment in moments], indent=2, ensure_ascii=False) + "\n"


def to_csv(moments: Sequence[Moment]) -> str:
    """Return a table with the columns `CSV_FIELDS`."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_FIELDS)
    for m in moments:
        seconds = (f"{m.start:.2f}", f"{m.end:.2f}", format_time(m.start), format_time(m.end))
        writer.writerow([_cell(m.query), m.position, _cell(str(m.video)), *seconds, f"{m.score:.6f}"])
    return out.getvalue()


def to_vtt(moments: Sequence[Moment]) -> str:
    """Return WebVTT with a cue for each moment, in order of time.

    Raises:
      ExportError: the moments are of several videos.
    """
    _check_one_video(moments, "vtt")
    cues = (
        f"{_vtt_time(m.start)} --> {_vtt_time(max(m.end, m.start + 0.001))}\n{_vtt_text(m.query)} ({m.score:.3f})\n"
        for m in _in_order(moments)
    )
    return "\n".join(["WEBVTT\n", *cues])


def to_chapters(moments: Sequence[Moment]) -> str:
    """Return chapters in ffmpeg's metadata format, in order of time; each ends where the next begins.

    Raises:
      ExportError: the moments are of several videos.
    """
    _check_one_video(moments, "chapters")
    ordered = _in_order(moments)
    ends = [min(m.end, following.start) for m, following in pairwise(ordered)] + [m.end for m in ordered[-1:]]
    chapters = (
        f"[CHAPTER]\nTIMEBASE=1/1000\nSTART={round(m.start * 1000)}\nEND={round(end * 1000)}\n"
        f"title={_escape(m.query)}\n"
        for m, end in zip(ordered, ends, strict=True)
    )
    return "\n".join([";FFMETADATA1\n", *chapters])


def _check_one_video(moments: Sequence[Moment], name: str) -> None:
    if len(videos := {moment.video for moment in moments}) > 1:
        raise ExportError(
            f"{name} is a format for one video, the moments are of {len(videos)}", "write each video's own"
        )


def _in_order(moments: Sequence[Moment]) -> list[Moment]:
    return sorted(moments, key=lambda m: (m.start, m.end))


def plain(text: str) -> str:
    """Return a text on one line, without control characters, which would end a field or a line of a format."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _cell(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula."""
    text = plain(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) else text


def _vtt_time(second: float) -> str:
    minutes, milliseconds = divmod(round(second * 1000), 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds // 1000:02d}.{milliseconds % 1000:03d}"


def _vtt_text(text: str) -> str:
    return plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _escape(text: str) -> str:
    return re.sub(r"([=;#\\])", r"\\\1", plain(text))
