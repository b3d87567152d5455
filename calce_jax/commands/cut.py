"""Cut a part out of a video: `calce cut holiday.mp4 1:06 1:17 [--copy]`.

START and END are seconds, or m:ss, h:mm:ss. The clip is encoded anew and exact to the frame; --copy takes pictures and
sound as they are, in a fraction of the time, and begins at the key frame before START.
"""

from math import isfinite
from pathlib import Path

import click

from calce_jax.commands.command import FILE, Command, switch
from calce_jax.commands.flags.paths import check_output_file
from calce_jax.errors import UsageError

COPIED_SUFFIXES = (".mp4", ".mov", ".webm", ".mkv")  # the last takes nearly every kind of picture and sound


@click.command("cut", cls=Command, help=__doc__)
@click.argument("arguments", nargs=-1, type=FILE, metavar="VIDEO START END")
@click.option("--out", type=FILE, help="the new file; <video>_<start>_cut.mp4 in this folder unless given")
@switch("copy", help="copy pictures and sound instead of encoding them anew")
@click.option("--handles", type=click.FloatRange(min=0), default=0.0, help="seconds more on either side")
def command(arguments: tuple[str, ...], out: str | None, copy: bool, handles: float) -> None:
    """Cut the part and print the name of its file."""
    from calce_jax.moments.player_time import TimeError, format_time, parse_time

    if len(arguments) != 3:
        raise UsageError("expected a video, a start and an end; for example: calce cut holiday.mp4 1:06 1:17")
    video = Path(arguments[0])
    try:
        start, end = parse_time(arguments[1]), parse_time(arguments[2])
    except TimeError as error:
        raise UsageError(error.reason, error.remedy) from None
    if end <= start:
        raise UsageError(f"the end, {arguments[2]}, is not behind the start, {arguments[1]}")
    if not isfinite(handles):
        raise UsageError(f"--handles={handles}: must be a number")
    if not video.exists():
        raise UsageError(f"{video}: there is no such file")

    from calce_jax.search.results import clip_name
    from calce_jax.video.clips import copy_clip, cut_clip
    from calce_jax.video.decode import VideoError, video_duration

    duration = video_duration(video)
    if start >= duration:
        raise VideoError(video, f"it ends at {format_time(duration)}, before {arguments[1]}", "choose an earlier start")
    start, end = max(start - handles, 0.0), min(end + handles, duration)
    suffixes = COPIED_SUFFIXES if copy else (".mp4",)
    suffix = video.suffix if video.suffix.lower() in suffixes else suffixes[-1]
    if out is None:
        out = str(Path(clip_name(video.stem, "cut", start, set())).with_suffix(suffix))
    check_output_file("--out=", out, {"the video": video})
    if Path(out).suffix.lower() not in suffixes:
        raise UsageError(
            f"--out={out}: the name must end in {' or '.join(suffixes)}" + ("" if copy else ", or add --copy")
        )
    (copy_clip if copy else cut_clip)(video, start, end, out)
    print(f"{out}: {format_time(start)} - {format_time(end)} of {video}")
