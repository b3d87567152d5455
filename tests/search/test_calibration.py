"""The threshold below which a query probably does not happen in a video."""

import numpy as np
import pytest

from calce_jax.errors import UserError
from calce_jax.input_pipeline.dataset import MomentDataset
from calce_jax.input_pipeline.example import Example
from calce_jax.search import measure_scores as module
from calce_jax.search.calibration import fit_calibration, read_calibration, write_calibration
from calce_jax.search.measure_scores import measure_scores
from calce_jax.search.paths import SearchError
from calce_jax.search.searcher import Searcher


def test_the_threshold_keeps_95_percent_of_what_happens():
    present = (np.arange(100) / 100).tolist()
    found = fit_calibration(present, [0.02, 0.04, 0.06, 0.5])
    assert found.threshold == pytest.approx(0.05)
    assert (found.kept, found.rejected, found.num_queries) == (0.95, 0.5, 104)
    # Of the 400 pairs: 97 + 95 + 93 + 49 have the higher score where it happens, and 4 are ties.
    assert found.auroc == pytest.approx((97 + 95 + 93 + 49 + 4 / 2) / 400)


def test_scores_that_are_all_equal_reject_nothing():
    found = fit_calibration([1.0] * 5, [1.0] * 5)
    assert (found.threshold, found.kept, found.rejected, found.auroc) == (1.0, 1.0, 0.0, 0.5)


@pytest.mark.parametrize(("present", "absent"), [([], [0.1]), ([0.1], [])])
def test_both_kinds_are_needed(present, absent):
    with pytest.raises(SearchError, match="two videos or more"):
        fit_calibration(present, absent)


def test_a_file_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "calibration.json"
    assert read_calibration(path) is None
    calibration = fit_calibration([0.5, 0.6], [0.1])
    write_calibration(path, calibration)
    assert read_calibration(path) == calibration


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"threshold": 0.5}',
        '{"threshold": 7.0, "kept": 1.0, "rejected": 1.0, "auroc": 1.0, "num_queries": 1}',
    ],
)
def test_a_damaged_file_is_named_with_a_remedy(tmp_path, text):
    path = tmp_path / "calibration.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"calibration.json: .*run `calce calibrate` again"):
        read_calibration(path)


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

    def scores(searcher, example, queries, captions):
        asked[example.query] = queries[1:]
        return [0.9, *[0.2] * len(queries[1:])]

    monkeypatch.setattr(module, "_best_scores", scores)
    present, absent = measure_scores(Searcher.__new__(Searcher), dataset, max_queries=10, seed=0)
    assert present == [0.9] * 5
    # About "a": not "the dog", an item of its own, nor "a cat", which is said there.
    assert asked["a dog"] == ["a bird"]
    assert asked["a cat"] == ["a bone"]
    assert len(absent) == sum(map(len, asked.values()))
    again = measure_scores(Searcher.__new__(Searcher), dataset, max_queries=2, seed=0)
    assert len(again[0]) == 2
