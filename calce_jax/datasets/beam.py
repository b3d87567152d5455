"""Preparation and captioning as Apache Beam pipelines, for a corpus larger than one machine.

A pipeline hands shares of the videos to workers, and a worker calls what one machine calls for its videos. So prepared
videos and captions are the same, byte for byte, and what is there is not made again, whoever made it. All workers see
the folders under the same paths, and have this package. A video that is broken goes to a side output, which the machine
that started the pipeline reads; a share whose files cannot be written is tried again, and then fails the pipeline.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from calce_jax.datasets import prepare
from calce_jax.datasets.prepared_video import Job, is_prepared
from calce_jax.speech.captioning import Captioned, caption_each, distinct
from calce_jax.speech.transcribe import Options, Transcriber
from calce_jax.speech.whisper_model import Dtype, open_whisper
from calce_jax.storage.failures import Failure

# Videos that a worker takes at a time at most, enough for a process, or a model, to pay; and the shares of a small set.
JOBS_A_SHARE, CAPTIONED_A_SHARE = 16, 64
SHARES = 64
# How often a share is begun, and the seconds before it is begun again, which double.
TRIES, PAUSE = 3, 2.0
BROKEN = "broken"

Item = TypeVar("Item")
Rows = list[dict[str, Any]]


def beam_options(runner: str, arguments: Sequence[str]) -> PipelineOptions:
    """Return the options of a pipeline: Beam's name of a runner, and Beam's own flags for it."""
    return PipelineOptions([f"--runner={runner}", *arguments])


def prepare_with(options: PipelineOptions, out: Path) -> Callable[[Sequence[Job]], list[prepare.Failure]]:
    """Return what prepares videos by a pipeline, for `calce_jax.datasets.prepare.prepare`.

    Args:
      options: from `beam_options`.
      out: a folder that all workers see; gets a folder of lists while the pipeline runs.
    """

    def run(jobs: Sequence[Job]) -> list[prepare.Failure]:
        rows = _run(options, out, _shares(jobs, JOBS_A_SHARE), Prepare())
        return [prepare.Failure(**row) for row in rows[BROKEN]]

    return run


def caption_videos(
    videos: Sequence[Path],
    out: str | Path,
    whisper: str,
    options: PipelineOptions,
    *,
    choices: Options | None = None,
    dtype: Dtype = "float32",
) -> Captioned:
    """Write `<video's name>.srt` for every video that has none there yet, by a pipeline; a worker opens the model once.

    Args:
      videos: the files.
      out: folder of the .srt files; also gets `failures.jsonl` where videos failed.
      whisper: as for `open_whisper`; of a folder, all workers see it.
      options: from `beam_options`.
      choices: how to transcribe.
      dtype: of the model.
    """
    out = Path(out)
    mine, alike = distinct(videos)
    rows = _run(options, out, _shares(mine, CAPTIONED_A_SHARE), Caption(out, whisper, choices or Options(), dtype))
    done = Captioned(failures=[*alike, *(Failure(**row) for row in rows[BROKEN])])
    for row in rows["done"]:
        for name in ("written", "there", "soundless", "speechless"):
            getattr(done, name).extend(map(Path, row[name]))
        done.seconds += row["seconds"]
    done.list_failures(out / "failures.jsonl")
    return done


class Prepare(beam.DoFn):
    """Prepares a share of videos in a process of its own, which a video that crashes the decoder may take with it."""

    def process(self, element: Sequence[Job]) -> Iterator[Any]:
        """Give the failures to the side output."""

        def attempt() -> list[prepare.Failure]:
            todo = [job for job in element if not is_prepared(job)]
            return [failure for failure in prepare.in_processes(todo, workers=1) if failure is not None]

        for failure in _tried(attempt):
            yield beam.pvalue.TaggedOutput(BROKEN, json.dumps(asdict(failure)))


class Caption(beam.DoFn):
    """Captions a share of videos."""

    def __init__(self, out: Path, whisper: str, choices: Options, dtype: Dtype):
        super().__init__()
        self._out, self._whisper, self._choices = out, whisper, choices
        self._dtype: Dtype = dtype
        self._transcriber: Transcriber | None = None

    def process(self, element: Sequence[Path]) -> Iterator[Any]:
        """Give what was done, and the failures to the side output."""
        done = _tried(lambda: caption_each(element, self._out, self._opened))
        for failure in done.failures:
            yield beam.pvalue.TaggedOutput(BROKEN, json.dumps(asdict(failure)))
        yield json.dumps(asdict(done), default=str)

    def _opened(self) -> Transcriber:
        if self._transcriber is None:
            self._transcriber = Transcriber(open_whisper(self._whisper, self._dtype), self._choices)
        return self._transcriber


def _shares(items: Sequence[Item], most: int) -> list[list[Item]]:
    """Cut a list into `SHARES`, or into more of them that hold `most`."""
    size = min(most, -(-len(items) // SHARES))
    return [list(items[start : start + size]) for start in range(0, len(items), size or 1)]


def _tried(attempt: Callable[[], Any]) -> Any:
    """Try again after what may be better the next time: a disk, or a network, that does not answer."""
    for again in range(TRIES - 1):
        try:
            return attempt()
        except OSError:
            time.sleep(PAUSE * 2**again)
    return attempt()


def _run(options: PipelineOptions, out: Path, shares: Sequence[Any], work: beam.DoFn) -> dict[str, Rows]:
    """Run a pipeline over shares to its end, and return the rows of both its outputs."""
    folder = out / "beam.part"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        with beam.Pipeline(options=options) as pipeline:
            # Shuffled, so that the runner does not fuse the work with the list it comes from, on one worker.
            spread = pipeline | beam.Create(shares) | beam.Reshuffle()
            outputs = spread | beam.ParDo(work).with_outputs(BROKEN, main="done")
            for name in ("done", BROKEN):
                outputs[name] | name >> beam.io.WriteToText(str(folder / name))
        written = {name: sorted(folder.glob(f"{name}-*")) for name in ("done", BROKEN)}
        return {
            name: [json.loads(row) for file in files for row in file.read_text(encoding="utf-8").splitlines()]
            for name, files in written.items()
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
