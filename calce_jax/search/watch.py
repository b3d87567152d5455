"""Watch folders of videos for changes; needs the extra `[watch]`."""

from collections.abc import Callable, Sequence
from pathlib import Path

from absl import logging
from watchfiles import Change, watch

from calce_jax.errors import UserError
from calce_jax.text.caption_files import CAPTION_SUFFIXES
from calce_jax.video.files import VIDEO_SUFFIXES

# A video that is being copied changes all the time: what is changed in less than this is one change.
QUIET_MILLISECONDS, MAX_MILLISECONDS = 2_000, 60_000
SUFFIXES = (*VIDEO_SUFFIXES, *CAPTION_SUFFIXES)


def watch_videos(folders: Sequence[str], index: Callable[[], None]) -> None:
    """Index, and again whenever a video or captions in the folders are added, changed or removed; does not return.

    An error while indexing, such as a disk that is not connected, is logged, and the next change indexes again.

    Args:
      folders: folders and files.
      index: indexes them.

    Raises:
      UserError, OSError: the first time fails.
      KeyboardInterrupt: Ctrl-C.
    """
    index()
    for _ in watch(
        *folders, watch_filter=_is_of_a_video, step=QUIET_MILLISECONDS, debounce=MAX_MILLISECONDS, raise_interrupt=True
    ):
        try:
            index()
        except (UserError, OSError) as error:
            logging.warning("%s", error)


def _is_of_a_video(change: Change, path: str) -> bool:
    return Path(path).suffix.lower() in SUFFIXES
