"""Which videos a search goes through: those given, or those of the library."""

from collections.abc import Sequence
from pathlib import Path

from calce_jax.search.inputs import list_videos
from calce_jax.search.paths import SearchError
from calce_jax.search.reporter import Reporter
from calce_jax.search.segments import searchable_duration


def list_library(library_file: Path) -> list[Path]:
    """Return the videos of a library that are there.

    Raises:
      LibraryError: there is no library, or it is damaged.
      SearchError: none of its videos is there.
    """
    from calce_jax.search.library import Library  # noqa: PLC0415 - most searches go through files

    with Library(library_file) as library:
        videos = library.videos()
        library.check_any_unchanged(videos)
        return [video.path for video in videos if video.path.is_file()]


def select_videos(paths: Sequence[str], out: str | None, library_file: Path | None = None) -> list[Path]:
    """Return the videos of a library, or else the given files and those in the given folders.

    Args:
      paths: files and folders.
      out: the output folder of this search, whose videos are left out.
      library_file: of a library to search in place of `paths`.

    Raises:
      SearchError, LibraryError: there is no video, or no library.
    """
    return list_library(library_file) if library_file is not None else list_videos(paths, out)


def check_selection(videos: Sequence[Path], paths: Sequence[str], reporter: Reporter) -> dict[Path, float]:
    """Report the videos that cannot be searched, and return the durations of the others in seconds.

    Args:
      videos: from `select_videos`.
      paths: what was given, for the message.
      reporter: gets an error for each video that is left out.

    Raises:
      SearchError: none can be searched.
    """
    durations = {
        video: seconds for video in videos if (seconds := reporter.attempt(searchable_duration, video)) is not None
    }
    if not durations:
        raise SearchError(f"none of {', '.join(paths) or 'the videos'} can be searched", "see the errors above")
    return durations
