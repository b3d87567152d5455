"""Prepare 10,000 videos, undisturbed and killed twice: `python -m tests.load.prepare_videos [--videos=10000]`.

The same tables must result, memory must not grow with the number of videos, and no process may outlive the killed one.
The videos are drawn by the shapes generator, `--distinct` of them; the others are links to these under names of their
own. Exit status 1 if something does not hold.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from calce_jax.moments.annotations import read_annotations, write_annotations
from data.shapes.write import write_shapes
from tests.load.processes import MemorySamples, group_members, peak_by_quarter

ROOT = Path(__file__).parents[2]
ORPHANS_END_S = 30.0
# Of the largest resident memory in the last quarter over that in the second one.
MAX_GROWTH = 1.15


def main() -> int:
    """Run both preparations and print the results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=10_000)
    parser.add_argument("--distinct", type=int, default=60)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", default="runs/load")
    options = parser.parse_args()
    out = Path(options.out).absolute()
    make_videos(out, options.videos, options.distinct)

    undisturbed = prepare(out, "undisturbed", options.workers)
    kills = []
    for share in (1 / 3, 2 / 3):
        kills.append(prepare(out, "killed", options.workers, kill_at=round(share * options.videos)))
    resumed = prepare(out, "killed", options.workers)

    differing = different_files(out / "undisturbed", out / "killed")
    _, second, _, last = undisturbed["peak_megabytes_by_quarter"]
    problems = [f"differs: {name}" for name in differing]
    problems += [f"outlived the killed one: {run['survivors']} processes" for run in kills if run["survivors"]]
    problems += [f"exit status {run['exit']}" for run in (undisturbed, resumed) if run["exit"]]
    problems += [f"memory grew from {second} to {last} MB"] if last > MAX_GROWTH * second else []
    results = {"videos": options.videos, "undisturbed": undisturbed, "killed": kills, "resumed": resumed}
    results["problems"] = problems
    (out / "prepare.json").write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))
    return int(bool(problems))


def make_videos(out: Path, count: int, distinct: int) -> None:
    """Write OUT/videos, OUT/srts and OUT/train.jsonl."""
    write_shapes(out / "shapes", {"train": distinct}, 0)
    rows: dict[str, list] = {}
    for row in read_annotations(out / "shapes" / "train.jsonl"):
        rows.setdefault(row.video, []).append(row)
    for folder in ("videos", "srts"):
        (out / folder).mkdir(exist_ok=True)
    annotations, originals = [], list(rows)
    for number in range(count):
        original, name = originals[number % distinct], f"video_{number:05d}"
        for folder, suffix in (("videos", "mp4"), ("srts", "srt")):
            source, link = out / "shapes" / folder / f"{original}.{suffix}", out / folder / f"{name}.{suffix}"
            if source.exists() and not link.exists():
                os.link(source, link)
        annotations += [replace(row, qid=f"{name}_{k}", video=name) for k, row in enumerate(rows[original])]
    write_annotations(out / "train.jsonl", annotations)


def prepare(out: Path, name: str, workers: int, kill_at: int | None = None) -> dict:
    """Run `calce prepare` into OUT/NAME; kill it when so many videos are prepared. Returns what was measured."""
    if name == "undisturbed":
        shutil.rmtree(out / name, ignore_errors=True)
    command = [
        *(sys.executable, "launch/prepare.py", "--dataset=shapes", f"--annotations={out}/train.jsonl"),
        *(f"--videos={out}/videos", f"--srts={out}/srts", "--frames=8", "--image_size=56"),
        *(f"--workers={workers}", f"--out={out}/{name}"),
    ]
    start = time.monotonic()
    with (out / f"{name}.log").open("a") as log:
        # A session of its own, so that its processes can be found and counted.
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        memory = MemorySamples(process.pid)
        while process.poll() is None:
            if kill_at is not None and count_prepared(out / name) >= kill_at:
                process.send_signal(signal.SIGKILL)
                process.wait()
            time.sleep(0.5)
    seconds = time.monotonic() - start
    deadline = time.monotonic() + ORPHANS_END_S
    while (survivors := group_members(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return {
        "exit": process.returncode,
        "seconds": round(seconds, 1),
        "prepared": count_prepared(out / name),
        "peak_megabytes_by_quarter": [round(size / 1e6) for size in peak_by_quarter(memory.stop())],
        "survivors": len(survivors),
    }


def count_prepared(folder: Path) -> int:
    """Return the number of prepared videos in an output folder."""
    videos = folder / "videos"
    return sum(name.endswith(".npz") for name in os.listdir(videos)) if videos.is_dir() else 0


def different_files(one: Path, other: Path) -> list[str]:
    """Return the names of files that only one of the folders has, or that differ."""
    files = {path.relative_to(folder) for folder in (one, other) for path in folder.rglob("*") if path.is_file()}
    return sorted(
        str(name)
        for name in files
        if not ((one / name).is_file() and (other / name).is_file())
        or (one / name).read_bytes() != (other / name).read_bytes()
    )


if __name__ == "__main__":
    sys.exit(main())
