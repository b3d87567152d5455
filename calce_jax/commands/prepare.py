"""Prepare a dataset: `launch/prepare.py --dataset=NAME --videos=DIR --srts=DIR --annotations=FILE,... --out=DIR`.

Decodes every annotated video once and writes the tables that training reads. The same command goes on where it stopped.
What is broken or missing is listed at the end and in OUT/failures.jsonl; the exit code is 1 only if nothing worked.
With --whisper, videos without an .srt are captioned first, as `launch/caption.py` does it. With --check nothing is
written: it tells what is wrong with annotations, videos and captions, and the exit code is 1 if anything is. With
--runner=DirectRunner, or another of Apache Beam's, a pipeline decodes and captions; Beam's own flags follow after --.
"""

from pathlib import Path
from typing import cast

from absl import app, flags, logging

from calce_jax.commands.flags.beam import beam, pipeline_options
from calce_jax.datasets.prepare import PrepareError, annotated_videos, caption_missing, prepare, read_splits
from calce_jax.datasets.prepared_video import Settings
from calce_jax.datasets.validate import Checked, check
from calce_jax.storage.failures import failure_table
from calce_jax.text.text_row import Behaviour

# By the names of the flag, those of the configs.
DATASETS = {"qvhighlights": "qvh", "charades_sta": "charades", "shapes": "shapes"}

DATASET = flags.DEFINE_enum("dataset", None, list(DATASETS), "whose annotations they are")
VIDEOS = flags.DEFINE_string("videos", None, "folder of <video id>.mp4 (or .mkv, .webm, .avi, .mov)")
SRTS = flags.DEFINE_string("srts", None, "folder of <video id>.srt; leave out for a dataset without captions")
WHISPER = flags.DEFINE_string(
    "whisper", None, "a Whisper's folder, name or size: writes what --srts lacks (OUT/captions)"
)
ANNOTATIONS = flags.DEFINE_list("annotations", None, "one file a split: SPLIT=FILE, or FILE with the split in its name")
ITEMS = flags.DEFINE_string("items", None, "the original's file of items, for annotations that have none")
FRAMES = flags.DEFINE_integer("frames", 75, "frames of a video; the larger stage's number serves both")
IMAGE_SIZE = flags.DEFINE_integer("image_size", 224, "height and width of a frame, pixels")
BEHAVIOUR = flags.DEFINE_enum("behaviour", "default", ["default", "reference"], "reference reads as the original does")
OUT = flags.DEFINE_string("out", None, "where the prepared videos and tables go")
WORKERS = flags.DEFINE_integer("workers", None, "processes; all cores unless given", lower_bound=1)
CHECK = flags.DEFINE_bool("check", False, "only look for faults, and write nothing")
flags.mark_flags_as_required(["dataset", "videos", "annotations"])
flags.register_multi_flags_validator(["out", "check"], lambda given: given["out"] or given["check"], "--out is missing")


def main(argv: list[str]) -> None:
    """Prepare, build the tables, say what is missing."""
    pipeline = pipeline_options(argv)
    try:
        settings = Settings(FRAMES.value, IMAGE_SIZE.value, behaviour=cast(Behaviour, BEHAVIOUR.value))
        splits = read_splits(ANNOTATIONS.value or [], ITEMS.value)
        if CHECK.value:
            tell(check(splits, str(VIDEOS.value), SRTS.value))
            return
        srts = SRTS.value
        if WHISPER.value:
            srts = srts or f"{OUT.value}/captions"
            if pipeline is None:
                caption_missing(splits, str(VIDEOS.value), srts, WHISPER.value)
            else:
                beam().caption_videos(annotated_videos(splits, str(VIDEOS.value)), srts, WHISPER.value, pipeline)
        done = prepare(
            DATASETS[str(DATASET.value)],
            splits,
            videos=str(VIDEOS.value),
            srts=srts,
            out=str(OUT.value),
            settings=settings,
            workers=WORKERS.value,
            decode=pipeline and beam().prepare_with(pipeline, Path(str(OUT.value))),
        )
    except (OSError, ValueError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
    if done.failures:
        print(failure_table(done.failures))
        print(f"{len(done.failures)} failures, listed in {OUT.value}/failures.jsonl")
    for split in splits:
        print(f"{split}: {done.queries.get(split, 0)} of {len(splits[split])} queries are in {OUT.value}/tables")
    print(f"{done.ready} videos are ready, {done.decoded} of them decoded now")
    if not done.queries:
        raise SystemExit(f"{PrepareError.__name__}: no query has a usable video; see the table above")


def tell(checked: Checked) -> None:
    """Print what was found."""
    if checked.faults:
        print(failure_table(checked.faults))
    print("\n".join(checked.lines()))
    if checked.faults:
        raise SystemExit(1)


if __name__ == "__main__":
    # TFDS tells of every file it writes; --verbosity=0 shows that.
    logging.set_verbosity(logging.WARNING)
    app.run(main)
