"""The threshold below which a query probably does not happen in a video."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from calce_jax.errors import UserError
from calce_jax.input_pipeline.dataset import MomentDataset
from calce_jax.input_pipeline.example import Example
from calce_jax.search import measure_scores as module
from calce_jax.search.calibration import Calibration, read_calibration, write_calibration
from calce_jax.search.fit_calibration import fit_calibration, fit_curve
from calce_jax.search.measure_scores import MeasuredScores, measure_scores
from calce_jax.search.paths import SearchError
from calce_jax.search.ranking import ScoredWindow
from calce_jax.search.searcher import Searcher
from tests.helpers.commands import run_script

COUNTS = {"threshold": 0.5, "kept": 1.0, "rejected": 1.0, "auroc": 1.0, "num_queries": 1}


def test_the_threshold_keeps_95_percent_of_what_happens():
    present = (np.arange(100) / 100).tolist()
    found = fit_calibration(present, [0.02, 0.04, 0.06, 0.5], [True] * 100)
    assert found.threshold == pytest.approx(0.05)
    assert (found.kept, found.rejected, found.num_queries) == (0.95, 0.5, 104)
    # Of the 400 pairs: 97 + 95 + 93 + 49 have the higher score where it happens, and 4 are ties.
    assert found.auroc == pytest.approx((97 + 95 + 93 + 49 + 4 / 2) / 400)


def test_the_curve_rises_and_joins_what_falls():
    # Sorted by score: wrong, right, wrong, right, right. The second and third would fall: half of both is right.
    scores, probabilities = fit_curve([0.9, 0.1, 0.3, 0.5, 0.7], [True, False, True, False, True])
    assert scores == [0.1, 0.4, 0.8]
    assert probabilities == [0.0, 0.5, 1.0]


def test_answers_of_one_score_are_one_point():
    assert fit_curve([0.5] * 4 + [0.2], [True, True, True, False, False]) == ([0.2, 0.5], [0.0, 0.75])


def test_a_probability_is_read_between_the_points_and_is_that_of_the_last_beyond():
    calibration = fit_calibration([0.4, 0.6], [0.2], [False, True])
    assert calibration.scores == [0.3, 0.6]
    assert [calibration.probability(score) for score in (0.0, 0.3, 0.45, 0.6, 1.0)] == [0.0, 0.0, 0.5, 1.0, 1.0]
    earlier = replace(calibration, scores=[], probabilities=[])
    assert earlier.probability(0.5) is None


def test_probabilities_of_held_out_answers_are_how_often_they_are_right():
    rng = np.random.default_rng(0)
    scores = rng.random((2, 4000))
    is_right = rng.random((2, 4000)) < scores**3  # 0.8 is right in half of the cases
    curve = fit_curve(scores[0].tolist(), is_right[0].tolist())
    given = np.interp(scores[1], *curve)
    for low in np.arange(0, 1, 0.2):
        of_bin = (low <= given) & (given < low + 0.2)
        # Three standard errors of a share of the answers in the bin, and the noise of the curve.
        assert abs(is_right[1][of_bin].mean() - given[of_bin].mean()) < 3 * 0.5 / of_bin.sum() ** 0.5 + 0.02


def test_scores_that_are_all_equal_reject_nothing():
    found = fit_calibration([1.0] * 5, [1.0] * 5, [True] * 5)
    assert (found.threshold, found.kept, found.rejected, found.auroc) == (1.0, 1.0, 0.0, 0.5)


@pytest.mark.parametrize(("present", "absent"), [([], [0.1]), ([0.1], [])])
def test_both_kinds_are_needed(present, absent):
    with pytest.raises(SearchError, match="two videos or more"):
        fit_calibration(present, absent, [True] * len(present))


def test_a_file_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "calibration.json"
    assert read_calibration(path) is None
    calibration = fit_calibration([0.5, 0.6], [0.1], [False, True])
    write_calibration(path, calibration)
    assert read_calibration(path) == calibration


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        pytest.param("[" * 100_000, id="nested"),
        '{"threshold": 0.5}',
        '{"threshold": 7.0, "kept": 1.0, "rejected": 1.0, "auroc": 1.0, "num_queries": 1}',
        '{"threshold": 0.5, "kept": 1.0, "rejected": 1.0, "auroc": 1.0, "num_queries": 1, "scores": [0.5]}',
        json.dumps({**COUNTS, "scores": [0.5, 0.4], "probabilities": [0.1, 0.2]}),
        json.dumps({**COUNTS, "scores": [0.4, 0.5], "probabilities": [0.1, 1.2]}),
    ],
)
def test_a_damaged_file_is_named_with_a_remedy(tmp_path, text):
    path = tmp_path / "calibration.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"calibration.json: .*run `calce calibrate` again"):
        read_calibration(path)


def test_a_damaged_file_is_calibrated_anew(tmp_path, monkeypatch):
    class Uncalibrated:
        def __init__(self, stages, cache):
            run = SimpleNamespace(config=SimpleNamespace(data=SimpleNamespace(directory="", eval_split="val")))
            self.predictors = {"stage 2": SimpleNamespace(model=run)}

    for stage in ("stage1", "stage2"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "config.json").write_text("{}")
    path = tmp_path / "calibration.json"
    path.write_text("{")
    monkeypatch.setattr("calce_jax.search.load_searcher.open_stages", lambda checkpoint: [])
    monkeypatch.setattr("calce_jax.search.searcher.Searcher", Uncalibrated)
    monkeypatch.setattr("calce_jax.input_pipeline.dataset.open_dataset", lambda *_: None)
    monkeypatch.setattr(module, "measure_scores", lambda *_, **__: MeasuredScores([0.5], [True], [0.1]))
    run_script("calibrate", f"--checkpoint={tmp_path}")
    assert read_calibration(path).num_queries == 2


def test_a_file_of_an_earlier_version_has_no_curve(tmp_path):
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(COUNTS))
    assert read_calibration(path) == Calibration(**COUNTS)


def example(video, query, items, captions=()):
    return Example(
        qid=f"{video} {query}",
        video=video,
        video_row=0,
        query=query,
        items=items,
        duration=1.0,
        windows=np.array([[0.0, 1.0]]),
        stage1_windows=None,
        kind=None,
        keyframes=[],
        indices=np.zeros(0),
        times=np.zeros(0),
        total_frames=1,
        fps=1.0,
        captions=[(0.0, 1.0, text) for text in captions],
    )


class Examples(MomentDataset):
    def __init__(self, examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index]

    def queries(self):
        return iter(self.examples)


def test_a_query_about_another_video_shares_nothing_with_it(monkeypatch):
    dataset = Examples(
        [
            example("a", "a dog", ["dog"], ["we see the cat"]),
            example("a", "a bone", ["bone"]),
            example("b", "a cat", ["cat"]),
            example("b", "the dog", ["dog"]),
            example("b", "a bird", ["bird"]),
        ]
    )
    asked = {}

    def moments(searcher, example, queries, captions):
        asked[example.query] = queries[1:]
        found = {"a dog": ScoredWindow(0.0, 0.5, 0.9), "a bone": ScoredWindow(0.6, 1.0, 0.9), "a cat": None}
        own = found.get(example.query, ScoredWindow(0.0, 1.0, 0.9))
        return [own, *[ScoredWindow(0.0, 1.0, 0.2)] * len(queries[1:])]

    monkeypatch.setattr(module, "_best_moments", moments)
    measured = measure_scores(Searcher.__new__(Searcher), dataset, max_queries=10, seed=0)
    assert sorted(measured.present) == [0.0, 0.9, 0.9, 0.9, 0.9]
    # The truth is from 0 to 1 s: half of it is right, less is not, and nothing is not.
    assert sorted(measured.is_right) == [False, False, True, True, True]
    assert set(measured.absent) == {0.2}
    # About "a": not "the dog", an item of its own, nor "a cat", which is said there.
    assert asked["a dog"] == ["a bird"]
    assert asked["a cat"] == ["a bone"]
    assert len(measured.absent) == sum(map(len, asked.values()))
    again = measure_scores(Searcher.__new__(Searcher), dataset, max_queries=2, seed=0)
    assert len(again.present) == 2
