"""List the videos of a library, see `calce index`: `calce ls [--json]`."""

import json

from absl import flags

from calce_jax.commands.flags.library import LibraryFlag
from calce_jax.commands.runner import no_arguments

FLAGS = flags.FlagValues()
LIBRARY_FLAG = LibraryFlag(FLAGS)
JSON = flags.DEFINE_bool("json", False, "print a JSON list", flag_values=FLAGS)


def main(argv: list[str]) -> None:
    """Print a line for each video: its length, the number of its captions, its path."""
    no_arguments(argv)

    from calce_jax.moments.player_time import format_time
    from calce_jax.search.library import Library
    from calce_jax.storage.file_names import single_line

    with Library(LIBRARY_FLAG.path()) as library:
        videos = library.videos()
    if JSON.value:
        rows = [
            {
                "path": str(video.path),
                "duration": video.duration,
                "captions": video.num_captions,
                "missing": not video.path.is_file(),
            }
            for video in videos
        ]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    print(f"{'length':>9}  captions  file")
    for video in videos:
        missing = "" if video.path.is_file() else "  (missing)"
        print(f"{format_time(video.duration):>9}  {video.num_captions:>8}  {single_line(str(video.path))}{missing}")
