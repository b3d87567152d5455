"""From typing `calce search` to its answer, for a video that was searched before: `python -m benchmarks.start`.

Wall time, time of the processor and peak memory of whole processes, which run in turns: a search of a sample, and the
import of jax, flax and tokenizers alone. Prints medians, and of the two times the ratio; the first search of all fills
a cache of its own, and the second notes which programs to read ahead. Wall time needs an idle machine. Compiled Python
files are kept, as in an installation; some machines forbid it by PYTHONDONTWRITEBYTECODE.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

SAMPLE = Path(__file__).parents[1] / "calce_jax/assets/tiny/samples/shapes_test_000000.mp4"
IMPORTS = "import jax, flax.nnx, tokenizers"


class Run(NamedTuple):
    """A process: seconds by the clock, seconds of the processor (user and system), and peak memory in MB."""

    wall: float
    processor: float
    megabytes: float


def main() -> None:
    """Fill the cache, then measure both in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        search = ["-m", "calce_jax", "search", str(SAMPLE), "a red circle moves right", f"--cache={folder}/cache"]
        search += [f"--out={folder}/found"]
        os.environ["PYTHONPYCACHEPREFIX"] = f"{folder}/bytecode"
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        print("first search: {:.2f} s, {:.2f} of the processor, {:.0f} MB".format(*measure(search)), flush=True)
        measure(search)
        searches, imports = zip(*((measure(search), measure(["-c", IMPORTS])) for _ in range(rounds)), strict=True)
    for name, runs in (("later searches", searches), ("imports", imports)):
        wall, processor, megabytes = zip(*runs, strict=True)
        print(f"{name}: {span(wall)} s, {span(processor)} of the processor, {statistics.median(megabytes):.0f} MB")
    for number, name in enumerate(Run._fields[:2]):
        ratios = [search[number] / other[number] for search, other in zip(searches, imports, strict=True)]
        print(f"ratio, {name}: {span(ratios)}")


def span(values: Sequence[float]) -> str:
    """Return the median with the range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def measure(arguments: list[str]) -> Run:
    """Run Python with arguments."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    if status:
        raise SystemExit(f"{' '.join(arguments)} ended with status {status}")
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e3)


if __name__ == "__main__":
    main()
