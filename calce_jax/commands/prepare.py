"""Prepare a dataset: `calce prepare --dataset=NAME --videos=DIR --srts=DIR --annotations=FILE,... --out=DIR`.

Decodes every annotated video once and writes the tables that training reads. The same command goes on where it stopped.
Failures are listed at the end and in OUT/failures.jsonl; the exit code is 1 only if nothing worked.
With --whisper, videos without an .srt are captioned first, as `calce caption` does it. With --check nothing is
written: it tells what is wrong with annotations, videos and captions, and the exit code is 1 if anything is. With
--runner=DirectRunner, or another of Apache Beam's, a pipeline decodes and captions; Beam's own flags follow after --.
"""

from pathlib import Path
from typing import cast

from absl import flags

from calce_jax.commands.flags.beam import BeamFlags
from calce_jax.presets.runs import DATASETS, SHORT_NAMES

FLAGS = flags.FlagValues()
DATASET = flags.DEFINE_enum("dataset", None, [*DATASETS, *SHORT_NAMES], "whose annotations they are", flag_values=FLAGS)
VIDEOS = flags.DEFINE_string("videos", None, "folder of <video id>.mp4 (or .mkv, .webm, .avi, .mov)", flag_values=FLAGS)
SRTS = flags.DEFINE_string(
    "srts", None, "folder of <video id>.srt; leave out for a dataset without captions", flag_values=FLAGS
)
WHISPER = flags.DEFINE_string(
    "whisper", None, "a Whisper's folder, name or size: writes what --srts lacks (OUT/captions)", flag_values=FLAGS
)
ANNOTATIONS = flags.DEFINE_list(
    "annotations", None, "one file a split: SPLIT=FILE, or FILE with the split in its name", flag_values=FLAGS
)
ITEMS = flags.DEFINE_string(
    "items", None, "the original's file of items, for annotations that have none", flag_values=FLAGS
)
FRAMES = flags.DEFINE_integer(
    "frames", 75, "frames of a video; the larger stage's number serves both", flag_values=FLAGS
)
IMAGE_SIZE = flags.DEFINE_integer("image_size", 224, "height and width of a frame, pixels", flag_values=FLAGS)
BEHAVIOUR = flags.DEFINE_enum(
    "behaviour", "default", ["default", "reference"], "reference reads as the original does", flag_values=FLAGS
)
OUT = flags.DEFINE_string("out", None, "where the prepared videos and tables go", flag_values=FLAGS)
WORKERS = flags.DEFINE_integer("workers", None, "processes; all cores unless given", lower_bound=1, flag_values=FLAGS)
CHECK = flags.DEFINE_bool("check", False, "only look for faults, and write nothing", flag_values=FLAGS)
BEAM = BeamFlags(FLAGS)
flags.mark_flags_as_required(["dataset", "videos", "annotations"], flag_values=FLAGS)
flags.register_multi_flags_validator(
    ["out", "check"], lambda given: given["out"] or given["check"], "--out is missing", flag_values=FLAGS
)


def main(argv: list[str]) -> None:
    """Prepare, build the tables, list what failed."""
    pipeline = BEAM.pipeline_options(argv)

    from calce_jax.config import Behaviour
    from calce_jax.datasets.prepare import (
        PrepareError,
        annotated_videos,
        caption_missing_videos,
        prepare_dataset,
        read_splits,
    )
    from calce_jax.datasets.prepared_video import PrepareSettings
    from calce_jax.datasets.validate import validate_dataset
    from calce_jax.storage.failures import failure_table

    settings = PrepareSettings(FRAMES.value, IMAGE_SIZE.value, behaviour=cast(Behaviour, BEHAVIOUR.value))
    splits = read_splits(ANNOTATIONS.value or [], ITEMS.value)
    if CHECK.value:
        checked = validate_dataset(splits, str(VIDEOS.value), SRTS.value)
        if checked.faults:
            print(failure_table(checked.faults))
        print("\n".join(checked.summary_lines()))
        if checked.faults:
            raise SystemExit(1)
        return
    srts = SRTS.value
    if WHISPER.value:
        srts = srts or f"{OUT.value}/captions"
        if pipeline is None:
            caption_missing_videos(splits, str(VIDEOS.value), srts, WHISPER.value)
        else:
            BEAM.module().caption_videos(annotated_videos(splits, str(VIDEOS.value)), srts, WHISPER.value, pipeline)
    dataset = str(DATASET.value)
    result = prepare_dataset(
        SHORT_NAMES.get(dataset, dataset),
        splits,
        videos=str(VIDEOS.value),
        srts=srts,
        out=str(OUT.value),
        settings=settings,
        workers=WORKERS.value,
        decode=pipeline and BEAM.module().make_prepare_fn(pipeline, Path(str(OUT.value))),
    )
    if result.failures:
        print(failure_table(result.failures))
        print(f"{len(result.failures)} failures, listed in {OUT.value}/failures.jsonl")
    for split in splits:
        print(f"{split}: {result.queries.get(split, 0)} of {len(splits[split])} queries are in {OUT.value}/tables")
    print(f"{result.num_ready} videos are ready, {result.num_decoded} of them decoded now")
    if not result.queries:
        raise PrepareError("no query has a usable video", "see the table above")
