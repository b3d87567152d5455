"""Predictions: round trips, every format, and faults reported together."""

import json
import math
import zipfile

import pytest

from calce_jax.moments.predictions import (
    Prediction,
    PredictionError,
    read_predictions,
    reorder_windows,
    write_predictions,
    write_submission,
)
from calce_jax.storage import atomic_files as outputs

FIRST = Prediction(2579, "A girl cooks.", "NUsG_0_150", [[0, 24.5, 0.75], [30, 40, 0.25]], "[[0, 24.5", "repaired", 150)
SECOND = Prediction("QVHighlight_7", "A man talks.", "XYZ_0_150", [])


def test_written_predictions_read_back(tmp_path):
    write_predictions(tmp_path / "new/folder/predictions.jsonl", [FIRST, SECOND])
    assert read_predictions(tmp_path / "new/folder/predictions.jsonl") == [FIRST, SECOND]
    assert [path.name for path in (tmp_path / "new/folder").iterdir()] == ["predictions.jsonl"]
    assert [FIRST.malformed, SECOND.malformed] == [True, False]


def test_the_originals_rows_read(tmp_path):
    row = {"video": "v", "qid": "QVHighlight_1", "query": "q", "duration": 150, "stage1_result": [[1, 2]]}
    (tmp_path / "val_stage2.json").write_text(json.dumps([row]))
    assert read_predictions(tmp_path / "val_stage2.json") == [
        Prediction("QVHighlight_1", "q", "v", [[1, 2, 1.0]], duration=150)
    ]


def test_the_official_sample_reads(shared):
    predictions = read_predictions(shared / "annotations/qvhighlights/sample_val_preds.jsonl")
    assert len(predictions) == 1550
    assert predictions[0].windows[0] == [0.0, 70.0, 0.9986]


def test_all_faults_are_named_together(tmp_path):
    good = {"qid": 1, "query": "q", "vid": "v", "pred_relevant_windows": [[0, 1, 0.5]]}
    rows = [
        good,
        {**good, "qid": None},
        {**good, "qid": 2, "query": 3},
        {**good, "qid": 3, "pred_relevant_windows": [[5, 1, 0.5], [0, 1, "x"], [0]]},
        {key: value for key, value in good.items() if key != "pred_relevant_windows"},
        {**good, "qid": "QVHighlight_1"},
        {**good, "qid": 4, "status": "fine", "duration": -1, "raw": 3, "vid": 9},
        [1],
    ]
    path = tmp_path / "predictions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n{not json\n" + '{"qid": 9, "query": "q", "vid": "v", '
                    '"pred_relevant_windows": [[NaN, 1]]}\n')  # fmt: skip
    with pytest.raises(PredictionError) as caught:
        read_predictions(path)
    message = str(caught.value)
    for part in (
        "line 2: qid: expected the query's id, got None",
        "line 3: query: expected the sentence",
        "line 4: pred_relevant_windows: [5, 1, 0.5] starts before the video or ends before it starts",
        "line 4: pred_relevant_windows: expected [start, end] or [start, end, score] in numbers, got [0, 1, 'x']",
        "line 4: pred_relevant_windows: expected [start, end] or [start, end, score] in numbers, got [0]",
        "line 5: pred_relevant_windows: missing",
        "line 1, line 6: qid: 1 repeats; keep one of them",
        "line 7: status: expected one of exact",
        "line 7: duration: expected positive seconds, got -1",
        "line 7: raw:",
        "line 7: vid:",
        "line 8: expected an object",
        "line 9: not JSON",
        "line 10: pred_relevant_windows: expected [start, end]",
    ):
        assert f"{path}, {part}" in message


def test_many_faults_are_counted(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text("[]x\n")
    with pytest.raises(PredictionError, match="line 1: not JSON"):
        read_predictions(path)
    path.write_text("{\n" * 100)
    with pytest.raises(PredictionError, match=r"predictions\.jsonl: and 80 more$"):
        read_predictions(path)


ROW = '{"qid": %s, "query": "%s", "vid": "v", "pred_relevant_windows": [[0, %s]]}'


def test_line_separators_inside_strings_and_byte_order_marks_are_read(tmp_path):
    path = tmp_path / "predictions.jsonl"
    queries = ["a\u2028b", "c\u0085d", "e\u2029"]
    lines = [ROW % (number, query, 1) for number, query in enumerate(queries)]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n")
    assert [prediction.query for prediction in read_predictions(path)] == queries


def test_files_that_are_not_utf8_are_named(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + (ROW % (1, "caf", 1)).encode() + b"\xe9\n")
    with pytest.raises(
        PredictionError, match=rf"predictions\.jsonl: not UTF-8 at byte {path.stat().st_size - 2}; save it as"
    ):
        read_predictions(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (ROW % (1, "q", "9" * 5000), "line 1: a number has too many digits; give one object a line"),
        (ROW % (1, "q", "9" * 400), r"line 1: pred_relevant_windows: expected \[start, end\]"),
        (ROW % (r'"\ud800"', "q", 1), r"line 1: the text holds '\\ud800', which is half of a character; fix the text"),
        ("[" * 100_000, r"line 1: not JSON \(nested too deeply\)"),
        ('{"a":' * 100_000, r"line 1: not JSON \(nested too deeply\)"),
    ],
)
def test_values_that_python_cannot_hold_are_faults(tmp_path, line, message):
    path = tmp_path / "predictions.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(PredictionError, match=message):
        read_predictions(path)


def test_missing_file_says_what_writes_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="`calce infer`"):
        read_predictions(tmp_path / "none.jsonl")


def test_ranked_longest_scores_the_order():
    prediction = Prediction(1, "q", "v", [[0, 4, 0.9], [10, 30, 0.1]])
    assert reorder_windows(prediction, "given") == prediction
    assert reorder_windows(prediction, "longest").windows == [[10, 30, 1.0], [0, 4, 0.5]]
    assert reorder_windows(prediction, "score").windows == [[0, 4, 0.9], [10, 30, 0.1]]
    assert reorder_windows(SECOND, "longest") == SECOND


LISTED = Prediction(
    3, "q", "v", [[0, 4, 0.9], [10, 30, 0.5], [0, 40, 0.4], [1, 2, 0.1]], support=[0.5, 0.9, 0.4, 0.6], answer_windows=2
)


def test_windows_of_other_beams_stay_behind_those_of_the_answer(tmp_path):
    write_predictions(tmp_path / "predictions.jsonl", [LISTED])
    assert read_predictions(tmp_path / "predictions.jsonl") == [LISTED]
    spans = {order: [window[:2] for window in reorder_windows(LISTED, order).windows] for order in ("longest", "score")}
    assert spans == {order: [[10, 30], [0, 4], [1, 2], [0, 40]] for order in ("longest", "score")}


@pytest.mark.parametrize("count", [-1, 5, 1.5, True, "2"])
def test_a_wrong_number_of_windows_of_the_answer_is_a_fault(tmp_path, count):
    row = {"qid": 1, "query": "q", "vid": "v", "pred_relevant_windows": [[0, 1, 0.5]] * 4, "answer_windows": count}
    (tmp_path / "predictions.jsonl").write_text(json.dumps(row))
    with pytest.raises(PredictionError, match="line 1: answer_windows: expected how many windows are of the answer"):
        read_predictions(tmp_path / "predictions.jsonl")


@pytest.mark.parametrize("presence", ["high", True, math.nan, [0.5]])
def test_a_presence_that_is_no_number_is_a_fault(tmp_path, presence):
    row = {"qid": 1, "query": "q", "vid": "v", "pred_relevant_windows": [], "presence": presence}
    (tmp_path / "predictions.jsonl").write_text(json.dumps(row))
    with pytest.raises(PredictionError, match="line 1: presence: expected a number, got"):
        read_predictions(tmp_path / "predictions.jsonl")
    absent = Prediction(1, "q", "v", [], "[]", "exact", 30, presence=0.25)
    write_predictions(tmp_path / "predictions.jsonl", [absent])
    assert read_predictions(tmp_path / "predictions.jsonl") == [absent]


@pytest.mark.parametrize(
    "beams", [3, [[0.5]], [["0.5", []]], [[0.5, [[3, 2]]]], [[0.5, [[1]]]], [[0.5, [["1", 2]]]], [0.5]]
)
def test_beams_of_another_form_are_a_fault(tmp_path, beams):
    row = {"qid": 1, "query": "q", "vid": "v", "pred_relevant_windows": [], "beams": beams}
    (tmp_path / "predictions.jsonl").write_text(json.dumps(row))
    with pytest.raises(PredictionError, match=r"line 1: beams: expected \[probability"):
        read_predictions(tmp_path / "predictions.jsonl")
    looked = Prediction(1, "q", "v", [], "[]", "exact", 30, beams=[(0.75, []), (0.25, [[3, 9], [12.5, 14]])])
    write_predictions(tmp_path / "predictions.jsonl", [looked])
    assert read_predictions(tmp_path / "predictions.jsonl") == [looked]


def test_ranked_by_score_goes_by_the_support(tmp_path):
    written = Prediction(1, "q", "v", [[10, 30, 0.4], [0, 4, 0.3999], [6, 8, 0.1]], support=[0.4, 0.9, 0.1])
    write_predictions(tmp_path / "p.jsonl", [written])
    (prediction,) = read_predictions(tmp_path / "p.jsonl")
    by_score = reorder_windows(prediction, "score")
    assert (by_score.windows, by_score.support) == ([[0, 4, 0.9], [10, 30, 0.4], [6, 8, 0.1]], [0.9, 0.4, 0.1])
    back = reorder_windows(by_score, "longest")
    assert [window[:2] for window in back.windows] == [[10, 30], [0, 4], [6, 8]]
    assert [window[2] for window in back.windows] == pytest.approx([1, 2 / 3, 1 / 3])
    assert back.support == [0.4, 0.9, 0.1]
    assert reorder_windows(prediction, "given") == written


@pytest.mark.parametrize("support", [[0.5], "high", [0.5, None]])
def test_support_is_a_number_for_each_window(tmp_path, support):
    row = {"qid": 1, "query": "q", "vid": "v", "pred_relevant_windows": [[0, 1], [2, 3]], "support": support}
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    with pytest.raises(PredictionError, match="support: expected a number for each window"):
        read_predictions(tmp_path / "p.jsonl")


def test_submission_holds_both_splits(tmp_path):
    path = tmp_path / "submission.zip"
    write_submission(path, [FIRST, SECOND], "val")
    write_submission(path, [SECOND], "test")
    with zipfile.ZipFile(path) as archive:
        val, test = (
            [json.loads(line) for line in archive.read(f"hl_{split}_submission.jsonl").splitlines()]
            for split in ("val", "test")
        )
        assert len(archive.namelist()) == 2
    assert val[0] == {
        "qid": 2579,
        "query": "A girl cooks.",
        "vid": "NUsG_0_150",
        "pred_relevant_windows": [[0.0, 24.5, 0.75], [30.0, 40.0, 0.25]],
    }
    assert test == [val[1]]
    assert test[0]["qid"] == 7
    assert test[0]["pred_relevant_windows"] == [[0.0, 0.0, 0.0]]


def test_submission_of_other_data_is_refused(tmp_path):
    with pytest.raises(PredictionError, match="'Charades_1' are not of QVHighlights"):
        write_submission(tmp_path / "submission.zip", [Prediction("Charades_1", "q", "v", [])], "val")
    (tmp_path / "notes.zip").write_text("notes")
    with pytest.raises(PredictionError, match="not a zip"):
        write_submission(tmp_path / "notes.zip", [FIRST], "val")


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, [FIRST])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(outputs.os, "replace", full)
    with pytest.raises(OSError, match=r"cannot write .*predictions.jsonl \(No space left on device\); make room"):
        write_predictions(path, [SECOND])
    assert read_predictions(path) == [FIRST]
    assert list(tmp_path.iterdir()) == [path]
