"""Every command on a disk that is full: it ends by itself in a line, keeps what is there, and goes on with room.

The disk is a file system in memory, which root alone can mount.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.helpers.commands import xla_test_flags
from tests.helpers.pipeline import FRAMES, SHORT, PipelineRun

ROOT = Path(__file__).parents[2]
SIZE = 8 << 20
TIMEOUT_S = 600

pytestmark = pytest.mark.release


@dataclass(frozen=True)
class Disk:
    """A small file system.

    Attributes:
      folder: where it is mounted.
    """

    folder: Path

    def fill(self, free: int) -> None:
        """Leave `free` bytes."""
        status = os.statvfs(self.folder)
        (self.folder / "ballast").write_bytes(bytes(status.f_bavail * status.f_frsize - free))

    def make_room(self) -> None:
        (self.folder / "ballast").unlink()

    def files(self) -> dict[str, bytes]:
        """The content of each file but the ballast."""
        files = (path for path in self.folder.rglob("*") if path.is_file() and path.name != "ballast")
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in files}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"cannot mount a file system: {mount.stderr.strip()}")
    yield Disk(folder)
    subprocess.run(["umount", "--lazy", folder], check=True)


# What commands say before anything goes wrong, and an error.
SEARCH_LINE = r"Error: |the first search compiles |a program is compiled, |cutting \S+: "
TRAIN_LINE = r"Error: |stage \d of |[\d,]+ parameters |\d+ epochs of |compiling |step \d+/|epoch \d+/"


def calce(*arguments: object) -> tuple[int, str, list[str]]:
    """Run a command; return its exit code, stdout, and the lines of stderr without progress bars."""
    # Not the compilers of devices that are not here, whose folder `make test-all` adds: they log lines of their own.
    environment = os.environ | {"XLA_FLAGS": xla_test_flags(1), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "calce_jax.commands.cli", *map(str, arguments)]
    ended = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    lines = [line for line in ended.stderr.replace("\r", "\n").splitlines() if line.strip() and "%|" not in line]
    return ended.returncode, ended.stdout, lines


def arguments_of(name: str, run: Path, out: Path) -> Sequence[object]:
    """Return a command line that reads the pipeline's output and writes to `out`."""
    tables = f"--config.data.directory={run}/prepared"
    annotations = f"--annotations={run}/val.jsonl"
    video = min((run / "shapes/videos").glob("*val*.mp4"))
    return {
        "prepare": (
            *("--dataset=shapes", f"--annotations={run}/train.jsonl,{run}/val.jsonl"),
            *(f"--videos={run}/shapes/videos", f"--srts={run}/shapes/srts", f"--out={out}/prepared"),
            *("--frames=16", "--image_size=56"),
        ),
        "cache_features": (
            "--config=shapes,stage=2",
            tables,
            "--config.mesh=single",
            "--config.data.frames=16",
            f"--out={out}/features",
        ),
        "train": (
            *("--config=shapes,stage=1", tables, f"--workdir={out}/run", *SHORT),
            f"--config.data.frames={FRAMES[1]}",
        ),
        "infer": (f"--workdir={run}/runs/stage1", "--split=val", f"--out={out}/val.jsonl"),
        "merge": (f"--predictions={run}/stage1_val.jsonl", annotations, f"--out={out}/merged.jsonl"),
        "evaluate": (f"--predictions={run}/stage2_val.jsonl", annotations, f"--out={out}/scores.json"),
        "convert": (f"--source=orbax:{run}/runs/stage1", f"--target=calce:{out}/stage1.pth"),
        "search": (
            *(video, "--query=A red circle.", "--clips", f"--checkpoint={run}/runs"),
            *(f"--cache={run}/cache", f"--out={out}/found"),
        ),
    }[name]


@pytest.mark.parametrize(
    ("name", "free"),
    [
        ("prepare", 64 << 10),
        ("prepare", 400 << 10),  # enough for its check of the space, but not for the tables
        ("cache_features", 64 << 10),
        ("train", 64 << 10),
        ("infer", 0),
        ("infer", 4 << 10),
        ("merge", 0),
        ("evaluate", 0),
        ("convert", 256 << 10),
        ("search", 0),
        ("search", 64 << 10),
    ],
)
def test_a_full_disk(name: str, free: int, pipeline_run: PipelineRun, disk: Disk):
    (disk.folder / "mine.txt").write_text("what was there")
    arguments = arguments_of(name, pipeline_run.folder, disk.folder)
    disk.fill(free)
    code, printed, told = calce(name, *arguments)
    assert code == 1, (printed, told)
    assert "Traceback" not in "\n".join(told)
    assert told[-1].startswith("Error: ")
    assert any(str(disk.folder) in line and ("No space left" in line or "free" in line) for line in told), told
    expected = {"train": TRAIN_LINE, "search": SEARCH_LINE}.get(name, "Error: ")
    assert not [line for line in told if not re.match(expected, line)], told
    assert disk.files()["mine.txt"] == b"what was there"
    if name == "search" and free:
        assert "moments.json" in printed
        assert "found/moments.json" in disk.files()

    disk.make_room()
    code, printed, told = calce(name, *arguments)
    assert code == 0, (printed, told)
    assert not [line for line in told if line.startswith("Error")], told
    # No temporary file, lock or part of an output is left of the first run.
    left = [path for path in disk.files() if path.endswith((".part", ".part.json", ".lock")) or ".tmp" in path]
    assert not left


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(pipeline_run: PipelineRun, disk: Disk):
    arguments = (*arguments_of("train", pipeline_run.folder, disk.folder), "--config.schedule.epochs=2")
    workdir = pipeline_run.folder / "runs/stage1"
    (one,) = (size_of(folder) for folder in (workdir / "checkpoints").iterdir() if folder.name.isdigit())
    disk.fill(size_of(workdir) + one // 2)
    code, _, told = calce("train", *arguments)
    assert code == 1
    assert "make room and run the same command again" in told[-1]
    first = {path: content for path, content in disk.files().items() if "/checkpoints/" in path}
    assert len({path.split("/")[2] for path in first if path.split("/")[2].isdigit()}) == 1
    disk.make_room()
    code, printed, told = calce("train", *arguments)
    assert code == 0, (printed, told)
    assert any("resum" in line or "goes on" in line for line in told), told


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_captions_on_a_full_disk(shared: Path, disk: Disk, tmp_path: Path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("a.flac", "b.flac"):
        (videos / name).symlink_to(shared / "media/speech/jfk.flac")
    arguments = (f"--videos={videos}", f"--out={disk.folder}/srts", f"--model={shared}/weights/whisper-tiny.en")
    disk.fill(0)
    code, _, told = calce("caption", *arguments)
    assert code == 1
    assert any("No space left" in line and str(disk.folder) in line for line in told), told
    assert "Traceback" not in "\n".join(told)
    disk.make_room()
    code, printed, told = calce("caption", *arguments)
    assert code == 0, told
    assert "2 files of captions written" in printed


def test_a_cache_on_a_full_disk_is_done_without_and_mends_itself(pipeline_run: PipelineRun, disk: Disk, tmp_path: Path):
    run = pipeline_run.folder
    video = min((run / "shapes/videos").glob("*val*.mp4"))
    arguments = (video, "--query=A red circle.", f"--checkpoint={run}/runs", f"--cache={disk.folder}/cache")
    disk.fill(16 << 10)
    code, _, told = calce("search", *arguments, f"--out={tmp_path}/found")
    assert code == 0
    assert len(told) == 1, told
    assert told[0].startswith("WARNING: nothing is cached: ")
    programs, executables = disk.folder / "cache/programs", disk.folder / "cache/executables"
    assert max((path.stat().st_size for path in executables.glob("*")), default=0) < 100_000
    disk.make_room()
    code, _, told = calce("search", *arguments, f"--out={tmp_path}/found")
    assert (code, told) == (0, [])
    assert max(path.stat().st_size for path in executables.glob("*")) > 500_000, "the largest program is cached now"
    assert all(
        program.with_name(program.name.removesuffix("-cache") + "-atime").is_file()
        for program in programs.glob("*-cache")
    )
