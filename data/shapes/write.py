"""Write a dataset of the shapes world: `python -m data.shapes.write --out=DIR --train=600 --val=100 --test=100`.

    DIR/videos/shapes_train_000017.mp4   H.264; every fifth one with sound, a hum while a sentence is spoken
    DIR/srts/shapes_train_000017.srt     the spoken sentences
    DIR/train.jsonl                      the queries, as annotations of calce_jax
    DIR/shapes.json                      the seed and the version of the world

A second run with the same seed writes only missing videos, so a dataset can be completed or enlarged.
"""

import argparse
import json
import math
import multiprocessing
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import srt
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.stream import VideoStream
from tqdm import tqdm

from calce_jax.errors import UserError
from calce_jax.moments.annotations import Annotation, write_annotations
from calce_jax.storage.atomic_files import atomic_write, write_atomic
from data.shapes.facts import query_fact, scene_facts
from data.shapes.render import render_frame
from data.shapes.scene import Scene, make_scene

# Changes whenever a seed gives another scene or a scene gives another frame; files of two versions must not mix.
WORLD_VERSION = 1
# What shapes.json held before there were versions: hashes of the source text, all of version 1.
VERSION_1_HASHES = frozenset(
    (
        "44b2ea547167e1a814ce553739f46293399e0be340c39da349e6fd43feface12",
        "578141742950f22f941de43767ba3dc07ab04f2e2d229d10ea35fbe2b6d6b533",
        "8497e854109c270e3458fec0aaf70e0aff4aa64754c4f6dd76986b1f659581a7",
        "fe581fdcca35594ff907accad25554dc0042e8be5b01b6919bc02391f67e0bf3",
    )
)

SPLITS = ("train", "val", "test")
# Maximal number of scenes of a split. Seeds from FIRST_PRETRAIN_SEED are those of pretraining, which no split has.
MAX_VIDEOS_PER_SPLIT = 100_000
FIRST_PRETRAIN_SEED = 10_000_000
MAX_SEEDS = FIRST_PRETRAIN_SEED // (MAX_VIDEOS_PER_SPLIT * len(SPLITS))

SOUND_EVERY = 5
SOUND_RATE = 16_000  # samples per second
HUM_HERTZ = 180
HUM_AMPLITUDE = 0.05


def scene_seed(split: str, number: int, seed: int) -> int:
    """Return the seed of scene `number` of a split; splits and datasets of different seeds share no scene.

    Raises:
      UserError: there is no such split, or the number or the seed is out of range.
    """
    if split not in SPLITS:
        raise UserError(f"split: must be one of {', '.join(SPLITS)}, got {split!r}")
    if not 0 <= number < MAX_VIDEOS_PER_SPLIT:
        raise UserError(f"{split}: must be <= {MAX_VIDEOS_PER_SPLIT} videos, got {number + 1}", "write fewer videos")
    if not 0 <= seed < MAX_SEEDS:
        raise UserError(f"seed: must be from 0 to {MAX_SEEDS - 1}, got {seed}", "choose another seed")
    return (seed * len(SPLITS) + SPLITS.index(split)) * MAX_VIDEOS_PER_SPLIT + number


def video_id(split: str, number: int) -> str:
    """Return the id of video `number` of a split."""
    return f"shapes_{split}_{number:06d}"


def annotate(scene: Scene, video: str) -> list[Annotation]:
    """Return the queries of a scene as annotations of a video id."""
    return [
        Annotation(
            qid=f"{video}_{number}",
            video=video,
            query=query.query,
            items=list(query.items),
            duration=scene.duration,
            windows=[list(window) for window in query.windows],
            kind=query.kind,
            fact=query_fact(query),
            facts=scene_facts(scene),
        )
        for number, query in enumerate(scene.queries)
    ]


def write_shapes(folder: str | Path, videos: Mapping[str, int], seed: int = 0) -> int:
    """Write videos, captions and annotations, on all cores.

    Args:
      folder: output folder; existing videos are kept.
      videos: number of videos of each split.
      seed: of the dataset, 0 to 32.

    Returns:
      The number of videos that were written; the others existed.

    Raises:
      UserError: there is no such split or seed, or the folder holds another dataset.
      OSError: a file cannot be written; names it and the remedy.
    """
    folder = Path(folder)
    scenes = {
        video_id(split, number): make_scene(scene_seed(split, number, seed))
        for split, count in videos.items()
        for number in range(count)
    }
    check_provenance(folder, {"seed": seed, "world_version": WORLD_VERSION})
    for split, count in videos.items():
        ids = [video_id(split, number) for number in range(count)]
        write_annotations(folder / f"{split}.jsonl", (row for video in ids for row in annotate(scenes[video], video)))
    return write_videos(folder, scenes)


def write_videos(folder: Path, scenes: Mapping[str, Scene]) -> int:
    """Write the videos and captions of scenes by their video ids, on all cores, and return how many were missing.

    Raises:
      OSError: a file cannot be written; names it and the remedy.
    """
    missing = [video for video in scenes if not _paths(folder, video)[0].is_file()]
    jobs = [(scenes[video], *_paths(folder, video)) for video in missing]
    with tqdm(total=len(jobs), desc="draw shapes", unit="video") as bar:
        if len(jobs) < 2:
            for job in jobs:
                write_scene(*job)
                bar.update()
        else:
            # Not forked: the caller may have started threads.
            context = multiprocessing.get_context("spawn")
            workers = min(os.cpu_count() or 1, len(jobs))
            with ProcessPoolExecutor(workers, mp_context=context) as pool:
                for _ in pool.map(write_scene, *zip(*jobs, strict=True)):
                    bar.update()
    return len(jobs)


def write_scene(scene: Scene, video: Path, captions: Path) -> None:
    """Write the captions and then the video of a scene, so that a video always has its captions.

    Raises:
      OSError: a file cannot be written; names it and the remedy.
    """
    write_atomic(captions, _compose_srt(scene))
    # Bitexact: without the encoder's version in the file, the same scene gives the same bytes.
    with (
        atomic_write(video) as partial_path,
        av.open(partial_path, "w", format="mp4", options={"fflags": "+bitexact"}) as file,
    ):
        _encode(scene, file)


def _paths(folder: Path, video: str) -> tuple[Path, Path]:
    return folder / "videos" / f"{video}.mp4", folder / "srts" / f"{video}.srt"


def check_provenance(folder: Path, expected: Mapping[str, Any]) -> None:
    """Write seed and version to shapes.json: two datasets have the same video ids, and must not mix in one folder.

    Args:
      folder: of the dataset.
      expected: the "seed" and the "world_version" of what is to be written.

    Raises:
      UserError: the folder holds another dataset.
    """
    path = folder / "shapes.json"
    if path.is_file() and (stored := _read_provenance(path)) != expected:
        raise UserError(
            f"{path}: drawn with {_describe_provenance(stored)}, not with {_describe_provenance(expected)}",
            f"remove {folder}, or choose another folder",
        )
    write_atomic(path, json.dumps(expected) + "\n")


def _read_provenance(path: Path) -> dict[str, Any]:
    try:
        stored = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error})", f"remove {path.parent}, or choose another folder") from error
    if stored.pop("world", None) in VERSION_1_HASHES:
        stored["world_version"] = 1
    return stored


def _describe_provenance(provenance: Mapping[str, Any]) -> str:
    version = provenance.get("world_version", "(unknown)")
    return f"seed {provenance.get('seed')} by version {version} of the shapes world"


def _compose_srt(scene: Scene) -> str:
    return srt.compose(
        srt.Subtitle(number, timedelta(seconds=sentence.start), timedelta(seconds=sentence.end), sentence.text)
        for number, sentence in enumerate(scene.sentences, 1)
    )


def _encode(scene: Scene, file: OutputContainer) -> None:
    rate = Fraction(scene.fps)
    # Otherwise x264 uses the instructions of the CPU, whose rounding differs.
    options = {"preset": "ultrafast", "x264-params": "cpu-independent=1"}
    stream = file.add_stream("libx264", rate=rate, options=options)
    stream.width, stream.height = scene.size
    stream.pix_fmt = "yuv420p"
    stream.codec_context.thread_count = 1  # videos are encoded in parallel
    # The default search for the best codes takes as long as all pictures; a hum does not need it.
    sound = None
    if scene.seed % SOUND_EVERY == 0:
        sound = file.add_stream("aac", rate=SOUND_RATE, layout="mono", options={"aac_coder": "fast"})
    _encode_frames(scene, file, stream, rate)
    if sound is not None:
        _encode_hum(scene, file, sound)


def _encode_frames(scene: Scene, file: OutputContainer, stream: VideoStream, rate: Fraction) -> None:
    # The last frame begins before the end of the scene, and may last longer.
    for number in range(math.ceil(scene.duration * rate)):
        picture = render_frame(scene, float(number / rate), stream.height, stream.width)
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = number, 1 / rate
        file.mux(stream.encode(frame))
    file.mux(stream.encode(None))


def _encode_hum(scene: Scene, file: OutputContainer, stream: AudioStream) -> None:
    second = np.arange(scene.duration * SOUND_RATE) / SOUND_RATE
    is_speech = np.zeros(second.shape, bool)
    for sentence in scene.sentences:
        is_speech[sentence.start * SOUND_RATE : sentence.end * SOUND_RATE] = True
    wave = (HUM_AMPLITUDE * np.sin(2 * np.pi * HUM_HERTZ * second) * is_speech).astype(np.float32)
    frame = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = SOUND_RATE, 0, Fraction(1, SOUND_RATE)
    file.mux(stream.encode(frame))
    file.mux(stream.encode(None))


def main() -> None:
    """Parse the command line and write a dataset."""
    parser = argparse.ArgumentParser(description="Write a dataset of the shapes world.")
    parser.add_argument("--out", required=True, help="output folder")
    for split in SPLITS:
        parser.add_argument(f"--{split}", type=int, default=0, help=f"number of videos of the {split} split")
    parser.add_argument("--seed", type=int, default=0, help=f"seed of the dataset, 0 to {MAX_SEEDS - 1}")
    args = parser.parse_args()
    for split in SPLITS:
        if getattr(args, split) < 0:
            parser.error(f"--{split}: must be 0 or more, got {getattr(args, split)}")
    counts = {split: getattr(args, split) for split in SPLITS if getattr(args, split)}
    try:
        num_written = write_shapes(args.out, counts, args.seed)
    except (OSError, ValueError) as error:
        raise SystemExit(f"Error: {error}") from None
    print(f"{args.out}: {sum(counts.values())} videos, {num_written} of them new")


if __name__ == "__main__":
    main()
