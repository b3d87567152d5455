"""How Ctrl-C and SIGTERM end a `calce` process while Python still imports the command; see `calce_jax.__main__`.

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


class TerminatedError(BaseException):
    """SIGTERM arrived. Like KeyboardInterrupt not an `Exception`, so that nothing in between swallows it."""


def interrupt_ends_process() -> None:
    """Let Ctrl-C and SIGTERM end the process at once, with a line, until a command handles them, see `exit_codes`.

    Where a shell lets SIGINT be ignored, as in the background, it stays ignored.
    """
    for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) == default:
            signal.signal(number, end_interrupted)
    report = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        # Raised where Python cannot pass it on, such as in a callback of an import: printed, and then lost.
        for number, error in ((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, TerminatedError)):
            if issubclass(unraisable.exc_type, error):
                end_interrupted(number)
        report(unraisable)

    sys.unraisablehook = hook


def ends_at_signals() -> bool:
    """Return whether `interrupt_ends_process` was called; one of both signals may be ignored all the same."""
    return end_interrupted in map(signal.getsignal, SIGNAL_LINES)


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
