"""The world of the benchmark: every query is of its kind, and its windows are those of the scene."""

from collections import Counter

import pytest

from calce_jax.errors import UserError
from calce_jax.moments.annotations import read_annotations
from data.shapes.bench.queries import KINDS, choose_queries
from data.shapes.bench.write import BENCH_VERSION, FIRST_SEED, SIZES, SplitSize, make_scenes, write_bench
from data.shapes.bench.write import main as write_main
from data.shapes.facts import scene_facts
from data.shapes.pretrain.pretrain import FIRST_HELD_OUT_SEED, FIRST_TRAIN_SEED, PretrainConfig
from data.shapes.scene import LONG, SHORT, make_scene
from data.shapes.write import MAX_SEEDS, MAX_VIDEOS_PER_SPLIT, SPLITS, write_shapes

SIZE = SplitSize({"plain": 12, "short": 4, "long": 4}, dict.fromkeys(KINDS, 8))


@pytest.fixture(scope="module")
def videos():
    return make_scenes("test", SIZE)


@pytest.fixture(scope="module")
def queries(videos):
    return choose_queries(videos, SIZE.queries, seed=0)


def true_windows(scene, fact):
    """Return the windows of a fact, read from the scene, not by the code that draws queries."""
    if fact.startswith("about "):
        return [[s.start, s.end] for s in scene.sentences if s.noun == fact.removeprefix("about ")]
    colour, shape, *motion = fact.split()
    tracks = [track for track in scene.tracks if (track.colour, track.shape) == (colour, shape)]
    return sorted([track.start, track.end] for track in tracks if not motion or track.motion == motion[0])


def test_every_kind_has_as_many_queries_as_asked_for_with_the_windows_of_the_scene(videos, queries):
    assert Counter(row.kind for row in queries) == SIZE.queries
    for row in queries:
        scene = videos[row.video][1]
        assert row.windows == true_windows(scene, row.fact), row.query
        assert row.items[0] in row.query
        assert (row.fact in scene_facts(scene)) is (row.kind != "absent")


def test_queries_are_of_their_kind(videos, queries):
    for row in queries:
        style, scene = videos[row.video]
        lengths = [end - start for start, end in row.windows]
        assert style == (row.kind if row.kind in ("short", "long") else "plain")
        assert len(lengths) in {"several": (2, 3, 4), "absent": (0,), "keywords": (1, 2, 3, 4)}.get(row.kind, (1,))
        assert row.kind != "short" or max(lengths) < 3
        assert (scene.duration >= 90) is (row.kind == "long")
        assert (len(row.query.split()) == 2) is (row.kind == "keywords")


def test_half_of_the_absent_queries_nearly_happen(videos):
    absent = [row for row in choose_queries(videos, {"absent": 30}, seed=1) if not row.fact.startswith("about")]

    def differences(row):
        words = row.fact.split()
        facts = [fact.split() for fact in scene_facts(videos[row.video][1])]
        return min(sum(a != b for a, b in zip(words, fact, strict=True)) for fact in facts if len(fact) == len(words))

    motions = [row for row in absent if len(row.fact.split()) == 3]
    assert motions
    assert all(differences(row) == 1 for row in motions)


def test_videos_take_turns(queries):
    per_video = Counter(row.video for row in queries if row.kind == "visual")
    assert max(per_video.values()) == 1
    assert len({(row.video, row.query) for row in queries}) == len(queries)
    assert len({row.qid for row in queries}) == len(queries)


def test_the_same_seed_gives_the_same_queries_and_another_gives_others(videos, queries):
    assert choose_queries(videos, SIZE.queries, seed=0) == queries
    assert choose_queries(videos, SIZE.queries, seed=1) != queries


def test_a_world_is_not_asked_for_more_queries_than_it_holds(videos):
    with pytest.raises(UserError, match=r"^short: 1000 queries of this kind are asked for, 4 videos hold \d+; ask for"):
        choose_queries(videos, {"short": 1000}, seed=0)


def test_kinds_and_styles_that_do_not_exist_are_named(videos):
    with pytest.raises(UserError, match=r"^queries: there is no kind foo; the kinds are visual, "):
        choose_queries(videos, {"visual": 1, "foo": 2}, seed=0)
    with pytest.raises(UserError, match=r"^videos: there is no style plainn; the styles are plain, short, long$"):
        make_scenes("test", SplitSize({"plainn": 1}, {}))


def test_the_benchmark_has_the_size_that_is_documented():
    assert sum(SIZES["test"].queries.values()) == 1000
    assert sum(SIZES["test"].videos.values()) == 300
    assert set(SIZES["test"].queries) == set(KINDS)
    for split, size in SIZES.items():
        rows = choose_queries(make_scenes(split, size), size.queries, SPLITS.index(split))
        assert Counter(row.kind for row in rows) == size.queries


def test_no_scene_is_one_of_the_demo_or_of_pretraining():
    demo_end = MAX_SEEDS * len(SPLITS) * MAX_VIDEOS_PER_SPLIT
    pretraining = range(FIRST_TRAIN_SEED, FIRST_TRAIN_SEED + PretrainConfig.num_scenes)
    seeds = [scene.seed for split, size in SIZES.items() for _, scene in make_scenes(split, size).values()]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= FIRST_SEED
    assert demo_end <= min(seeds)
    assert not set(seeds) & set(pretraining)
    assert max(seeds) < FIRST_HELD_OUT_SEED


@pytest.mark.parametrize("style", [SHORT, LONG])
def test_a_style_bounds_the_lengths(style):
    for seed in range(20):
        scene = make_scene(seed, style)
        assert style.duration[0] <= scene.duration <= style.duration[1]
        assert all(style.track[0] <= track.end - track.start <= style.track[1] for track in scene.tracks)
        assert all(track.end <= scene.duration for track in scene.tracks)


@pytest.mark.slow
def test_the_dataset_is_written_and_its_folder_is_not_mixed_with_another(tmp_path):
    size = SplitSize({"plain": 1, "short": 1, "long": 1}, {"visual": 1, "absent": 1, "short": 1, "long": 1})
    annotations = write_bench(tmp_path, {"test": size})
    assert read_annotations(tmp_path / "test.jsonl") == annotations["test"]
    assert len(list((tmp_path / "videos").glob("*.mp4"))) == len(list((tmp_path / "srts").glob("*.srt"))) == 3
    with pytest.raises(UserError, match=f"by version {BENCH_VERSION} of the shapes world, not with seed 0"):
        write_shapes(tmp_path, {"test": 1})


def test_the_command_writes_the_dataset_or_says_why_not(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("data.shapes.bench.write.SIZES", {"test": SplitSize({"plain": 1}, {"visual": 1})})
    monkeypatch.setattr("sys.argv", ["write", f"--out={tmp_path}/bench"])
    write_main()
    assert capsys.readouterr().out == f"{tmp_path}/bench: 1 test queries\n"
    (tmp_path / "file").touch()
    monkeypatch.setattr("sys.argv", ["write", f"--out={tmp_path}/file"])
    with pytest.raises(SystemExit, match=r"Error: .*file"):
        write_main()
