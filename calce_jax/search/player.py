"""Play a moment in mpv or VLC, whichever is installed."""

import shutil
import subprocess
from typing import TYPE_CHECKING

from calce_jax.errors import UsageError

if TYPE_CHECKING:
    from calce_jax.search.moment import Moment

PLAYERS = {"mpv": ("--start={start}", "--end={end}"), "vlc": ("--start-time={start}", "--stop-time={end}")}


def find_player() -> list[str]:
    """Return the command line of an installed player, with {start} and {end} in it.

    Raises:
      UsageError: there is none.
    """
    for name, arguments in PLAYERS.items():
        if path := shutil.which(name):
            return [path, *arguments]
    raise UsageError(f"--play: none of {', '.join(PLAYERS)} is installed")


def play(moment: "Moment") -> None:
    """Play a moment, and wait until the player ends.

    Raises:
      UsageError: no player is installed.
    """
    program, *arguments = find_player()
    times = [argument.format(start=f"{moment.start:.2f}", end=f"{moment.end:.2f}") for argument in arguments]
    subprocess.run([program, *times, str(moment.video.resolve())], check=False, capture_output=True)
