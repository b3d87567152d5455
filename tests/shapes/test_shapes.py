"""The shapes world: scenes whose queries have one truth, and files that show it."""

import itertools
import json
import subprocess
import sys
from collections import Counter
from dataclasses import astuple
from hashlib import sha256
from pathlib import Path

import av
import numpy as np
import pytest

from calce_jax.errors import UserError
from calce_jax.moments.annotations import read_annotations
from calce_jax.text.captions import read_srt
from calce_jax.video.decode import read_frames, video_duration
from data.shapes import write
from data.shapes.facts import query_fact, scene_facts
from data.shapes.render import COLOUR_RGB, render_frame
from data.shapes.scene import FRAME_RATES, MOTIONS, VIDEO_SIZES, make_scene
from data.shapes.write import (
    FIRST_PRETRAIN_SEED,
    MAX_SEEDS,
    MAX_VIDEOS_PER_SPLIT,
    SPLITS,
    scene_seed,
    video_id,
    write_scene,
    write_shapes,
)

ROOT = Path(__file__).parents[2]
SCENES = [make_scene(seed) for seed in range(300)]


def area_of(frame: np.ndarray, colour: str) -> float:
    """Return the share of the pixels that have a colour, as near as compression leaves it."""
    return float((np.abs(frame.astype(int) - COLOUR_RGB[colour]).max(axis=-1) < 60).mean())


@pytest.fixture(scope="module")
def silent_scene():
    """Return the shortest of the scenes with a rate of 12.5 and no sound."""
    return min((s for s in SCENES if s.fps == 12.5 and s.seed % 5), key=lambda s: s.duration)


@pytest.fixture(scope="module")
def silent_video(silent_scene, tmp_path_factory):
    folder = tmp_path_factory.mktemp("silent")
    write_scene(silent_scene, folder / "a.mp4", folder / "a.srt")
    return folder / "a.mp4"


def test_a_seed_gives_one_scene():
    assert make_scene(7) == make_scene(7)
    assert make_scene(7) != make_scene(8)


def test_all_kinds_sizes_rates_and_lengths_occur():
    kinds = Counter(query.kind for scene in SCENES for query in scene.queries)
    assert set(kinds) == {"visual", "caption", "several"}
    assert min(kinds.values()) > len(SCENES) / 2
    assert {scene.size for scene in SCENES} == set(VIDEO_SIZES)
    assert {scene.fps for scene in SCENES} == set(FRAME_RATES)
    assert {scene.duration for scene in SCENES} == set(range(20, 41))


def test_a_query_has_no_second_answer():
    for scene in SCENES:
        for query in scene.queries:
            (item,) = query.items
            if query.kind == "caption":
                truth = [(said.start, said.end) for said in scene.sentences if item in said.text.split()]
            else:
                words = query.query.rstrip(".").split()
                motion = {"left": "left", "right": "right", "place": "stays", "still": "stays"}.get(words[-1])
                truth = [(t.start, t.end) for t in scene.tracks if t.name == item and motion in (None, t.motion)]
            assert list(query.windows) == sorted(truth), (scene.seed, query)
            assert (len(truth) > 1) == (query.kind == "several")


def test_windows_lie_in_the_video_and_apart():
    for scene in SCENES:
        for query in scene.queries:
            assert all(0 <= start < end <= scene.duration for start, end in query.windows)
            assert all(a[1] + 2 <= b[0] for a, b in itertools.pairwise(query.windows))


def test_visual_queries_have_distractors():
    """Colour alone or shape alone would often answer wrongly."""
    shared = sum(
        any(t.name != query.items[0] and set(t.name.split()) & set(query.items[0].split()) for t in scene.tracks)
        for scene in SCENES
        for query in scene.queries
        if query.kind != "caption"
    )
    assert shared > 0.6 * sum(query.kind != "caption" for scene in SCENES for query in scene.queries)


@pytest.mark.slow
def test_frames_show_each_colour_when_it_is_there():
    for scene in SCENES[:20]:
        for second in np.arange(0.5, scene.duration, 3.0):
            frame = render_frame(scene, second, scene.size[1], scene.size[0])
            there = {t.colour for t in scene.tracks if t.start <= second < t.end}
            assert {colour for colour in COLOUR_RGB if area_of(frame, colour) > 0.01} == there


def test_splits_and_seeds_share_no_scene():
    ranges = sorted(
        (scene_seed(split, 0, seed), scene_seed(split, MAX_VIDEOS_PER_SPLIT - 1, seed))
        for split in SPLITS
        for seed in range(MAX_SEEDS)
    )
    assert all(last < first for (_, last), (first, _) in itertools.pairwise(ranges))
    assert ranges[-1][1] < FIRST_PRETRAIN_SEED


@pytest.mark.parametrize(
    ("split", "number", "seed", "named"),
    [
        ("dev", 0, 0, "train, val, test"),
        ("val", MAX_VIDEOS_PER_SPLIT, 0, "fewer videos"),
        ("val", 0, MAX_SEEDS, "seed: must be from 0 to 32, got 33"),
    ],
)
def test_scenes_out_of_range_are_refused(split, number, seed, named):
    with pytest.raises(ValueError, match=named):
        scene_seed(split, number, seed)


def test_video_shows_what_a_query_says_when_it_says(silent_scene, silent_video):
    scene = silent_scene
    read = read_frames(silent_video, 2 * scene.duration)
    query = next(query for query in scene.queries if query.kind == "visual")
    colour = query.items[0].split()[0]
    inside, outside = 0, 0
    for frame, second in zip(read.frames, read.times, strict=True):
        there = any(track.colour == colour and track.start <= second < track.end for track in scene.tracks)
        assert (area_of(frame, colour) > 0.005) == there, second
        inside += any(start <= second < end for start, end in query.windows)
        outside += not there
    assert inside > 4
    assert outside > 4


def test_video_has_the_scenes_length_rate_and_size(silent_scene, silent_video):
    with av.open(silent_video) as file:
        (stream,) = file.streams
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height) == silent_scene.size
        assert float(stream.average_rate) == silent_scene.fps
    assert abs(video_duration(silent_video) - silent_scene.duration) < 1 / silent_scene.fps
    assert not list(silent_video.parent.glob("*.part"))


@pytest.mark.slow
def test_set_is_written_once_and_the_same_each_time(tmp_path):
    assert write_shapes(tmp_path / "a", {"val": 1}) == 1
    assert write_shapes(tmp_path / "a", {"val": 1}) == 0
    first = tmp_path / "a" / "videos" / "shapes_val_000000.mp4"
    before = first.read_bytes()
    first.unlink()
    assert write_shapes(tmp_path / "a", {"val": 1}) == 1
    assert first.read_bytes() == before

    scene = make_scene(scene_seed("val", 0, 0))
    captions = read_srt(tmp_path / "a" / "srts" / "shapes_val_000000.srt")
    assert [(caption.start, caption.end, caption.text) for caption in captions] == [
        (said.start, said.end, said.text) for said in scene.sentences
    ]
    rows = read_annotations(tmp_path / "a" / "val.jsonl")
    assert [row.qid for row in rows] == [f"shapes_val_000000_{number}" for number in range(len(scene.queries))]
    for row, query in zip(rows, scene.queries, strict=True):
        assert (row.video, row.duration) == (video_id("val", 0), scene.duration)
        assert (row.query, row.kind, tuple(row.items)) == (query.query, query.kind, query.items)
        assert tuple(map(tuple, row.windows)) == query.windows

    # This scene is one of those with sound: a hum exactly while something is said.
    assert scene.seed % 5 == 0
    with av.open(first) as file:
        rate = file.streams.audio[0].rate
        wave = np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)])
    loud = [float(np.abs(wave[int(rate * (s + 0.25)) : int(rate * (s + 0.75))]).max()) for s in range(scene.duration)]
    talking = [any(said.start <= s < said.end for said in scene.sentences) for s in range(scene.duration)]
    assert [level > 0.02 for level in loud] == talking

    with pytest.raises(
        ValueError, match=r"shapes\.json: drawn with seed 0 by version 1 .*, not with seed 1 by version 1"
    ):
        write_shapes(tmp_path / "a", {"val": 1}, seed=1)


def test_place_that_cannot_be_written_is_named(silent_scene, tmp_path):
    (tmp_path / "videos").write_text("a file where a folder should be")
    with pytest.raises(OSError, match=r"cannot write .*a\.mp4 .*choose another place"):
        write_scene(silent_scene, tmp_path / "videos" / "a.mp4", tmp_path / "a.srt")


@pytest.mark.slow
@pytest.mark.release
def test_command_draws_all_splits_in_parallel_and_names_what_is_wrong(tmp_path):
    def run(*arguments):
        command = [sys.executable, "-m", "data.shapes.write", f"--out={tmp_path}", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    done = run("--train=1", "--test=1")
    assert done.stdout == f"{tmp_path}: 2 videos, 2 of them new\n", done.stderr
    names = ["shapes_test_000000", "shapes_train_000000"]
    assert sorted(path.name for path in tmp_path.glob("videos/*")) == [f"{name}.mp4" for name in names]
    assert sorted(path.name for path in tmp_path.glob("srts/*")) == [f"{name}.srt" for name in names]
    assert sorted(path.name for path in tmp_path.glob("*.jsonl")) == ["test.jsonl", "train.jsonl"]
    refused = run("--train=1", "--seed=2")
    assert refused.returncode == 1
    assert f"Error: {tmp_path}/shapes.json: drawn with seed 0" in refused.stderr


def test_facts_are_all_that_happens():
    """A fact of a query is one of its scene; another scene's query happens in a scene if and only if its fact does."""
    for scene, other in itertools.pairwise(SCENES[:60]):
        facts = scene_facts(scene)
        assert {query_fact(query) for query in scene.queries} <= set(facts)
        for query in other.queries:
            words = query.query.rstrip(".").split()
            tracks = [track for track in scene.tracks if track.name == query.items[0]]
            motion = next((m for m in MOTIONS if m in words or (m == "stays" and "stands" in words)), None)
            shown = any(motion in (None, track.motion) for track in tracks)
            spoken = any(sentence.noun == query.items[0] for sentence in scene.sentences)
            assert (query_fact(query) in facts) == (spoken if query.kind == "caption" else shown), query


def test_a_world_version_names_one_world():
    """If this fails, a seed gives another scene or frame: raise WORLD_VERSION, and update the digest."""
    digest = sha256()
    for scene in SCENES[:100]:
        digest.update(repr(astuple(scene)).encode())
        for second in (0.3, 7.1, 15.0):
            digest.update(render_frame(scene, second, 24, 32).tobytes())
    assert (write.WORLD_VERSION, digest.hexdigest()[:16]) == (1, "a3508f4f660b7933")


@pytest.mark.parametrize("world", sorted(write.VERSION_1_HASHES))
def test_a_set_of_before_there_were_versions_is_completed(tmp_path, world):
    (tmp_path / "shapes.json").write_text(json.dumps({"seed": 0, "world": world}) + "\n")
    assert write_shapes(tmp_path, {"val": 0}) == 0
    assert json.loads((tmp_path / "shapes.json").read_text()) == {"seed": 0, "world_version": 1}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (
            '{"seed": 0, "world": "578141742950f22f"}',
            r"drawn with seed 0 by version \(unknown\) of the shapes world, not",
        ),
        ('{"seed": 0, "world_version": 2}', "drawn with seed 0 by version 2 of the shapes world, not with seed 0 by v"),
        ('{"seed": 0', "damaged"),
        ("[1]", "damaged"),
        ("3", "damaged"),
    ],
)
def test_a_set_of_another_world_is_refused_and_left_alone(tmp_path, content, named):
    (tmp_path / "shapes.json").write_text(content)
    with pytest.raises(UserError, match=rf"shapes\.json: {named}.*; remove {tmp_path}, or choose another folder"):
        write_shapes(tmp_path, {"val": 1})
    assert (tmp_path / "shapes.json").read_text() == content
    assert [path.name for path in tmp_path.iterdir()] == ["shapes.json"]
