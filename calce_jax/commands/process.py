"""How a `calce` process starts and ends without work that nobody needs; see `calce_jax.__main__`.

This module imports the standard library alone.
"""

import atexit
import gc
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


@contextmanager
def garbage_kept() -> Iterator[None]:
    """Collect no garbage while libraries are imported: what they make lasts as long as the process.

    Python would look at all of it again and again, 0.25 s for a search. Later collections leave it out, until
    `gc.unfreeze`. Not for what reads weights: garbage that held them would stay.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def open_missing_streams() -> None:
    """Open the null device in place of closed standard streams, as of `2>&-`.

    Otherwise the next file that is opened gets the descriptor, and what is meant for people is written into it.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free descriptor, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, "w" if descriptor else "r", encoding="utf-8", closefd=False))


def end_process() -> NoReturn:
    """End the process after a command that went well, as `multiprocessing` ends those that it started.

    Threads are waited for, and what is registered for the end is done. The interpreter is not taken down: it would free
    the libraries object by object, 0.2 s once jax is imported.
    """
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        print(end="", file=stream, flush=True)  # there may be none
    os._exit(0)
