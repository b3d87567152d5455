"""Index 10,000 videos, undisturbed and killed twice: `python -m tests.load.index_videos [--videos=10000]`.

The same library must result, and memory must not grow with the number of videos. The videos are those of
`tests.load.prepare_videos`, with their captions beside them. Exit status 1 if something does not hold.
"""

import argparse
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

from tests.load.prepare_videos import MAX_GROWTH, make_videos
from tests.load.processes import MemorySamples, peak_by_quarter

ROOT = Path(__file__).parents[2]
CAPTIONS = """
    SELECT videos.path, captions.start, captions."end", captions.text
    FROM captions JOIN videos ON videos.id = captions.video_id ORDER BY 1, 2, 3, 4
"""


def main() -> int:
    """Index both ways and print the results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=10_000)
    parser.add_argument("--distinct", type=int, default=60)
    parser.add_argument("--out", default="runs/load")
    options = parser.parse_args()
    out = Path(options.out).absolute()
    make_videos(out, options.videos, options.distinct)
    for captions in (out / "srts").iterdir():
        if not (link := out / "videos" / captions.name).exists():
            os.link(captions, link)
    for name in ("undisturbed", "killed"):
        shutil.rmtree(out / f"library_{name}", ignore_errors=True)

    undisturbed = index(out, "undisturbed")
    kills = [index(out, "killed", kill_at=round(share * options.videos)) for share in (1 / 3, 2 / 3)]
    resumed = index(out, "killed")
    again = index(out, "killed")

    _, second, _, last = undisturbed["peak_megabytes_by_quarter"]
    problems = [f"exit status {run['exit']}" for run in (undisturbed, resumed, again) if run["exit"]]
    problems += [f"memory grew from {second} to {last} MB"] if last > MAX_GROWTH * second else []
    problems += [] if content(out, "undisturbed") == content(out, "killed") else ["the libraries differ"]
    problems += [] if undisturbed["indexed"] == options.videos else [f"{undisturbed['indexed']} videos indexed"]
    results = {"undisturbed": undisturbed, "killed": kills, "resumed": resumed, "nothing new": again}
    results["problems"] = problems
    (out / "index.json").write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))
    return int(bool(problems))


def index(out: Path, name: str, kill_at: int | None = None) -> dict:
    """Run `calce index`; kill it when so many videos are in the library. Returns what was measured."""
    command = [sys.executable, "launch/index.py", f"{out}/videos", f"--library_file={library(out, name)}"]
    start = time.monotonic()
    with (out / f"index_{name}.log").open("a") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        memory = MemorySamples(process.pid)
        while process.poll() is None:
            if kill_at is not None and count(out, name) >= kill_at:
                process.send_signal(signal.SIGKILL)
                process.wait()
            time.sleep(0.2)
    return {
        "exit": process.returncode,
        "seconds": round(time.monotonic() - start, 1),
        "indexed": count(out, name),
        "peak_megabytes_by_quarter": [round(size / 1e6) for size in peak_by_quarter(memory.stop())],
    }


def library(out: Path, name: str) -> Path:
    """Return the file of a library."""
    return out / f"library_{name}" / "library.sqlite"


def count(out: Path, name: str) -> int:
    """Return the number of videos in a library."""
    try:
        with closing(sqlite3.connect(f"file:{library(out, name)}?mode=ro", uri=True)) as database:
            return database.execute("SELECT count(*) FROM files").fetchone()[0]
    except sqlite3.Error:  # not there yet
        return 0


def content(out: Path, name: str) -> list:
    """Return the rows of a library."""
    with closing(sqlite3.connect(library(out, name))) as database:
        files = database.execute("SELECT * FROM files ORDER BY path").fetchall()
        return [*files, *database.execute(CAPTIONS).fetchall()]


if __name__ == "__main__":
    sys.exit(main())
