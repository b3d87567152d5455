"""This machine's processor."""

import platform
from functools import cache
from pathlib import Path

# Linux describes processors here, one block each.
CPU_INFO = Path("/proc/cpuinfo")


@cache
def processor() -> str:
    """Return model and instructions of this machine's processor, a line each; code for others may not run."""
    info = [platform.machine(), platform.processor()]
    try:
        with CPU_INFO.open(encoding="utf-8", errors="replace") as file:
            first = file.read(1 << 16).split("\n\n")[0]
    except OSError:
        first = ""
    kept = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    return "\n".join([*info, *(line for line in first.splitlines() if line.startswith(kept))])


def instructions() -> list[str]:
    """Return the names of the processor's extensions as Linux has them; none on other systems."""
    lines = (line.partition(":")[2] for line in processor().splitlines() if line.startswith(("flags", "Features")))
    return next(lines, "").split()
