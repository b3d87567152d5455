"""Prepare a dataset: `calce prepare --dataset=NAME --videos=DIR --srts=DIR --annotations=FILE,... --out=DIR`.

Decodes every annotated video once and writes the tables that training reads. Run the same command again to continue.
Failures are listed at the end and in OUT/failures.jsonl; the exit code is 1 only if no query has a usable video.
--whisper first transcribes videos without an .srt, like `calce caption`. --check validates annotations, videos and
captions, writes nothing, and exits with 1 if it finds a fault. --runner=DirectRunner, or another runner of Apache Beam,
decodes and transcribes in a pipeline; its flags follow after --.
"""

from pathlib import Path
from typing import cast

from absl import flags

from calce_jax.commands.flags.beam import beam_module, define_runner, pipeline_options
from calce_jax.commands.flags.paths import check_folder, check_output_file
from calce_jax.commands.runner import warn_deprecated
from calce_jax.presets.runs import DATASETS, SHORT_NAMES, current_name, get_preset
from calce_jax.presets.sizes import IMAGE_SIZES
from calce_jax.speech.inputs import resolve_whisper_name

FLAGS = flags.FlagValues()
DATASET = flags.DEFINE_enum("dataset", None, [*DATASETS, *SHORT_NAMES], "format of the annotations", flag_values=FLAGS)
VIDEOS = flags.DEFINE_string(
    "videos", None, "folder of <video id>.mp4, or another suffix of a video", flag_values=FLAGS
)
SRTS = flags.DEFINE_string("srts", None, "folder of <video id>.srt; no captions unless given", flag_values=FLAGS)
WHISPER = flags.DEFINE_string(
    "whisper",
    None,
    "folder, hub name or size of a Whisper model: transcribes videos without an .srt, to --srts or OUT/captions",
    flag_values=FLAGS,
)
ANNOTATIONS = flags.DEFINE_list(
    "annotations",
    None,
    "one file for each split: SPLIT=FILE, or FILE if its name contains the split",
    flag_values=FLAGS,
)
ITEMS = flags.DEFINE_string(
    "items", None, "items file of the original CALCE, for annotations without items", flag_values=FLAGS
)
FRAMES = flags.DEFINE_integer(
    "frames",
    None,
    "key frames of a video; those of stage 2 of the dataset's preset unless given, which serve both stages",
    flag_values=FLAGS,
)
IMAGE_SIZE = flags.DEFINE_integer(
    "image_size",
    None,
    "height and width of a frame, pixels; that of the model of the dataset's preset unless given: 224, for shapes 56",
    flag_values=FLAGS,
)
BEHAVIOUR = flags.DEFINE_enum(
    "behaviour",
    "default",
    ["default", "reference"],
    "reference reproduces the original's reading of videos",
    flag_values=FLAGS,
)
OUT = flags.DEFINE_string("out", None, "output folder of prepared videos and tables", flag_values=FLAGS)
WORKERS = flags.DEFINE_integer(
    "workers", None, "number of processes; that of the cores unless given", lower_bound=1, flag_values=FLAGS
)
CHECK = flags.DEFINE_bool("check", False, "only validate the dataset; write nothing", flag_values=FLAGS)
RUNNER = define_runner(FLAGS)
flags.mark_flags_as_required(["dataset", "videos", "annotations"], flag_values=FLAGS)
flags.register_multi_flags_validator(
    ["out", "check"], lambda values: values["out"] or values["check"], "--out is missing", flag_values=FLAGS
)


def main(argv: list[str]) -> None:
    """Decode the videos and build the tables, or validate the dataset; print the failures."""
    pipeline = pipeline_options(RUNNER.value, argv[1:])
    dataset = current_name(str(DATASET.value))
    if dataset != DATASET.value:
        warn_deprecated(f"--dataset={DATASET.value}", f"--dataset={dataset}")
    if WHISPER.value:
        resolve_whisper_name(WHISPER.value)
    if not CHECK.value:
        check_folder("--out=", str(OUT.value))
        inputs: dict[str, str | Path | None] = {
            f"--annotations={file}": file.partition("=")[2] or file for file in ANNOTATIONS.value or []
        }
        inputs["--items"] = ITEMS.value
        check_output_file("--out: ", f"{OUT.value}/failures.jsonl", inputs)
        check_folder("--out: ", f"{OUT.value}/tables", inputs)

    from calce_jax.config import Behaviour
    from calce_jax.datasets.prepare import (
        PrepareError,
        annotated_videos,
        caption_missing_videos,
        check_splits,
        prepare_dataset,
        read_splits,
    )
    from calce_jax.datasets.prepared_video import PrepareSettings
    from calce_jax.datasets.validate import validate_dataset
    from calce_jax.storage.failures import failure_table

    preset = get_preset(f"{dataset},stage=2")
    settings = PrepareSettings(
        preset.data.frames if FRAMES.value is None else FRAMES.value,
        IMAGE_SIZES[preset.model.size] if IMAGE_SIZE.value is None else IMAGE_SIZE.value,
        behaviour=cast(Behaviour, BEHAVIOUR.value),
    )
    if CHECK.value:
        splits, faults = check_splits(ANNOTATIONS.value or [], ITEMS.value)
        report = validate_dataset(splits, str(VIDEOS.value), SRTS.value, faults)
        print("\n".join([*report.fault_lines(), *report.summary_lines()]))
        if report.num_faults:
            raise SystemExit(1)
        return
    splits = read_splits(ANNOTATIONS.value or [], ITEMS.value)
    srts = SRTS.value
    if WHISPER.value:
        srts = srts or f"{OUT.value}/captions"
        if pipeline is None:
            caption_missing_videos(splits, str(VIDEOS.value), srts, WHISPER.value)
        else:
            beam_module(RUNNER.value).caption_videos(
                annotated_videos(splits, str(VIDEOS.value)), srts, WHISPER.value, pipeline
            )
    result = prepare_dataset(
        dataset,
        splits,
        videos=str(VIDEOS.value),
        srts=srts,
        out=str(OUT.value),
        settings=settings,
        workers=WORKERS.value,
        decode=pipeline and beam_module(RUNNER.value).make_prepare_fn(pipeline, Path(str(OUT.value))),
    )
    if result.failures:
        print(failure_table(result.failures))
        print(f"{len(result.failures)} failures, listed in {OUT.value}/failures.jsonl")
    for split in splits:
        print(f"{split}: {result.queries.get(split, 0)} of {len(splits[split])} queries are in {OUT.value}/tables")
        if result.extracted_items.get(split):
            print(f"{split}: items of {result.extracted_items[split]} queries are not annotated; they are its nouns")
    print(f"{result.num_ready} videos are ready, {result.num_decoded} of them decoded now")
    if not result.queries:
        raise PrepareError("no query has a usable video", "see the table above")
