"""Preparation and transcription as Apache Beam pipelines, for a corpus larger than one machine.

A pipeline distributes shards of videos over workers, and a worker calls the functions that a single machine calls. So
prepared videos and captions are the same byte for byte, and existing ones are not made again, whichever way they were
made. All workers see the folders under the same paths and have this package installed. Failures of videos go to a side
output that the starting machine reads; a shard whose files cannot be written is retried, and then fails the pipeline.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from calce_jax.datasets.prepare import prepare_in_processes
from calce_jax.datasets.prepared_video import PrepareJob, is_prepared
from calce_jax.speech.captioning import CaptioningResult, caption_missing, deduplicate_names
from calce_jax.speech.options import TranscriptionOptions
from calce_jax.speech.transcribe import Transcriber
from calce_jax.speech.whisper_model import Dtype, open_whisper
from calce_jax.storage.extras import install_command
from calce_jax.storage.failures import Failure

try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
except ModuleNotFoundError as error:
    if error.name != "apache_beam":
        raise
    raise ModuleNotFoundError(
        f"Apache Beam is not installed; {install_command('beam')} in an environment of its own, or `make beam` in a "
        "checkout",
        name=error.name,
    ) from None

# Maximal size of a shard, enough to pay for starting a process or opening a model; a small set gets NUM_SHARDS shards.
JOBS_PER_SHARD, CAPTION_VIDEOS_PER_SHARD = 16, 64
NUM_SHARDS = 64
# Attempts at a shard, and the delay before the second, which doubles.
MAX_ATTEMPTS, RETRY_DELAY_S = 3, 2.0
DONE_TAG, FAILED_TAG = "done", "failed"
CAPTION_FILE_LISTS = ("written", "existing", "without_words", "no_audio", "no_speech")  # fields of `CaptioningResult`

Item = TypeVar("Item")
JsonRows = list[dict[str, Any]]


def beam_options(runner: str, arguments: Sequence[str]) -> PipelineOptions:
    """Return the options of a pipeline from the name of a runner and further flags of Beam."""
    return PipelineOptions([f"--runner={runner}", *arguments])


def make_prepare_fn(options: PipelineOptions, out: Path) -> Callable[[Sequence[PrepareJob]], list[Failure]]:
    """Return the argument `decode` of `calce_jax.datasets.prepare.prepare_dataset`: prepare by a pipeline.

    Args:
      options: from `beam_options`.
      out: a folder that all workers see; while the pipeline runs, it holds a folder of its outputs.
    """

    def run(jobs: Sequence[PrepareJob]) -> list[Failure]:
        rows = run_pipeline(options, out, make_shards(jobs, JOBS_PER_SHARD), PrepareFn())
        return [Failure(**row) for row in rows[FAILED_TAG]]

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
    """Transcribe every video without an .srt in `out` by a pipeline; a worker opens the model once.

    Args:
      videos: the files.
      out: folder of <stem of the video>.srt, and of `failures.jsonl` if videos fail.
      whisper: as for `open_whisper_weights`; a folder is one that all workers see.
      options: from `beam_options`.
      transcribe_options: of the transcription.
      dtype: of the model.
    """
    out = Path(out)
    unique_videos, duplicates = deduplicate_names(videos)
    rows = run_pipeline(
        options,
        out,
        make_shards(unique_videos, CAPTION_VIDEOS_PER_SHARD),
        CaptionFn(out, whisper, transcribe_options or TranscriptionOptions(), dtype),
    )
    result = CaptioningResult(failures=[*duplicates, *(Failure(**row) for row in rows[FAILED_TAG])])
    for row in rows[DONE_TAG]:
        for field in CAPTION_FILE_LISTS:
            getattr(result, field).extend(map(Path, row[field]))
        result.seconds += row["seconds"]
    result.write_failures(out / "failures.jsonl")
    return result


class PrepareFn(beam.DoFn):
    """Prepares a shard of videos in a process of its own, which a video that crashes the decoder may end."""

    def process(self, element: Sequence[PrepareJob]) -> Iterator[Any]:
        """Yield failures to the side output."""

        def attempt() -> list[Failure]:
            pending = [job for job in element if not is_prepared(job)]
            return [failure for failure in prepare_in_processes(pending, workers=1) if failure is not None]

        for failure in with_retries(attempt):
            yield beam.pvalue.TaggedOutput(FAILED_TAG, json.dumps(asdict(failure)))


class CaptionFn(beam.DoFn):
    """Transcribes a shard of videos."""

    def __init__(self, out: Path, whisper: str, transcribe_options: TranscriptionOptions, dtype: Dtype):
        super().__init__()
        self._out, self._whisper, self._transcribe_options = out, whisper, transcribe_options
        self._dtype: Dtype = dtype
        self._transcriber: Transcriber | None = None

    def process(self, element: Sequence[Path]) -> Iterator[Any]:
        """Yield the `CaptioningResult` as JSON, and its failures to the side output."""
        word_timestamps = self._transcribe_options.word_timestamps
        result = with_retries(
            lambda: caption_missing(element, self._out, self._get_transcriber, word_timestamps=word_timestamps)
        )
        for failure in result.failures:
            yield beam.pvalue.TaggedOutput(FAILED_TAG, json.dumps(asdict(failure)))
        yield json.dumps(asdict(result), default=str)

    def _get_transcriber(self) -> Transcriber:
        if self._transcriber is None:
            self._transcriber = Transcriber(open_whisper(self._whisper, self._dtype), self._transcribe_options)
        return self._transcriber


def make_shards(items: Sequence[Item], max_size: int) -> list[list[Item]]:
    """Cut a list into `NUM_SHARDS` shards, or into more if they would exceed `max_size`."""
    size = min(max_size, -(-len(items) // NUM_SHARDS))
    return [list(items[start : start + size]) for start in range(0, len(items), size or 1)]


def with_retries(attempt: Callable[[], Any]) -> Any:
    """Call `attempt`, again after an OSError, such as that of a network file system, `MAX_ATTEMPTS` times at most."""
    for attempt_index in range(MAX_ATTEMPTS - 1):
        try:
            return attempt()
        except OSError:
            time.sleep(RETRY_DELAY_S * 2**attempt_index)
    return attempt()


def run_pipeline(options: PipelineOptions, out: Path, shards: Sequence[Any], do_fn: beam.DoFn) -> dict[str, JsonRows]:
    """Run `do_fn` over all shards, and return the JSON rows of its two outputs by tag."""
    folder = out / "beam.part"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        with beam.Pipeline(options=options) as pipeline:
            # Shuffled, or the runner fuses the work with the creation of the list, on a single worker.
            elements = pipeline | beam.Create(shards) | beam.Reshuffle()
            outputs = elements | beam.ParDo(do_fn).with_outputs(FAILED_TAG, main=DONE_TAG)
            for tag in (DONE_TAG, FAILED_TAG):
                _ = outputs[tag] | tag >> beam.io.WriteToText(str(folder / tag))
        output_files = {tag: sorted(folder.glob(f"{tag}-*")) for tag in (DONE_TAG, FAILED_TAG)}
        return {
            tag: [json.loads(row) for file in files for row in file.read_text(encoding="utf-8").splitlines()]
            for tag, files in output_files.items()
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
