"""Time and memory of a search by length of the video: `python benchmarks/search.py --out=DIR`.

Writes videos of several lengths (moving noise, 160 x 120, 5 frames per second). Each is searched in its own process for
one query and then another, and again in a second process, which uses the disk cache of the first. Compile time is not
measured. Prints one line for each video and writes DIR/search.json. Without --checkpoint the model is the tiny one.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import jax
import numpy as np

from calce_jax.search.load_searcher import enable_compilation_cache, open_stages
from calce_jax.search.searcher import Searcher
from calce_jax.storage.atomic_files import atomic_write, write_atomic
from calce_jax.storage.disk_cache import DiskCache

SIZE, FPS = (160, 120), 5
FIRST_QUERY, SECOND_QUERY = "a red circle moves to the left", "a blue square appears"


def main() -> None:
    """Measure every length in processes of its own, or, with --one, a single video in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="output folder of videos, cache and report")
    parser.add_argument("--minutes", type=float, nargs="+", default=[1 / 60, 1, 10, 30, 120])
    parser.add_argument("--checkpoint", type=Path, help="as for calce search")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure_search(args)))
        return
    rows = []
    for minutes in args.minutes:
        video = write_video(args.out / f"{minutes:g}.mp4", minutes)
        row: dict[str, float] = {"minutes": minutes}
        for run in ("uncached", "cached"):
            command = [sys.executable, __file__, f"--out={args.out}", f"--one={video}"]
            command += [f"--checkpoint={args.checkpoint}"] if args.checkpoint else []
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
            row |= {f"{run} {name}": value for name, value in json.loads(done.stdout.splitlines()[-1]).items()}
        rows.append(row)
        print(json.dumps(row), flush=True)
    content = {"python": platform.python_version(), "jax": jax.__version__, "cores": os.cpu_count(), "rows": rows}
    write_atomic(args.out / "search.json", json.dumps(content, indent=2) + "\n")


def measure_search(args: argparse.Namespace) -> dict[str, float]:
    """Return the seconds of a first and of a second query, the peak memory and the size of the cache in MB."""
    enable_compilation_cache(args.out / "cache")
    cache = DiskCache(args.out / "cache")
    searcher = Searcher(open_stages(args.checkpoint), cache)
    for minutes in (0.1, 2.0):  # compile for one segment, and for several
        searcher.search(write_video(args.out / f"warm{minutes:g}.mp4", minutes), [FIRST_QUERY])
    memory_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    start_time = time.monotonic()
    searcher.search(args.one, [FIRST_QUERY])
    first_done = time.monotonic()
    searcher.search(args.one, [SECOND_QUERY])
    return {
        "first_s": round(first_done - start_time, 2),
        "second_s": round(time.monotonic() - first_done, 2),
        "before_mb": round(memory_before),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
        "cache_mb": round(cache.total_bytes() / 1e6, 1),
    }


def write_video(path: Path, minutes: float) -> Path:
    """Write a video of moving noise, unless it exists."""
    if path.exists():
        return path
    noise = np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0] * 2, 3), np.uint8)
    with atomic_write(path) as partial_path, av.open(str(partial_path), "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "crf": "35"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for number in range(max(round(minutes * 60 * FPS), 1)):
            offset = number % SIZE[0]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(noise[:, offset : offset + SIZE[0]]), "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


if __name__ == "__main__":
    main()
