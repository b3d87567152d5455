"""Metrics: the original's recorded scores, the official scorer's, and cases computed by hand."""

import json

import numpy as np
import pytest

from calce_jax.moments.metrics import EvalCase, evaluate_cases, format_table
from calce_jax.moments.metrics.average_precision import average_precision
from calce_jax.moments.metrics.protocols import official_scores, reference_scores

FILES = {
    "qvh_val_stage1": "qvh/val_stage2.json",
    "charades_test_stage1": "charades/test_stage2.json",
    "qvh_train_stage1": "qvh/train_stage2.json",
    "charades_train_stage1": "charades/train_stage2.json",
}


def read_cases(path):
    return [EvalCase(row["qid"], row["stage1_result"], row["relevant_windows"]) for row in json.loads(path.read_text())]


def as_recorded(result):
    """Return a result under the original's names; mIoU within one unit in the last place (CPUs differ)."""
    detail = {**result["detail"], "mIoU": pytest.approx(result["detail"]["mIoU"], rel=2.3e-16, abs=0)}
    return {**detail, "R1-avg": result["R1_avg"], "invalid_pred_num": result["invalid"]}


@pytest.mark.parametrize("name", FILES)
def test_published_predictions_score_as_recorded(shared, name):
    recorded = json.loads((shared / "golden/10_metrics_annotations.json").read_text())[name]
    result = reference_scores(read_cases(shared / "annotations/calce" / FILES[name]), behaviour="reference")
    assert as_recorded(result) == recorded["mr"]["full"]
    assert result["mAP@0.75"] == recorded["brief"]["MR-full-mAP@0.75"]


def test_synthetic_cases_score_as_recorded(shared):
    recorded = json.loads((shared / "golden/10_metrics_synthetic.json").read_text())
    assert len(recorded) == 35
    for record in recorded:
        cases = [
            EvalCase(row["qid"], row["pred_relevant_windows"], row["relevant_windows"]) for row in record["submission"]
        ]
        if record["error"]:
            with pytest.raises(TypeError, match="no predicted window"):
                reference_scores(cases, behaviour="reference")
        else:
            assert as_recorded(reference_scores(cases, behaviour="reference")) == record["result"]["full"], record[
                "name"
            ]


def rounded(result):
    ranges = {"full": result["detail"], **result["detail"]["ranges"]}
    return {name: {"MR-mAP": scores["mAP"], "MR-R1": scores["R1"]} for name, scores in ranges.items()}


@pytest.mark.release
def test_official_sample_scores_as_shipped(shared):
    folder = shared / "annotations/qvhighlights"
    rows = [json.loads(line) for line in (folder / "sample_val_preds.jsonl").read_text().splitlines()]
    truth = [json.loads(line) for line in (folder / "highlight_val_release.jsonl").read_text().splitlines()]
    truth = {row["qid"]: row["relevant_windows"] for row in truth}
    shipped = json.loads((folder / "sample_val_preds_metrics_raw.json").read_text())
    result = official_scores([EvalCase(row["qid"], row["pred_relevant_windows"], truth[row["qid"]]) for row in rows])
    scores = rounded(result)
    assert scores == {name: shipped[name] for name in scores}
    brief = {name.removeprefix("MR-full-"): value for name, value in shipped["brief"].items() if "MR-full" in name}
    assert {key: result[key] for key in brief} == brief


def test_official_scores_of_published_predictions(shared):
    recorded = json.loads((shared / "golden/10_metrics_standalone.json").read_text())["stage1_result_score1"]
    result = official_scores(read_cases(shared / "annotations/calce/qvh/val_stage2.json"), behaviour="reference")
    assert rounded(result) == recorded


def test_no_prediction_is_a_miss():
    results = evaluate_cases([EvalCase("a", [], [[0, 10]], malformed=True), EvalCase("b", [[0, 10, 0.5]], [[0, 10]])])
    for scores in results.values():
        assert (scores["R1@0.5"], scores["mIoU"], scores["mAP"]) == (50, 50, 50)
        assert (scores["queries"], scores["malformed"], scores["invalid"]) == (2, 1, 0)


def test_windows_without_length_do_not_meet_by_default():
    assert reference_scores([EvalCase("a", [[5, 5]], [[5, 5]])])["mAP"] == 0


def test_scores_decide_only_the_official_precision():
    cases = [EvalCase("a", [[50, 60, 0.1], [0, 10, 0.9]], [[0, 10]])]
    assert reference_scores(cases)["mAP"] == 50
    assert official_scores(cases)["mAP"] == 100
    assert official_scores(cases)["R1@0.5"] == 0


def test_official_scores_ten_windows():
    windows = [[100 + second, 101 + second] for second in range(10)]
    cases = [EvalCase("a", [*windows, [0, 10]], [[0, 10]])]
    assert official_scores(cases)["mAP"] == 0
    assert reference_scores(cases)["mAP"] == 9.09


def test_ranges_keep_only_their_true_windows():
    ranges = official_scores([EvalCase("a", [[0, 40], [50, 55]], [[0, 40], [50, 55]])])["detail"]["ranges"]
    assert ranges["middle"] is None
    assert (ranges["short"]["R1"]["0.5"], ranges["short"]["mAP"]["average"]) == (0, 50)
    assert (ranges["long"]["R1"]["0.5"], ranges["long"]["mAP"]["average"]) == (100, 100)


@pytest.mark.parametrize(("end", "threshold"), [(5, "0.5"), (7, "0.7"), (9, "0.9")])
def test_an_overlap_of_exactly_a_threshold_is_a_hit(end, threshold):
    for scores in evaluate_cases([EvalCase("a", [[0, end]], [[0, 10]])]).values():
        assert (scores["detail"]["R1"][threshold], scores["detail"]["mAP"][threshold]) == (100, 100)
        above = f"{float(threshold) + 0.05:.2f}"
        assert (scores["detail"]["R1"][above], scores["detail"]["mAP"][above]) == (0, 0)


@pytest.mark.parametrize(
    ("length", "name"), [(0, None), (1, "short"), (10, "short"), (11, "middle"), (30, "middle"), (31, "long")]
)
def test_edges_of_the_ranges_of_lengths(length, name):
    ranges = official_scores([EvalCase("a", [[0, 5]], [[0, length]])])["detail"]["ranges"]
    assert [key for key, scores in ranges.items() if scores is not None] == ([name] if name else [])


def test_precision_is_interpolated():
    # A hit, a miss, a hit; three true windows: recall rises to 1/3 at precision 1, to 2/3 at 2/3.
    precision = average_precision([[[0, 1], [50, 51], [2, 3]]], [[[0, 1], [2, 3], [4, 5]]])
    np.testing.assert_allclose(precision, np.full((1, 10), (1 + 2 / 3) / 3), rtol=1e-15)


def test_nothing_to_score_says_so():
    with pytest.raises(ValueError, match="no query to score"):
        evaluate_cases([])


def test_table_lines_up():
    lines = format_table(evaluate_cases([EvalCase("a", [[0, 10]], [[0, 10]])])).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split() == ["reference", *["100.00"] * 8]
