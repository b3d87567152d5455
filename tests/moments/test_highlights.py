"""QVHighlights' highlight metrics, against those that were released with the sample predictions."""

import json

import numpy as np
import pytest

from calce_jax.moments.annotations import Annotation, AnnotationError, read_annotations, write_annotations
from calce_jax.moments.metrics.evaluate import evaluate_files, evaluate_predictions
from calce_jax.moments.metrics.highlights import (
    HighlightCase,
    SaliencyError,
    highlight_scores,
    ranked_precision,
    rate_clips,
)
from calce_jax.moments.predictions import Prediction, PredictionError, read_predictions, write_predictions

ROW = {"qid": 1, "query": "A cat.", "vid": "a", "duration": 8, "relevant_windows": [[0, 4]]}


@pytest.mark.release
def test_the_sample_predictions_score_as_released(shared):
    folder = shared / "annotations/qvhighlights"
    released = json.loads((folder / "sample_val_preds_metrics_raw.json").read_text())
    evaluation = evaluate_files(folder / "sample_val_preds.jsonl", folder / "highlight_val_release.jsonl")
    assert evaluation.scores["official"]["highlights"] == {
        name: {"mAP": released[f"HL-min-{name}"]["HL-mAP"], "Hit1": released[f"HL-min-{name}"]["HL-Hit1"]}
        for name in ("Fair", "Good", "VeryGood")
    }


@pytest.mark.parametrize(
    ("salient", "saliency", "expected"),
    [
        ([1, 0, 1, 0], [0.9, 0.8, 0.7, 0.6], (1 + 2 / 3) / 2),
        ([0, 1, 1, 0], [0.9, 0.8, 0.7, 0.6], 2 / 3),  # precision 1/2, then 2/3, which the first recall gets too
        ([1, 0], [1.0, 1.0], 1 / 2),  # one rank
        ([1, 1, 0], [1.0, 1.0, 0.0], 1.0),  # one rank raises the recall to 1
        ([0, 0], [1.0, 0.0], 0.0),
        ([0, 1], [-2.0, -1.0], 1.0),
    ],
)
def test_precision_of_ranked_clips(salient, saliency, expected):
    # Another annotator, who finds nothing salient, has no effect.
    annotators = np.stack([np.array(salient, bool), np.zeros(len(salient), bool)], axis=1)
    np.testing.assert_allclose(ranked_precision(annotators, np.array(saliency)), [expected, 0.0])


def test_the_best_clip_hits_if_any_annotator_rates_it_high_enough():
    ratings = np.array([[0, 0, 0], [2, 3, 0], [4, 4, 4.0]])
    cases = [
        HighlightCase(1, np.array([0.1, 0.9, 0.2]), ratings),
        HighlightCase(2, np.array([]), ratings),  # without a prediction: a miss
    ]
    scores = highlight_scores(cases)
    assert [scores[name]["Hit1"] for name in ("Fair", "Good", "VeryGood")] == [50.0, 50.0, 0.0]
    # Of the first query, annotator by annotator: 1, 1 and 1/2 at least Fair.
    assert scores["Fair"]["mAP"] == pytest.approx(100 * (1 + 1 + 1 / 2) / 3 / 2, abs=0.01)


def test_a_prediction_may_lack_the_last_clip_and_no_other():
    ratings = rate_clips(8.0, {1: [3, 3, 3]})
    assert ratings.tolist() == [[0, 0, 0], [3, 3, 3], [0, 0, 0], [0, 0, 0]]
    assert highlight_scores([HighlightCase(1, np.array([0.0, 1.0, 0.0]), ratings)])["Good"]["mAP"] == 100.0
    for length in (2, 5):
        with pytest.raises(SaliencyError, match=rf"^query 1, pred_saliency_scores: {length} scores, .* 4 clips of 2 s"):
            highlight_scores([HighlightCase(1, np.zeros(length), ratings)])
    with pytest.raises(SaliencyError, match="relevant_clip_ids: 4 is not one of the 4 clips of a video of 8 s"):
        rate_clips(8.0, {4: [1, 1, 1]})


def test_saliency_for_some_queries_alone_is_refused():
    ratings = {0: [4, 4, 4]}
    rows = [Annotation(qid, "a", "A cat.", [], 8, [[0, 4]], clip_ratings=ratings) for qid in (1, 2, 3)]
    given = [Prediction(1, "A cat.", "a", [[0, 4, 1.0]], saliency=[1, 0, 0, 0]), Prediction(2, "A cat.", "a", [])]
    with pytest.raises(SaliencyError, match="1 of 2 predictions have none, such as that of query 2; give them for all"):
        evaluate_predictions(given, rows)
    # A query without a prediction is a miss; one without ratings is not scored.
    scores = evaluate_predictions(given[:1], [*rows[:2], Annotation(4, "a", "A cat.", [], 8, [[0, 4]])]).scores
    assert scores["official"]["highlights"]["Fair"] == {"mAP": 50.0, "Hit1": 50.0}
    assert "highlights" not in evaluate_predictions(given[1:], rows).scores["official"]


def test_ratings_and_saliency_are_written_and_read(tmp_path):
    rows = [Annotation(1, "a", "A cat.", [], 8, [[0, 4]], clip_ratings={0: [4, 3, 2], 1: [1, 1, 1]})]
    write_annotations(tmp_path / "rows.jsonl", rows)
    assert read_annotations(tmp_path / "rows.jsonl") == rows
    predictions = [Prediction(1, "A cat.", "a", [[0, 4, 1.0]], saliency=[0.5, -1.0, 2, 3])]
    write_predictions(tmp_path / "predictions.jsonl", predictions)
    assert read_predictions(tmp_path / "predictions.jsonl") == predictions


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"relevant_clip_ids": [0.5], "saliency_scores": [[1]]}, "relevant_clip_ids: expected the numbers of clips"),
        ({"relevant_clip_ids": [0, 0], "saliency_scores": [[1], [1]]}, "relevant_clip_ids: a clip repeats"),
        ({"relevant_clip_ids": [0, 1], "saliency_scores": [[1]]}, "expected a list of ratings for each of 2 clips"),
        ({"relevant_clip_ids": [0, 1], "saliency_scores": [[1], [1, 2]]}, "for each of 2 clips"),
    ],
)
def test_wrong_ratings_are_named(tmp_path, fields, message):
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW | fields))
    with pytest.raises(AnnotationError, match=f"rows.jsonl, line 1, .*{message}"):
        read_annotations(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("saliency", [[], ["a"], 3, [True]])
def test_wrong_saliency_is_named(tmp_path, saliency):
    row = {"qid": 1, "query": "A cat.", "vid": "a", "pred_relevant_windows": [], "pred_saliency_scores": saliency}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(PredictionError, match=r"rows.jsonl, line 1: pred_saliency_scores: expected a number for each"):
        read_predictions(tmp_path / "rows.jsonl")
