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
from calce_jax.datasets.prepared_video import PrepareJob, is_prepared
from calce_jax.speech.captioning import CaptioningResult, caption_missing, deduplicate_names
from calce_jax.speech.transcribe import Transcriber, TranscriptionOptions
from calce_jax.speech.whisper_model import Dtype, open_whisper
from calce_jax.storage.failures import Failure

# Videos that a worker takes at a time at most, enough for a process, or a model, to pay; and the shares of a small set.
JOBS_PER_SHARD, CAPTION_VIDEOS_PER_SHARD = 16, 64
NUM_SHARDS = 64
# How often a share is begun, and the seconds before it is begun again, which double.
MAX_ATTEMPTS, RETRY_DELAY_S = 3, 2.0
FAILED_TAG = "broken"

Item = TypeVar("Item")
Rows = list[dict[str, Any]]


def beam_options(runner: str, arguments: Sequence[str]) -> PipelineOptions:
    """Return the options of a pipeline: Beam's name of a runner, and Beam's own flags for it."""
    return PipelineOptions([f"--runner={runner}", *arguments])


def make_prepare_fn(options: PipelineOptions, out: Path) -> Callable[[Sequence[PrepareJob]], list[prepare.Failure]]:
    """Return what prepares videos by a pipeline, for `calce_jax.datasets.prepare.prepare`.

    Args:
      options: from `beam_options`.
      out: a folder that all workers see; gets a folder of lists while the pipeline runs.
    """

    def run(jobs: Sequence[PrepareJob]) -> list[prepare.Failure]:
        rows = _run(options, out, _make_shards(jobs, JOBS_PER_SHARD), PrepareFn())
        return [prepare.Failure(**row) for row in rows[FAILED_TAG]]

    return run


def caption_videos(
    videos: Sequence[Path],
    out: str | Path,
    whisper: str,
    options: PipelineOptions,
    *,
    transcribe_options: TranscriptionOptions | None = None,
    dtype: Dtype = "float32",
) -> CaptioningResult:
    """Write `<video's name>.srt` for every video that has none there yet, by a pipeline; a worker opens the model once.

    Args:
      videos: the files.
      out: folder of the .srt files; also gets `failures.jsonl` where videos failed.
      whisper: as for `open_whisper_weights`; of a folder, all workers see it.
      options: from `beam_options`.
      transcribe_options: how to transcribe.
      dtype: of the model.
    """
    out = Path(out)
    unique_videos, duplicates = deduplicate_names(videos)
    rows = _run(
        options,
        out,
        _make_shards(unique_videos, CAPTION_VIDEOS_PER_SHARD),
        CaptionFn(out, whisper, transcribe_options or TranscriptionOptions(), dtype),
    )
    captioned = CaptioningResult(failures=[*duplicates, *(Failure(**row) for row in rows[FAILED_TAG])])
    for row in rows["done"]:
        for name in ("written", "there", "soundless", "speechless"):
            getattr(captioned, name).extend(map(Path, row[name]))
        captioned.seconds += row["seconds"]
    captioned.write_failures(out / "failures.jsonl")
    return captioned


class PrepareFn(beam.DoFn):
    """Prepares a share of videos in a process of its own, which a video that crashes the decoder may take with it."""

    def process(self, element: Sequence[PrepareJob]) -> Iterator[Any]:
        """Give the failures to the side output."""

        def attempt() -> list[prepare.Failure]:
            pending = [job for job in element if not is_prepared(job)]
            return [failure for failure in prepare.prepare_in_processes(pending, workers=1) if failure is not None]

        for failure in _with_retries(attempt):
            yield beam.pvalue.TaggedOutput(FAILED_TAG, json.dumps(asdict(failure)))


class CaptionFn(beam.DoFn):
    """Captions a share of videos."""

    def __init__(self, out: Path, whisper: str, transcribe_options: TranscriptionOptions, dtype: Dtype):
        super().__init__()
        self._out, self._whisper, self._transcribe_options = out, whisper, transcribe_options
        self._dtype: Dtype = dtype
        self._transcriber: Transcriber | None = None

    def process(self, element: Sequence[Path]) -> Iterator[Any]:
        """Give what was done, and the failures to the side output."""
        captioned = _with_retries(lambda: caption_missing(element, self._out, self._get_transcriber))
        for failure in captioned.failures:
            yield beam.pvalue.TaggedOutput(FAILED_TAG, json.dumps(asdict(failure)))
        yield json.dumps(asdict(captioned), default=str)

    def _get_transcriber(self) -> Transcriber:
        if self._transcriber is None:
            self._transcriber = Transcriber(open_whisper(self._whisper, self._dtype), self._transcribe_options)
        return self._transcriber


def _make_shards(items: Sequence[Item], max_size: int) -> list[list[Item]]:
    """Cut a list into `NUM_SHARDS`, or into more of them that hold `max_size`."""
    size = min(max_size, -(-len(items) // NUM_SHARDS))
    return [list(items[start : start + size]) for start in range(0, len(items), size or 1)]


def _with_retries(attempt: Callable[[], Any]) -> Any:
    """Try again after what may be better the next time: a disk, or a network, that does not answer."""
    for attempt_index in range(MAX_ATTEMPTS - 1):
        try:
            return attempt()
        except OSError:
            time.sleep(RETRY_DELAY_S * 2**attempt_index)
    return attempt()


def _run(options: PipelineOptions, out: Path, shards: Sequence[Any], do_fn: beam.DoFn) -> dict[str, Rows]:
    """Run a pipeline over shares to its end, and return the rows of both its outputs."""
    folder = out / "beam.part"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        with beam.Pipeline(options=options) as pipeline:
            # Shuffled, so that the runner does not fuse the work with the list it comes from, on one worker.
            elements = pipeline | beam.Create(shards) | beam.Reshuffle()
            outputs = elements | beam.ParDo(do_fn).with_outputs(FAILED_TAG, main="done")
            for name in ("done", FAILED_TAG):
                outputs[name] | name >> beam.io.WriteToText(str(folder / name))
        output_files = {name: sorted(folder.glob(f"{name}-*")) for name in ("done", FAILED_TAG)}
        return {
            name: [json.loads(row) for file in files for row in file.read_text(encoding="utf-8").splitlines()]
            for name, files in output_files.items()
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
