"""Key frame selection of both stages against recorded runs of the original, and its invariants."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calce_jax.input_pipeline.speech_mask import mark_speech_frames
from calce_jax.models.keyframes.borders import dilate, mark_cluster_borders
from calce_jax.models.keyframes.coarse import select_coarse
from calce_jax.models.keyframes.compress import compress, draw_removal_numbers
from calce_jax.models.keyframes.fine import _frames_in_windows, _frames_of_top_clusters, select_fine
from tests.helpers.recordings_io import load_recording

coarse_compiled = jax.jit(select_coarse, static_argnames=("mode", "clusters", "dilation", "behaviour"))
fine_compiled = jax.jit(select_fine, static_argnames=("clusters", "dilation", "filter_dilation", "behaviour"))
compress_compiled = jax.jit(compress)


def marks(text):
    """A mask from "..xx.x"."""
    return np.array([letter != "." for letter in text])


def chosen(plan, i=0):
    """Check that the plan is well formed; return video i's key frames and its compressed frames (indices)."""
    index, kept, key = (np.asarray(a)[i] for a in (plan.frame_index, plan.slot_mask, plan.is_keyframe))
    assert not (key & ~kept).any()
    assert not index[~kept].any()
    assert (np.diff(index[kept]) > 0).all()
    assert not kept[kept.sum() :].any()
    return index[key].tolist(), index[kept & ~key].tolist()


def scenes(frames, *, length=5, width=8, seed=0):
    """Return unit features (frames, width) with a new centre every `length` frames and small noise around it."""
    rng = np.random.default_rng(seed)
    features = np.repeat(rng.normal(size=(-(-frames // length), width)), length, axis=0)[:frames]
    features = features + 0.05 * rng.normal(size=(frames, width))
    return (features / np.linalg.norm(features, axis=-1, keepdims=True)).astype(np.float32)


def coarse(features, *, frames=None, talk=False, spoken=None, **settings):
    """Stage 1 on one video, padded to `frames` with the constant 7."""
    count = len(features)
    frames = frames or count
    padded = np.full((1, frames, features.shape[1]), 7.0, np.float32)
    padded[0, :count] = features
    has_speech = np.ones((1, frames), bool) if spoken is not None else np.zeros((1, frames), bool)
    if spoken is not None:
        has_speech[0, :count] = spoken
    settings = {"mode": "cluster", "clusters": 5, "dilation": 1} | settings
    return coarse_compiled(
        padded, np.arange(frames)[None] < count, is_speech_query=np.array([talk]), has_speech=has_speech, **settings
    )


def fine(features, windows, *, frames=None, talk=False, spoken=None, **settings):
    """Stage 2 on one video with a frame every two seconds, padded to `frames` with the constant 7."""
    count = len(features)
    frames = frames or count
    padded = np.full((1, frames, features.shape[1]), 7.0, np.float32)
    padded[0, :count] = features
    times = 2 * np.arange(frames, dtype=np.float32)[None]
    seconds, valid = np.full((1, 3, 2), 4.0, np.float32), np.arange(3)[None] < len(windows)
    if windows:
        seconds[0, : len(windows)] = windows
    has_speech = np.ones((1, frames), bool) if spoken is not None else np.zeros((1, frames), bool)
    if spoken is not None:
        has_speech[0, :count] = spoken
    settings = {"clusters": 5, "dilation": 1, "filter_dilation": 0} | settings
    present = np.arange(frames)[None] < count
    return fine_compiled(
        padded, times, present, seconds, valid, is_speech_query=np.array([talk]), has_speech=has_speech, **settings
    )


class TestRecorded:
    """All recorded selections of the original."""

    @pytest.mark.release
    def test_stage_1(self, shared):
        recorded = json.loads((shared / "golden/05_keyframes_stage1.json").read_text())
        arrays = load_recording(shared, "05_keyframes_stage1")
        words = recorded["keyword_set"]

        def settings(case):
            # "event" is another name of "none" there.
            return case["t"], case["mode"].replace("event", "none"), case["num_clusters"], case["bias1"]

        num_plans = 0
        for (t, mode, clusters, bias), group in itertools.groupby(sorted(recorded["cases"], key=settings), settings):
            rows = [(case, i) for case in group for i in range(len(case["query"]))]
            intervals = [case["subtitle_durations"][i] for case, i in rows]
            plan = coarse_compiled(
                np.stack([arrays[case["embeds"].removesuffix("[:1]")][i].mean(1) for case, i in rows]),
                np.ones((len(rows), t), bool),
                mode=mode,
                clusters=clusters,
                dilation=bias,
                is_speech_query=np.array(
                    [talks(case["query"][i], words, intervals[r]) for r, (case, i) in enumerate(rows)]
                ),
                has_speech=np.stack(
                    [mark_speech_frames(intervals[r], case["durations"][i], t) for r, (case, i) in enumerate(rows)]
                ),
                behaviour="reference",
            )
            for r, (case, i) in enumerate(rows):
                assert chosen(plan, r) == (case["key_frame_idx"][i], case["non_key_frame_idx"][i]), (case["id"], i)
            num_plans += len(rows)
        assert num_plans == 400

    @pytest.mark.release
    def test_stage_2(self, shared):
        """With the recorded draws all plans are equal; cluster ids too where mutual neighbours do not tie (C > 4)."""
        recorded = json.loads((shared / "golden/06_keyframes_stage2.json").read_text())["cases"]
        arrays = load_recording(shared, "06_keyframes_stage2")
        words = json.loads((shared / "golden/05_keyframes_stage1.json").read_text())["keyword_set"]

        def settings(case):
            return case["feat"], case["num_clusters"], case["bias1"], case["bias2"]

        plans = stopped = tied = 0
        for (name, clusters, bias1, bias2), group in itertools.groupby(sorted(recorded, key=settings), settings):
            rows = [(case, i) for case in group for i in range(len(case["batch_sel"]))]
            t = rows[0][0]["t"]
            features = np.stack([arrays[name][case["batch_sel"][i]] for case, i in rows])
            features = features / np.linalg.norm(features, axis=-1, keepdims=True)
            windows = [json.loads(case["stage1_result"][i]) for case, i in rows]
            intervals = [case["subtitle_durations"][i] for case, i in rows]
            plan = fine_compiled(
                features.reshape(len(rows), t, -1),
                np.array([case["timestamps"][i] for case, i in rows], np.float32),
                np.ones((len(rows), t), bool),
                np.array([w + [[0, 0]] * (3 - len(w)) for w in windows], np.float32),
                np.array([[j < len(w) for j in range(3)] for w in windows]),
                clusters=clusters,
                dilation=bias1,
                filter_dilation=bias2,
                is_speech_query=np.array(
                    [talks(case["query"][i], words, intervals[r]) for r, (case, i) in enumerate(rows)]
                ),
                has_speech=np.stack(
                    [mark_speech_frames(intervals[r], case["duration"], t) for r, (case, i) in enumerate(rows)]
                ),
                behaviour="reference",
                draws=np.stack([as_draws([] if case["error"] else case["draws"][i], 32) for case, i in rows]),
            )
            errors = {}
            for r, (case, i) in enumerate(rows):
                errors.setdefault(id(case), (case, []))[1].append(bool(plan.reference_error[r]))
                if not case["error"]:
                    plans += 1
                    assert chosen(plan, r) == (case["key_frame_idx"][i], case["non_key_frame_idx"][i])
                    same = np.array_equal(plan.cluster[r], case["cluster"][0][i])
                    assert same or clusters <= 4
                    tied += not same
            for case, flags in errors.values():
                # The original stops the batch at the first such video.
                assert any(flags) == bool(case["error"])
                stopped += any(flags)
        print(f"{plans} plans equal; {tied} of them with cluster ids decided by ties; {stopped} batches stopped")
        assert (plans, stopped) == (len([1 for c in recorded if not c["error"] for _ in c["batch_sel"]]), 15)

    def test_compression(self, shared):
        for case in json.loads((shared / "golden/06_keyframes_stage2.json").read_text())["compress_mask"]:
            pad = 150 - len(case["key"])
            key, other = (np.pad(np.array(case[name], bool), (0, pad)) for name in ("key", "non_key"))
            got = compress_compiled(key, other, jnp.int32(case["target_count"]), as_draws(case["draws"], 64))
            assert [np.flatnonzero(m).tolist() for m in got] == [
                np.flatnonzero(case[name]).tolist() for name in ("key_out", "non_key_out")
            ]

    def test_dilation(self, shared):
        for case in json.loads((shared / "golden/05_keyframes_stage1.json").read_text())["two_side_bias_padding"]:
            # Some recorded masks hold other numbers than 0 and 1; the positive ones count as marked there.
            assert np.array_equal(dilate(jnp.array(case["mask"]) > 0, case["bias"]), np.array(case["out"]) > 0)


def talks(query, words, intervals):
    return bool(intervals) and any(word in query for word in words)


def as_draws(recorded, room):
    """Return recorded [kind, n, value] pairs, a pick among n and a coin, as uniform draws (room, 2) padded with NaN."""
    draws = np.full((room, 2), np.nan, np.float32)
    for row, (pick, toss) in enumerate(zip(recorded[::2], recorded[1::2], strict=True)):
        draws[row] = (pick[2] + 0.5) / pick[1], toss[2]
    return draws


@pytest.mark.parametrize(
    ("intervals", "duration", "expected"),
    [
        ([[0.0, 9.4], [23.5, 25.85]], 47, [0, 1, 2, 6]),
        ([[0.0, 2.5], [9.0, 16.0]], 12, [0, 1, 2, 9, 10, 11]),
        ([[3.2, 9.9]], 60, [0, 1]),
        ([[40.0, 60.0]], 47, [10, 11]),
        ([[50.0, 60.0]], 47, []),
        ([[-5.0, -3.0]], 47, []),
        ([], 47, []),
    ],
)
def test_spoken_frames(intervals, duration, expected):
    assert np.flatnonzero(mark_speech_frames(intervals, duration, 12)).tolist() == expected


@pytest.mark.parametrize("num_frames", [10, 20, 40, 60, 75, 120, 150])
def test_every_whole_second_falls_into_its_frame(num_frames):
    for duration in (*range(1, 200), 126, 150):
        for second in range(duration):
            frame = np.flatnonzero(mark_speech_frames([[second, second]], duration, num_frames))
            assert frame.tolist() == [second * num_frames // duration], (second, duration)


def test_spoken_frames_of_a_video_without_length():
    with pytest.raises(ValueError, match="duration: must be > 0 seconds, got 0"):
        mark_speech_frames([[0.0, 1.0]], 0, 12)


def test_borders():
    cluster = jnp.array([2, 2, 2, 0, 0, 1, 2, 2, -1, -1])
    assert np.array_equal(mark_cluster_borders(cluster, jnp.arange(10) < 8), marks("x.xxxxxx.."))
    assert np.array_equal(mark_cluster_borders(jnp.zeros(6, jnp.int32), jnp.arange(6) < 4), marks("x..x.."))
    assert not mark_cluster_borders(jnp.full(6, -1), jnp.zeros(6, bool)).any()


class TestCoarse:
    def test_cluster_mode_marks_where_scenes_change(self):
        assert chosen(coarse(scenes(25), dilation=0))[0] == [0, 4, 5, 9, 10, 14, 15, 19, 20, 24]
        plan = coarse(scenes(25), dilation=1)
        assert chosen(plan)[1] == [2, 7, 12, 17, 22]
        assert sorted(np.asarray(plan.cluster)[0, ::5].tolist()) == [0, 1, 2, 3, 4]

    def test_other_modes(self):
        news = np.eye(9, dtype=np.float32)[[0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3]] + 0.01
        # 12 // 3 = 4 pairs: the three changes, then, all others being equal, the first pair.
        assert chosen(coarse(news, mode="information", dilation=0))[0] == [0, 1, 2, 5, 6, 9, 10]
        assert chosen(coarse(news, mode="interval"))[0] == [1, 3, 5, 7, 9, 11]
        assert chosen(coarse(news, mode="none")) == ([], list(range(12)))

    def test_talk(self):
        video, spoken = scenes(15), marks("..xxx......x...")
        for behaviour in ("default", "reference"):
            assert chosen(coarse(video, talk=True, spoken=spoken, behaviour=behaviour))[0] == [2, 3, 4, 11]
        silent = chosen(coarse(video))
        assert chosen(coarse(video, spoken=spoken)) == silent
        # Captions past the end of the video.
        assert chosen(coarse(video, talk=True, spoken=spoken & False)) == silent
        assert chosen(coarse(video, talk=True, spoken=spoken & False, behaviour="reference"))[0] == []

    def test_fewer_frames_than_clusters(self):
        for count in (1, 2, 3, 4):
            assert chosen(coarse(scenes(count), frames=15, dilation=0)) == (list(range(count)), [])
        assert bool(coarse(scenes(4), frames=15, behaviour="reference").reference_error[0])
        assert not bool(coarse(scenes(5), frames=15, behaviour="reference").reference_error[0])
        assert not bool(coarse(scenes(4), frames=15).reference_error[0])

    @pytest.mark.parametrize("mode", ["cluster", "information", "interval", "none"])
    def test_padding_changes_nothing(self, mode):
        for talk in (False, True):
            spoken = marks("..xxx......x.")
            alone = coarse(scenes(13), mode=mode, talk=talk, spoken=spoken)
            padded = coarse(scenes(13), frames=17, mode=mode, talk=talk, spoken=spoken)
            assert chosen(padded) == chosen(alone)
            assert np.array_equal(padded.cluster[0, :13], alone.cluster[0])
            assert (padded.cluster[0, 13:] == -1).all()


class TestFine:
    VIDEO = scenes(25)  # five scenes of five frames; frame i is shown at 2 i seconds

    def kept(self, windows, **settings):
        return sorted(itertools.chain(*chosen(fine(self.VIDEO, windows, **settings))))

    @pytest.mark.slow
    def test_windows_elect_scenes(self):
        # 10 to 16 s are frames 5, 6 and 7 (the last, 8, is not in it): the second scene stays, nothing else.
        # Five frames for five clusters: each is one, so all are borders.
        assert chosen(fine(self.VIDEO, [[10, 16]], dilation=0)) == ([5, 6, 7, 8, 9], [])
        assert self.kept([[10, 16], [32, 36]]) == [5, 6, 7, 8, 9, 15, 16, 17, 18, 19]
        assert self.kept([[10, 16]], filter_dilation=1) == [4, 5, 6, 7, 8, 9, 10]

    def test_at_most_half_stays(self):
        assert len(self.kept([[0, 48]])) == 12
        assert len(self.kept([[0, 12], [30, 40]])) == 12
        assert len(chosen(fine(self.VIDEO[:7], [[0, 14]], frames=25))[0]) == 3

    def test_windows_that_no_frame_lies_in(self):
        expected = {
            "past the end": ([[50, 60]], [20, 21, 22, 23, 24]),
            "before the start": ([[-9, -5]], [0, 1, 2, 3, 4]),
            "between two frames": ([[22.9, 23.1]], [10, 11, 12, 13, 14]),
            "on one frame": ([[22, 22]], [10, 11, 12, 13, 14]),
            "turned round": ([[16, 10]], [5, 6, 7, 8, 9]),
        }
        for windows, frames in expected.values():
            assert self.kept(windows) == frames
            assert not fine(self.VIDEO, windows).reference_error.any()
        assert len(self.kept([])) == 12

    def test_windows_that_no_frame_lies_in_as_the_original(self):
        for windows in ([[50, 60]], [[-9, -5]], [[10, 16], [49, 60]]):
            assert bool(fine(self.VIDEO, windows, behaviour="reference").reference_error[0])
        for windows in ([[22.9, 23.1]], [[22, 22]], [[16, 10]], []):
            plan = fine(self.VIDEO, windows, behaviour="reference")
            assert not bool(plan.reference_error[0])
            assert chosen(plan) == ([], [])
        assert bool(fine(self.VIDEO[:3], [[0, 4]], frames=25, behaviour="reference").reference_error[0])

    def test_talk(self):
        spoken = marks("......xx" + 17 * ".")
        for behaviour in ("default", "reference"):
            plan = fine(self.VIDEO, [[10, 16]], talk=True, spoken=spoken, dilation=0, behaviour=behaviour)
            assert chosen(plan) == ([6, 7], [5, 8, 9])
            plan = fine(self.VIDEO, [[10, 16]], talk=True, spoken=spoken, dilation=1, behaviour=behaviour)
            assert chosen(plan) == ([5, 6, 7, 8], [9])
        elsewhere = marks(16 * "." + "xx" + 7 * ".")
        plan = fine(self.VIDEO, [[10, 16]], talk=True, spoken=elsewhere, behaviour="reference")
        assert chosen(plan) == ([], [5, 6, 7, 8, 9])
        assert chosen(fine(self.VIDEO, [[10, 16]], talk=True, spoken=elsewhere)) == chosen(fine(self.VIDEO, [[10, 16]]))

    @pytest.mark.parametrize("behaviour", ["default", "reference"])
    def test_padding_changes_nothing(self, behaviour):
        for windows in ([[10, 16]], [[0, 12], [30, 36]]):
            alone = fine(self.VIDEO[:18], windows, behaviour=behaviour)
            padded = fine(self.VIDEO[:18], windows, frames=27, behaviour=behaviour)
            assert chosen(padded) == chosen(alone)
            assert np.array_equal(padded.cluster[0, :18], alone.cluster[0])

    def test_a_short_video_keeps_a_frame(self):
        assert chosen(fine(self.VIDEO[:1], [[0, 2]], frames=25)) == ([0], [])
        assert chosen(fine(self.VIDEO[:1], [], frames=25)) == ([0], [])
        with pytest.raises(ValueError, match=r"frame_mask: must have T >= 2, .*, got 1"):
            fine(self.VIDEO[:1], [[0, 2]])

    def test_plans_do_not_depend_on_the_batch_and_compile_once(self):
        videos = np.stack([scenes(20, seed=s) for s in range(3)])
        windows = np.array([[[0, 12]], [[10, 30]], [[50, 60]]], np.float32)
        valid = np.ones((3, 1), bool)
        times = np.tile(2 * np.arange(20, dtype=np.float32), (3, 1))
        talk, spoken = np.array([True, False, True]), np.arange(60).reshape(3, 20) % 7 == 0
        compiled = jax.jit(lambda *a, **k: select_fine(*a, clusters=4, dilation=1, filter_dilation=1, **k))

        def run(order):
            picked = (a[order] for a in (videos, times, np.ones((3, 20), bool), windows, valid))
            return compiled(*picked, is_speech_query=talk[order], has_speech=spoken[order])

        batched = [chosen(run(np.arange(3)), i) for i in range(3)]
        for other in itertools.product(range(3), repeat=2):
            for i in range(3):
                assert chosen(run(np.array([i, *other]))) == batched[i]
        assert compiled._cache_size() == 1


class TestCompress:
    @staticmethod
    def run(key, other, target, draws=None):
        got = compress_compiled(marks(key), marks(other), jnp.int32(target), draws)
        return ["".join(".x"[int(x)] for x in mask) for mask in got]

    def test_what_fits_stays(self):
        assert self.run("xxx...x.", "...xx...", 6) == ["xxx...x.", "...xx..."]

    def test_long_runs_are_halved_the_longest_first(self):
        assert self.run("............", "xxx.xxxxx.xx", 8) == ["............", "xxx.x.x.x.xx"]
        # Of equally long runs the first; then, in turn, one of the key frames.
        assert self.run("........xxxx", "xxx.xxx.....", 9) == ["........xxxx", "x.x.xxx....."]
        assert self.run("........xxxx", "xxx.xxx.....", 8) == ["........x.x.", "x.x.xxx....."]

    def test_single_frames_are_spread_evenly(self):
        assert self.run(".........", "x.x.x.x.x", 4) == [".........", "x.x...x.x"]
        assert self.run("x.x.x.x.x", ".........", 3) == ["x...x...x", "........."]
        # Seven of ten are taken from the compressed, rounded up.
        assert self.run("x...x...x...", "..x...x...x.", 5) == ["x...x...x...", "..x.......x."]
        key, other = self.run("x..." * 20, "..x." * 20, 30)
        assert (key.count("x"), other.count("x")) == (17, 13)
        assert self.run("x...x...x...", "............", 0) == ["............"] * 2

    def test_never_more_and_after_the_halving_exactly_as_many(self):
        rng = np.random.default_rng(0)
        for _ in range(40):
            key = rng.random(24) < rng.random()
            other = ~key & (rng.random(24) < rng.random())
            target = int(rng.integers(0, 13))
            kept_key, kept_other = map(np.asarray, compress_compiled(key, other, jnp.int32(target)))
            assert not (kept_key & ~key).any()
            assert not (kept_other & ~other).any()
            total, left = (key | other).sum(), (kept_key | kept_other).sum()
            assert left == total if total <= target else left <= target
            singles = not (key[1:] & key[:-1]).any() and not (other[1:] & other[:-1]).any()
            assert left == min(total, target) or not singles

    def test_recorded_draws(self):
        # The original's draws and result; a pick is (index + 0.5) / number of frames left of that kind.
        draws = np.array([[0.5 / 4, 0.381], [1.5 / 2, 0.474]], np.float32)
        assert self.run("x...x", ".x.x.", 3, draws) == ["x...x", "...x."]
        draws = np.array([[0.9, 0.71], [0.9, 0.31], [0.9, 0.69], [0.9, 0.29]], np.float32)
        # The first round misses twice, the second hits twice: one frame less than the target.
        assert self.run("x...x", ".x.x.", 3, draws) == ["x....", ".x..."]

    def test_draws_that_run_out(self):
        never = np.ones((4, 2), np.float32)
        assert self.run("x.x.x", ".x.x.", 3, never) == self.run("x.x.x", ".x.x.", 3)

    def test_random_draws_suffice(self):
        draws = draw_removal_numbers(jax.random.key(0), 2, 12)
        assert draws.shape == (2, 48, 2)
        key, other = self.run("x.x.x.x.x.x.", ".x.x.x.x.x.x", 6, draws[0])
        assert key.count("x") + other.count("x") in (5, 6)
        assert self.run("x.x.x.x.x.x.", ".x.x.x.x.x.x", 6, draws[0]) == [key, other]

    def test_eight_clusters_are_elected(self):
        cluster = jnp.arange(20, dtype=jnp.int32) // 2
        # One vote for each of the first nine clusters; of equal votes the lower clusters win.
        votes = jnp.asarray((np.arange(20) % 2 == 0) & (np.arange(20) < 18))[None]
        elected = _frames_of_top_clusters(cluster, votes, clusters=10)
        assert np.flatnonzero(elected).tolist() == list(range(16))

    @pytest.mark.parametrize("behaviour", ["default", "reference"])
    def test_a_window_holds_its_first_frame_and_not_its_last(self, behaviour):
        times, frame_mask = 2.0 * jnp.arange(10, dtype=jnp.float32), jnp.arange(10) < 9
        windows = jnp.asarray([[4.0, 10.0], [3.0, 10.9]])
        frames, outside = _frames_in_windows(windows, times, frame_mask, behaviour=behaviour)
        assert [np.flatnonzero(row).tolist() for row in frames] == [[2, 3, 4], [2, 3, 4]]
        assert not outside.any()
