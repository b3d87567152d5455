"""Writing the shapes world as files: `python -m data.shapes.write --out=DIR --train=600 --val=100 --test=100`.

    DIR/videos/shapes_train_000017.mp4   H.264; a fifth of them with sound, a hum while something is said
    DIR/srts/shapes_train_000017.srt     what is said
    DIR/train.jsonl                      the queries, in our own format of annotations

A second run with the same seed writes only what is missing, so a set can be completed or enlarged.
"""

import argparse
import hashlib
import json
import math
import multiprocessing
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from datetime import timedelta
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import srt
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.stream import VideoStream
from tqdm import tqdm

from calce_jax.moments.annotations import Annotation, write_annotations
from calce_jax.storage.atomic_files import write_atomic
from data.shapes.render import render_frame
from data.shapes.scene import Scene, make_scene

SPLITS = ("train", "val", "test")
# Scenes a split can have. Seeds from PRETRAINING on are left to pretraining, whose scenes are in no split.
MAX_VIDEOS_PER_SPLIT = 100_000
FIRST_PRETRAIN_SEED = 10_000_000
MAX_SEEDS = FIRST_PRETRAIN_SEED // (MAX_VIDEOS_PER_SPLIT * len(SPLITS))

SOUND_EVERY = 5
SOUND_RATE = 16_000  # samples a second
HUM_HERTZ = 180
HUM_AMPLITUDE = 0.05


def scene_seed(split: str, number: int, seed: int) -> int:
    """Return the seed of a split's scene; no two splits, and no two seeds, share a scene.

    Raises:
      ValueError: there is no such split, or the number or the seed is out of range.
    """
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; there are {', '.join(SPLITS)}")
    if not 0 <= number < MAX_VIDEOS_PER_SPLIT:
        raise ValueError(f"{split}: video {number} is outside 0 to {MAX_VIDEOS_PER_SPLIT - 1}; write fewer videos")
    if not 0 <= seed < MAX_SEEDS:
        raise ValueError(f"seed: {seed} is outside 0 to {MAX_SEEDS - 1}; choose a smaller one")
    return (seed * len(SPLITS) + SPLITS.index(split)) * MAX_VIDEOS_PER_SPLIT + number


def video_id(split: str, number: int) -> str:
    """Return the id of a split's video."""
    return f"shapes_{split}_{number:06d}"


def annotate(scene: Scene, video: str) -> list[Annotation]:
    """Return the scene's queries."""
    return [
        Annotation(
            qid=f"{video}_{number}",
            video=video,
            query=query.query,
            items=list(query.items),
            duration=scene.duration,
            windows=[list(window) for window in query.windows],
            kind=query.kind,
        )
        for number, query in enumerate(scene.queries)
    ]


def write_shapes(folder: str | Path, videos: Mapping[str, int], seed: int = 0) -> int:
    """Write a set, on all processors: videos, captions and annotations.

    Args:
      folder: where; files that are there are kept.
      videos: how many for each split.
      seed: of the set, 0 to 32.

    Returns:
      How many videos were written; the others were there.

    Raises:
      ValueError: there is no such split or seed, or the folder holds another set.
      OSError: a file cannot be written.
    """
    folder = Path(folder)
    scenes = {
        video_id(split, number): make_scene(scene_seed(split, number, seed))
        for split, count in videos.items()
        for number in range(count)
    }
    _check_provenance(folder, seed)
    for split, count in videos.items():
        ids = [video_id(split, number) for number in range(count)]
        write_annotations(folder / f"{split}.jsonl", (row for video in ids for row in annotate(scenes[video], video)))
    missing = [video for video in scenes if not _paths(folder, video)[0].is_file()]
    jobs = [(scenes[video], *_paths(folder, video)) for video in missing]
    with tqdm(total=len(jobs), desc="draw shapes", unit="video") as bar:
        if len(jobs) < 2:
            for job in jobs:
                write_scene(*job)
                bar.update()
        else:
            # Not forked: what calls this may have started threads.
            context = multiprocessing.get_context("spawn")
            workers = min(os.cpu_count() or 1, len(jobs))
            with ProcessPoolExecutor(workers, mp_context=context) as pool:
                for _ in pool.map(write_scene, *zip(*jobs, strict=True)):
                    bar.update()
    return len(jobs)


def write_scene(scene: Scene, video: Path, captions: Path) -> None:
    """Write a scene's captions and its video; the video last, so that where it is, both are.

    Raises:
      OSError: a file cannot be written.
    """
    write_atomic(captions, _compose_srt(scene))
    partial_path = video.with_name(f"{video.name}.part")
    try:
        video.parent.mkdir(parents=True, exist_ok=True)
        # Without the encoder's version, the same scene gives the same file.
        with av.open(partial_path, "w", format="mp4", options={"fflags": "+bitexact"}) as file:
            _encode(scene, file)
        os.replace(partial_path, video)
    except OSError as error:
        with suppress(OSError):
            partial_path.unlink()
        raise OSError(
            error.errno, f"cannot write {video} ({error.strerror}); make room, or choose another place"
        ) from error


def _paths(folder: Path, video: str) -> tuple[Path, Path]:
    return folder / "videos" / f"{video}.mp4", folder / "srts" / f"{video}.srt"


def _check_provenance(folder: Path, seed: int) -> None:
    """Note in the folder what its set is drawn from: two sets must not mix, and their ids are the same."""
    program = (Path(__file__).with_name(name) for name in ("scene.py", "render.py"))
    world = hashlib.sha256(b"".join(file.read_bytes() for file in program)).hexdigest()
    origin = {"seed": seed, "world": world}
    provenance_file = folder / "shapes.json"
    if provenance_file.is_file() and json.loads(provenance_file.read_text()) != origin:
        raise ValueError(
            f"{provenance_file}: drawn from another seed or by another version; remove {folder} or choose another"
        )
    write_atomic(provenance_file, json.dumps(origin) + "\n")


def _compose_srt(scene: Scene) -> str:
    return srt.compose(
        srt.Subtitle(number, timedelta(seconds=sentence.start), timedelta(seconds=sentence.end), sentence.text)
        for number, sentence in enumerate(scene.sentences, 1)
    )


def _encode(scene: Scene, file: OutputContainer) -> None:
    rate = Fraction(scene.fps)
    # Otherwise x264 rounds as its processor likes, and the same scene does not always give the same file.
    options = {"preset": "veryfast", "x264-params": "cpu-independent=1"}
    stream = file.add_stream("libx264", rate=rate, options=options)
    stream.width, stream.height = scene.size
    stream.pix_fmt = "yuv420p"
    stream.codec_context.thread_count = 1  # every processor has a video of its own
    sound = file.add_stream("aac", rate=SOUND_RATE, layout="mono") if scene.seed % SOUND_EVERY == 0 else None
    _encode_frames(scene, file, stream, rate)
    if sound is not None:
        _encode_hum(scene, file, sound)


def _encode_frames(scene: Scene, file: OutputContainer, stream: VideoStream, rate: Fraction) -> None:
    # The last frame is the last that begins before the end; it may be shown for a little longer.
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
    """Write a set as the command line says."""
    parser = argparse.ArgumentParser(description="Draw a set of the shapes world.")
    parser.add_argument("--out", required=True, help="folder the set goes to")
    for split in SPLITS:
        parser.add_argument(f"--{split}", type=int, default=0, help=f"videos of the {split} split")
    parser.add_argument("--seed", type=int, default=0, help=f"of the set, 0 to {MAX_SEEDS - 1}")
    args = parser.parse_args()
    counts = {split: getattr(args, split) for split in SPLITS if getattr(args, split)}
    try:
        num_written = write_shapes(args.out, counts, args.seed)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
    print(f"{args.out}: {sum(counts.values())} videos, {num_written} of them new")


if __name__ == "__main__":
    main()
