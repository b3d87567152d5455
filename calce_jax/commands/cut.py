"""Cut a part out of a video: `calce cut holiday.mp4 1:06 1:17 [--copy]`.

START and END are seconds, or m:ss, h:mm:ss. The clip is encoded anew and exact to the frame; --copy takes pictures and
sound as they are, in a fraction of the time, and begins at the key frame before START.
"""

from math import isfinite
from pathlib import Path

from absl import flags

from calce_jax.commands.flags.paths import check_output_file
from calce_jax.errors import UsageError

COPIED_SUFFIXES = (".mp4", ".mov", ".webm", ".mkv")  # the last takes nearly every kind of picture and sound

FLAGS = flags.FlagValues()
OUT = flags.DEFINE_string(
    "out", None, "the new file; <video>_<start>_cut.mp4 in this folder unless given", flag_values=FLAGS
)
COPY = flags.DEFINE_bool("copy", False, "copy pictures and sound instead of encoding them anew", flag_values=FLAGS)
HANDLES = flags.DEFINE_float("handles", 0.0, "seconds more on either side", lower_bound=0.0, flag_values=FLAGS)


def main(argv: list[str]) -> None:
    """Cut the part and print the name of its file."""
    from calce_jax.moments.player_time import TimeError, format_time, parse_time

    if len(argv) != 4:
        raise UsageError("expected a video, a start and an end; for example: calce cut holiday.mp4 1:06 1:17")
    video = Path(argv[1])
    try:
        start, end = parse_time(argv[2]), parse_time(argv[3])
    except TimeError as error:
        raise UsageError(error.reason, error.remedy) from None
    if end <= start:
        raise UsageError(f"the end, {argv[3]}, is not behind the start, {argv[2]}")
    if not isfinite(HANDLES.value or 0.0):
        raise UsageError(f"--handles={HANDLES.value}: must be a number")
    if not video.exists():
        raise UsageError(f"{video}: there is no such file")

    from calce_jax.search.results import clip_name
    from calce_jax.video.clips import copy_clip, cut_clip
    from calce_jax.video.decode import VideoError, video_duration

    duration = video_duration(video)
    if start >= duration:
        raise VideoError(video, f"it ends at {format_time(duration)}, before {argv[2]}", "choose an earlier start")
    start, end = max(start - (HANDLES.value or 0.0), 0.0), min(end + (HANDLES.value or 0.0), duration)
    suffixes = COPIED_SUFFIXES if COPY.value else (".mp4",)
    suffix = video.suffix if video.suffix.lower() in suffixes else suffixes[-1]
    out = (
        OUT.value
        if OUT.value is not None
        else str(Path(clip_name(video.stem, "cut", start, set())).with_suffix(suffix))
    )
    check_output_file("--out=", out, {"the video": video})
    if Path(out).suffix.lower() not in suffixes:
        raise UsageError(
            f"--out={out}: the name must end in {' or '.join(suffixes)}" + ("" if COPY.value else ", or add --copy")
        )
    (copy_clip if COPY.value else cut_clip)(video, start, end, out)
    print(f"{out}: {format_time(start)} - {format_time(end)} of {video}")
