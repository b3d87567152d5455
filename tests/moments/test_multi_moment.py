"""QV-M2's metrics on cases computed by hand from the released scorer's definitions, and TimeLens-Bench's."""

import numpy as np
import pytest

from calce_jax.moments.annotations import Annotation
from calce_jax.moments.metrics import EvalCase
from calce_jax.moments.metrics.evaluate import evaluate_predictions
from calce_jax.moments.metrics.multi_moment import (
    COLUMNS,
    RECALL_THRESHOLDS,
    format_multi_moment,
    match_in_order,
    multi_moment_scores,
)
from calce_jax.moments.metrics.protocols import reference_scores
from calce_jax.moments.predictions import Prediction

THREE = [[0, 10], [20, 30], [40, 50]]


def scores(*pairs, behaviour="default"):
    return multi_moment_scores([EvalCase(n, *pair) for n, pair in enumerate(pairs)], behaviour)


def test_all_moments_found():
    result = scores((THREE, THREE))
    assert {name: result[name] for name in COLUMNS} == {
        **dict.fromkeys(COLUMNS, 100.0),
        "mAP@1": None,
        "mAP@2": None,
    }
    assert result["queries"] == {"1": 0, "2": 0, "3+": 1}
    assert len(RECALL_THRESHOLDS) == 14
    assert list(result["detail"]["R@3"]) == [str(round(0.3 + 0.05 * n, 2)) for n in range(14)]


def test_precision_by_the_number_of_moments():
    one, two, three, four = (THREE[:1], THREE[:1]), (THREE[:1], THREE[:2]), (THREE[:1], THREE), ([], [*THREE, [60, 70]])
    result = scores(one, two, two, three, three, three, four)
    # AP 1, 1/2, 1/2, three times 1/3, 0.
    assert result["G-mAP"] == round(100 * 3 / 7, 2)
    assert (result["mAP@1"], result["mAP@2"]) == (100.0, 50.0)
    # Queries with three moments and those with four weigh the same.
    assert result["mAP@3+"] == round(100 * (1 / 3 + 0) / 2, 2)
    assert result["queries"] == {"1": 1, "2": 2, "3+": 4}


def test_recall_counts_the_moments_among_the_first_windows():
    # Against the moments in order: IoU 1, then 0.5 and 0, and a fourth window that is too late to count.
    result = scores(([[0, 10], [20, 25], [90, 95], [40, 50]], THREE))
    assert result["mR@1"] == 100.0
    assert result["detail"]["R@2"] == {str(t): 100.0 if t <= 0.5 else 50.0 for t in RECALL_THRESHOLDS}
    assert result["mR@2"] == round((5 * 100 + 9 * 50) / 14, 2)
    assert result["detail"]["R@3"]["0.5"] == 66.67
    assert (result["mIoU@1"], result["mIoU@2"], result["mIoU@3"]) == (100.0, 75.0, 50.0)


def test_a_true_window_is_matched_once():
    ious = np.array([[0.6, 0.8], [0.5, 0.9], [0.4, 0.4]])
    assert match_in_order(ious, 0.0) == [0.8, 0.5]
    assert match_in_order(ious, 0.55) == [0.8]
    assert match_in_order(np.array([[0.5, 0.5], [0.7, 0.1]]), 0.5) == [0.5]  # the first of equals is taken


def test_windows_that_are_missing_are_not_found():
    short = ([[0, 10]], THREE[:2])
    result = scores(short, (THREE[:2], THREE[:2]))
    assert (result["mR@1"], result["mR@2"], result["mIoU@2"], result["mR@3"]) == (100.0, 75.0, 75.0, None)
    released = scores(short, (THREE[:2], THREE[:2]), ([], THREE[:2]), behaviour="reference")
    assert (released["mR@2"], released["mIoU@2"], released["queries"]["2"]) == (100.0, 100.0, 2)


def test_precision_is_of_ten_windows_by_score_and_recall_of_the_first():
    windows = [[100, 110, 0.1], [0, 10, 0.9]]
    result = scores((windows, THREE[:2]))
    assert result["mAP@2"] == 50.0
    assert (result["mR@1"], result["mR@2"]) == (0.0, 50.0)


def test_they_are_reported_where_queries_have_several_moments():
    def evaluate(windows):
        rows = [Annotation(1, "a", "A cat.", [], 60, windows)]
        return evaluate_predictions([Prediction(1, "A cat.", "a", [[0, 10, 1.0]])], rows).scores

    assert "multi_moment" not in evaluate(THREE[:1])
    result = evaluate(THREE[:2])["multi_moment"]
    assert (result["G-mAP"], result["mR@2"]) == (50.0, 50.0)
    heading, line = format_multi_moment(result).splitlines()
    assert len(heading) == len(line)
    assert line.split()[2:] == ["50.00", "-", "50.00", "-", "100.00", "50.00", "-", "100.00", "50.00", "-"]


@pytest.mark.parametrize(
    ("predicted", "iou"),
    [
        ([[0, 30]], 0.3),  # of [0, 100]: at the threshold is a hit
        ([[0, 29]], 0.29),
        ([[70, 130]], 30 / 130),
        ([[0, 100], [5, 6]], 1.0),  # the first answer alone counts
        ([[110, 120]], 0.0),
        ([], 0.0),
    ],
)
def test_timelens_bench(predicted, iou):
    """R1 at 0.3, 0.5 and 0.7 and mIoU of the first window, intersection over hull; no window has 0."""
    result = reference_scores([EvalCase("a", predicted, [[0, 100]])])
    assert result["mIoU"] == round(100 * iou, 2)
    assert [result[f"R1@{threshold}"] for threshold in (0.3, 0.5, 0.7)] == [100.0 * (iou >= t) for t in (0.3, 0.5, 0.7)]
