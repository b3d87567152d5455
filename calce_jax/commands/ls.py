"""List the videos of a library, see `calce index`: `calce ls [--json]`."""

from json import dumps

import click

from calce_jax.commands.command import Command, switch
from calce_jax.commands.flags.library import library_option, library_path


@click.command("ls", cls=Command, help=__doc__)
@library_option
@switch("json", help="print a JSON list")
def command(library_file: str | None, json: bool) -> None:
    """Print a line for each video: its length, the number of its captions, its path."""
    from calce_jax.moments.player_time import format_time
    from calce_jax.search.library import Library
    from calce_jax.storage.file_names import single_line

    with Library(library_path(library_file)) as library:
        videos = library.videos()
    if json:
        rows = [
            {
                "path": str(video.path),
                "duration": video.duration,
                "captions": video.num_captions,
                "missing": not video.path.is_file(),
            }
            for video in videos
        ]
        print(dumps(rows, indent=2, ensure_ascii=False))
        return
    print(f"{'length':>9}  captions  file")
    for video in videos:
        missing = "" if video.path.is_file() else "  (missing)"
        print(f"{format_time(video.duration):>9}  {video.num_captions:>8}  {single_line(str(video.path))}{missing}")
