"""Let 30 visitors use the web app at once: `python -m tests.load.web_visitors [--visitors=30 --minutes=10]`.

Each visitor uploads a video, searches it with queries of their own, opens the result, and starts again. Every visitor
must be answered, about as often as the others, without an error, and the server's memory and open files must not grow.
Exit status 1 if something does not hold.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx

from data.shapes.write import write_shapes
from tests.helpers.web_server import Visitor
from tests.load.processes import MemorySamples, open_files, peak_by_quarter

ROOT = Path(__file__).parents[2]
QUERIES = (
    "a red circle moves",
    "a blue square",
    "somebody talks about bread",
    "a white cross stays",
    "two shapes meet",
)
SEARCHES_PER_UPLOAD = 3
START_TIMEOUT_S = 300.0
# Of the largest resident memory in the last quarter over that in the second one.
MAX_GROWTH = 1.15
# The visitor with the fewest answers has at least this share of the median.
MIN_SHARE = 0.5


def main() -> int:
    """Run the visitors and print the results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--visitors", type=int, default=30)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--out", default="runs/load")
    options = parser.parse_args()
    out = Path(options.out).absolute()
    write_shapes(out / "web_shapes", {"train": 6}, 0)
    videos = sorted((out / "web_shapes" / "videos").glob("*.mp4"))

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (out / "web.log").open("w") as log:
        server = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "calce_jax.commands.cli",
                "web",
                f"--port={port}",
                f"--cache={out}/web_cache",
                "--visitor_uploads=1000",
            ],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        try:
            results = visit(f"http://127.0.0.1:{port}", server, videos, options.visitors, 60 * options.minutes)
        finally:
            server.terminate()
            server.wait(60)
    (out / "web.json").write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))
    return int(bool(results["problems"]))


def visit(address: str, server: subprocess.Popen, videos: list[Path], count: int, seconds: float) -> dict:
    """Wait for the server, let the visitors search for so many seconds, and return what was measured."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not is_up(address):
        if time.monotonic() > deadline or server.poll() is not None:
            raise SystemExit("the server did not start; see web.log")
        time.sleep(0.5)

    end = time.monotonic() + seconds
    answers: list[list[float]] = [[] for _ in range(count)]  # seconds of each answered search, by visitor
    errors: list[str] = []

    def run(number: int) -> None:
        visitor = Visitor(address)
        visitor.client.timeout = httpx.Timeout(600)
        round_number, upload = 0, ""
        while time.monotonic() < end:
            start = time.monotonic()
            try:
                if round_number % SEARCHES_PER_UPLOAD == 0:
                    upload = visitor.uploaded(videos[(number + round_number) % len(videos)])
                page = visitor.found(upload, "", None, QUERIES[(number + round_number) % len(QUERIES)])
                if "<!doctype html>" not in visitor.client.get(page + "/index.html").text:
                    errors.append(f"visitor {number}: no page")
            except (AssertionError, httpx.HTTPError, OSError) as error:
                errors.append(f"visitor {number}: {type(error).__name__} {str(error)[:200]}")
            else:
                answers[number].append(time.monotonic() - start)
            round_number += 1

    memory, first_files = MemorySamples(server.pid), open_files(server.pid)
    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 600)
    samples, last_files = memory.stop(), open_files(server.pid)

    counts = [len(each) for each in answers]
    latencies = sorted(each for visitor in answers for each in visitor)
    quarters = [round(size / 1e6) for size in peak_by_quarter(samples)]
    problems = [f"{len(errors)} errors, the first: {errors[0]}"] if errors else []
    if min(counts) < MIN_SHARE * statistics.median(counts) or not min(counts):
        problems.append(f"a visitor starved: {min(counts)} answers, the median is {statistics.median(counts)}")
    if quarters[3] > MAX_GROWTH * quarters[1]:
        problems.append(f"memory grew from {quarters[1]} to {quarters[3]} MB")
    if last_files > first_files + count:
        problems.append(f"open files grew from {first_files} to {last_files}")
    return {
        "visitors": count,
        "seconds": seconds,
        "searches": sum(counts),
        "fewest and most of a visitor": [min(counts), max(counts)],
        "seconds of a search: median, 95 %, longest": [
            round(latencies[min(int(share * len(latencies)), len(latencies) - 1)], 1) for share in (0.5, 0.95, 1.0)
        ]
        if latencies
        else [],
        "peak_megabytes_by_quarter": quarters,
        "open files before and after": [first_files, last_files],
        "problems": problems,
    }


def is_up(address: str) -> bool:
    """Return whether the server answers."""
    try:
        return httpx.get(address, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


if __name__ == "__main__":
    sys.exit(main())
