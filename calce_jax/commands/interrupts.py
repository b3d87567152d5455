"""How Ctrl-C ends a `calce` process while Python still imports the command; see `calce_jax.__main__`.

This module imports the standard library alone: until it is used, Ctrl-C prints the traceback of Python itself.
"""

import os
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

SIGNAL_LINES = {
    number: f"{word}; run the same command again, it continues where it can"
    for number, word in ((signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated"))
}


def interrupt_ends_process() -> None:
    """Let Ctrl-C end the process at once, with a line, until a command begins and handles it, see `exit_codes`.

    Where a shell lets SIGINT be ignored, as in the background, it stays ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_interrupted)
    report = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        # Raised where Python cannot pass it on, such as in a callback of an import: printed, and then lost.
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            end_interrupted()
        report(unraisable)

    sys.unraisablehook = hook


def end_interrupted(number: int = signal.SIGINT, frame: FrameType | None = None) -> NoReturn:
    """Print a line and end the process with 128 + number; a handler of signals."""
    del frame
    tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)  # absent before, and half there while, it is imported
    beside_bar = "\n" if getattr(tqdm, "_instances", ()) else ""
    line = f"{beside_bar}{SIGNAL_LINES[signal.Signals(number)]}\n"
    try:
        # Not 2, which may be another file by now if stderr was closed.
        if sys.__stderr__ is not None:
            os.write(sys.__stderr__.fileno(), line.encode())
    finally:
        os._exit(128 + number)


def is_importing(frame: FrameType | None) -> bool:
    """Return whether a frame is inside an import, by the frames that have called it."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
