"""From typing `calce search` to its answer, for a video that was searched before: `python -m benchmarks.start`.

Seconds of the processor and peak memory of whole processes, which run in turns: a search of a sample, and the import of
jax, flax and tokenizers alone. Prints the medians and their ratio; the first search of all fills a cache of its own.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

SAMPLE = Path(__file__).parents[1] / "calce_jax/assets/tiny/samples/shapes_test_000000.mp4"
IMPORTS = "import jax, flax.nnx, tokenizers"


def main() -> None:
    """Fill the cache, then measure both in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        search = ["-m", "calce_jax", "search", str(SAMPLE), "a red circle moves right", f"--cache={folder}/cache"]
        search += [f"--out={folder}/found"]
        print("first search: {:.2f} s of the processor, {:.0f} MB".format(*measure(search)), flush=True)
        searches, imports = zip(*((measure(search), measure(["-c", IMPORTS])) for _ in range(rounds)), strict=True)
    for name, runs in (("later searches", searches), ("imports", imports)):
        seconds, megabytes = zip(*runs, strict=True)
        span = f"{min(seconds):.2f} to {max(seconds):.2f}"
        print(f"{name}: {statistics.median(seconds):.2f} s ({span}), {statistics.median(megabytes):.0f} MB")
    ratios = [search[0] / other[0] for search, other in zip(searches, imports, strict=True)]
    print(f"ratio: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def measure(arguments: list[str]) -> tuple[float, float]:
    """Run Python with arguments; return its seconds of the processor, of user and system, and its peak memory in MB."""
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)} ended with status {status}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e3


if __name__ == "__main__":
    main()
