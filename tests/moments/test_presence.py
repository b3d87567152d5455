"""Scores of absent queries, on cases computed by hand, and in `calce evaluate`."""

import itertools
import json
import math

import numpy as np
import pytest

from calce_jax.moments.annotations import Annotation
from calce_jax.moments.metrics.evaluate import evaluate_predictions
from calce_jax.moments.metrics.presence import (
    PresenceCase,
    auroc,
    keeping_threshold,
    presence_case,
    presence_scores,
)
from calce_jax.moments.predictions import Prediction
from tests.helpers.commands import run_script


@pytest.mark.parametrize(
    ("present", "absent", "expected"),
    [
        ([0.9, 0.8], [0.1, 0.2], 1.0),
        ([0.1], [0.2], 0.0),
        ([0.5], [0.5], 0.5),
        # Of six pairs: 0.9 beats three, 0.5 beats 0.1 and ties with 0.5.
        ([0.9, 0.5], [0.1, 0.5, 0.7], (3 + 1.5) / 6),
        ([-math.inf, 0.3], [-math.inf, 0.1], (0.5 + 2) / 4),
        ([1.0], [math.inf], 0.0),
    ],
)
def test_auroc_is_the_share_of_pairs_in_order(present, absent, expected):
    assert auroc(present, absent) == pytest.approx(expected, abs=1e-15)


def test_auroc_counts_all_pairs():
    rng = np.random.default_rng(3)
    present, absent = rng.integers(0, 6, 40).astype(float), rng.integers(0, 5, 30).astype(float)
    pairs = [(a > b) + (a == b) / 2 for a, b in itertools.product(present, absent)]
    assert auroc(list(present), list(absent)) == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize(("number", "expected"), [(1, 0), (19, 0), (20, 1), (40, 2), (59, 2)])
def test_the_threshold_rejects_at_most_a_twentieth(number, expected):
    scores = [float(n) for n in range(number)]
    assert keeping_threshold(scores[::-1]) == expected


def answer(qid, windows, support=None):
    return Prediction(qid, "A cat.", "a", windows, support=support)


def test_the_score_of_an_answer_is_that_of_its_best_window():
    case = presence_case(answer(1, [[0, 9, 0.4], [20, 30, 0.7]]), is_present=True)
    assert case == PresenceCase(True, 0.7, True)
    assert presence_case(answer(1, [[0, 9, 1.0], [20, 30, 0.9]], [0.2, 0.3]), is_present=True).score == 0.3
    # Neither the submission's stand-in for no window nor the original's mark of an unreadable answer is a window.
    for windows in ([], [[0, 0, 0.5]], [[-1, -1, 1.0]]):
        assert presence_case(answer(1, windows), is_present=False) == PresenceCase(False, -math.inf, False)


def test_an_answer_without_a_window_has_the_score_of_the_other_beams():
    prediction = Prediction(1, "A cat.", "a", [], presence=0.3)
    assert presence_case(prediction, is_present=False) == PresenceCase(False, 0.3, has_window=False)
    assert presence_case(prediction, is_present=True) == PresenceCase(True, 0.3, has_window=False)
    # Files with windows do not have the field; a window counts for more.
    both = Prediction(1, "A cat.", "a", [[0, 9, 0.2]], presence=0.3)
    assert presence_case(both, is_present=True) == PresenceCase(True, 0.2, has_window=True)


def test_a_query_without_a_prediction_is_wrong():
    assert presence_case(None, is_present=True) == PresenceCase(True, -math.inf, False)
    assert presence_case(None, is_present=False) == PresenceCase(False, math.inf, True)


def cases(present, absent):
    return [
        PresenceCase(is_present, score, score > -math.inf)
        for is_present, scores in ((True, present), (False, absent))
        for score in scores
    ]


def test_scores_by_hand():
    # Of 20 present queries one may be rejected: the threshold is the second lowest score.
    present = [0.2, 0.4, *[0.9] * 17, -math.inf]
    scores = presence_scores(cases(present, [0.1, 0.2, -math.inf, 0.95]))
    assert scores == {
        "AUROC": 71.25,  # 57 of 80 pairs: 17 * 3 (0.9), 3 (0.4), 2 + 1/2 (0.2), 1/2 (none)
        "rejected@5%": 50.0,  # 0.1 and none; 0.2 is the threshold, and stays
        "threshold@5%": 0.2,
        "answered_none": 25.0,
        "present_answered_none": 5.0,
        "present": 20,
        "absent": 4,
    }


def test_one_kind_alone_has_no_comparison():
    assert presence_scores(cases([], [0.1, -math.inf])) == {
        "AUROC": None,
        "rejected@5%": None,
        "threshold@5%": None,
        "answered_none": 50.0,
        "present_answered_none": None,
        "present": 0,
        "absent": 2,
    }
    rejecting_all = presence_scores(cases([-math.inf], [-math.inf]))
    assert (rejecting_all["AUROC"], rejecting_all["rejected@5%"], rejecting_all["threshold@5%"]) == (50.0, 0.0, None)


def row(qid, windows):
    return Annotation(qid, "a", "A cat.", [], 30, windows)


def test_absent_queries_change_no_other_score():
    present = [row(1, [[0, 10]]), row(2, [[20, 30]])]
    predictions = [answer(1, [[0, 10, 0.8]]), answer(2, [[0, 5, 0.6]]), answer(3, [[0, 1, 0.7]]), answer(4, [])]
    both = evaluate_predictions(predictions, [*present, row(3, []), row(4, []), row(5, None)])
    alone = evaluate_predictions(predictions[:2], present)
    assert "presence" not in alone.scores
    for name in ("reference", "official"):
        assert both.scores[name] == alone.scores[name] | {"unanswered": 1}
    assert (both.pairing.absent, both.pairing.missing_truth) == ([3, 4], [5])
    scores = both.scores["presence"]
    assert (scores["AUROC"], scores["rejected@5%"], scores["answered_none"]) == (75.0, 50.0, 50.0)


def test_another_order_of_windows_changes_no_score_of_presence():
    # "longest" gives new scores, from 1 downwards: the answer would seem certain.
    predictions = [answer(1, [[0, 10, 0.8]]), answer(2, [[0, 5, 0.3], [8, 30, 0.2]])]
    rows = [row(1, [[0, 10]]), row(2, [])]
    for order in ("given", "longest", "score"):
        assert evaluate_predictions(predictions, rows, order).scores["presence"]["AUROC"] == 100.0


def test_the_command_prints_and_writes_them(tmp_path, capsys):
    rows = [{"qid": n, "query": "A cat.", "vid": "a", "duration": 30} for n in (1, 2)]
    windows = [[[0, 10]], []]
    for name, field in (("annotations", "relevant_windows"), ("predictions", "pred_relevant_windows")):
        lines = (json.dumps(r | {field: w}) + "\n" for r, w in zip(rows, windows, strict=True))
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    files = [f"--{name}={tmp_path}/{name}.jsonl" for name in ("predictions", "annotations")]
    run_script("evaluate", *files, f"--out={tmp_path}/scores.json")
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2].split() == ["AUROC", "rejected@5%", "answered", "[]", "present", "[]"]
    assert printed[-1].split() == ["1", "absent,", "1", "present", "100.00", "100.00", "100.00", "0.00"]
    assert len(printed[-1]) == len(printed[-2])
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert set(scores) == {"reference", "official", "presence"}
    # Absent queries alone: no R1.
    (tmp_path / "annotations.jsonl").write_text(json.dumps(rows[1] | {"relevant_windows": []}) + "\n")
    run_script("evaluate", *files, f"--out={tmp_path}/scores.json")
    assert "1 absent, 0 present" in capsys.readouterr().out
    assert list(json.loads((tmp_path / "scores.json").read_text())) == ["presence"]
