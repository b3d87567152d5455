"""The memory, files and survivors of a group of processes, read from /proc."""

import os
import threading
import time
from pathlib import Path

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def group_members(group: int) -> list[int]:
    """Return the processes of a group that have not ended."""
    members = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The name in brackets may hold anything; state, parent and group follow it.
            state, _, its_group, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
        except (OSError, ValueError):
            continue
        if int(its_group) == group and state != "Z":
            members.append(int(folder.name))
    return members


def resident_bytes(process: int) -> int:
    """Return the resident memory of a process, 0 if it has ended; shared pages count in each process."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * PAGE_BYTES
    except (OSError, IndexError):
        return 0


def open_files(process: int) -> int:
    """Return the number of descriptors of a process, 0 if it has ended."""
    try:
        return len(os.listdir(f"/proc/{process}/fd"))
    except OSError:
        return 0


class MemorySamples:
    """Samples the resident memory of a process group every second, until it is stopped."""

    def __init__(self, group: int):
        self.samples: list[tuple[float, int]] = []  # seconds since the start, bytes
        self._group, self._stop = group, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        start = time.monotonic()
        while not self._stop.wait(1.0):
            total = sum(map(resident_bytes, group_members(self._group)))
            self.samples.append((time.monotonic() - start, total))

    def stop(self) -> list[tuple[float, int]]:
        """Stop sampling and return the samples."""
        self._stop.set()
        self._thread.join()
        return self.samples


def peak_by_quarter(samples: list[tuple[float, int]]) -> list[int]:
    """Return the largest sample of each quarter of the time, bytes."""
    end = samples[-1][0] if samples else 0.0
    quarters = [[size for at, size in samples if end * n / 4 <= at <= end * (n + 1) / 4] for n in range(4)]
    return [max(quarter, default=0) for quarter in quarters]
