"""Evaluation of files: published scores, both formats, unmatched queries, and the command."""

import json
import zipfile

import pytest

from calce_jax.moments.annotations import AnnotationError
from calce_jax.moments.metrics.evaluate import evaluate_files
from calce_jax.moments.predictions import PredictionError
from tests.helpers.commands import run_script

HEADLINES = ("R1@0.5", "R1@0.7", "mIoU", "mAP@0.5", "mAP@0.75")


def annotation(qid, windows):
    row = {
        "qid": qid,
        "query": "a man talks",
        "vid": "v_0_150",
        "duration": 150,
        "relevant_windows": windows,
    }
    return {field: value for field, value in row.items() if value is not None}


def prediction(qid, windows, **changes):
    return {"qid": qid, "query": "a man talks", "vid": "v_0_150", "pred_relevant_windows": windows, **changes}


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def files(tmp_path):
    annotations = [annotation(1, [[0, 10]]), annotation(2, [[20, 40]]), annotation(3, [[5, 6]])]
    predictions = [
        prediction("QVHighlight_1", [[50, 52, 0.9], [0, 10, 0.4]], status="repaired"),
        prediction(2, [[20, 40, 0.5]]),
        prediction(77, [[0, 1, 0.5]]),
    ]
    return (
        write_lines(tmp_path / "predictions.jsonl", predictions),
        write_lines(tmp_path / "annotations.jsonl", annotations),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "expected"),
    [("given", (78.00, 64.84, 72.89, 70.81, 57.73)), ("longest", (79.74, 65.81, 74.16, 71.80, 58.25))],
)
def test_published_predictions_on_qvhighlights(shared, rank, expected):
    path = shared / "annotations/calce/qvh/val_stage2.json"
    reference = evaluate_files(path, path, rank).scores["reference"]
    assert tuple(reference[key] for key in HEADLINES) == expected


@pytest.mark.slow
@pytest.mark.parametrize("rank", ["given", "longest"])
def test_published_predictions_on_charades(shared, rank):
    path = shared / "annotations/calce/charades/test_stage2.json"
    reference = evaluate_files(path, path, rank).scores["reference"]
    assert tuple(reference[key] for key in HEADLINES[:3]) == (68.87, 49.87, 59.13)


@pytest.mark.slow
def test_predictions_and_annotations_may_have_different_formats(shared):
    """The original's predictions against the official annotations: ids are strings there and numbers here."""
    predictions = shared / "annotations/calce/qvh/val_stage2.json"
    evaluation = evaluate_files(predictions, shared / "annotations/qvhighlights/highlight_val_release.jsonl")
    assert evaluation.warnings() == []
    assert evaluation.scores["official"]["R1@0.5"] == 78.00
    assert evaluation.scores["official"]["mAP@0.5"] == 70.80


def test_unmatched_queries_are_named_and_count_as_misses(files):
    evaluation = evaluate_files(*files)
    assert evaluation.pairing.missing_predictions == [3]
    assert evaluation.pairing.unknown_predictions == [77]
    assert evaluation.warnings() == [
        "1 annotated queries have no prediction and count as misses: 3",
        "1 predictions are for queries that are not annotated, and are not scored: 77",
        "1 answers were malformed: 1",
    ]
    reference = evaluation.scores["reference"]
    assert (reference["queries"], reference["unanswered"], reference["unknown"], reference["malformed"]) == (3, 1, 1, 1)
    assert reference["R1@0.5"] == 33.33


@pytest.mark.parametrize(("rank", "reference", "official"), [("given", 33.33, 50.0), ("longest", 66.67, 66.67)])
def test_rank_decides_the_first_window_and_the_scores(files, rank, reference, official):
    scores = evaluate_files(*files, window_order=rank).scores
    assert scores["reference"]["R1@0.5"] == scores["official"]["R1@0.5"] == reference
    assert scores["official"]["mAP@0.5"] == official


def test_annotations_of_another_split_are_refused(files, tmp_path):
    other = write_lines(tmp_path / "other.jsonl", [annotation(9, [[0, 1]])])
    with pytest.raises(ValueError, match="none of the 3 predictions is for one of the 1 annotated queries"):
        evaluate_files(files[0], other)


def test_command_writes_scores_and_submission(files, tmp_path, capsys):
    out, submission = tmp_path / "scores.json", tmp_path / "submission.zip"
    flags = [f"--predictions={files[0]}", f"--annotations={files[1]}", f"--out={out}", f"--submission={submission}"]
    run_script("evaluate", *flags, "--rank=longest")
    output = capsys.readouterr().out
    assert "66.67" in output
    assert "have no prediction and count as misses: 3" in output
    scores = json.loads(out.read_text())
    assert set(scores) == {"reference", "official"}
    assert scores["reference"]["R1@0.5"] == 66.67
    with zipfile.ZipFile(submission) as archive:
        rows = [json.loads(line) for line in archive.read("hl_val_submission.jsonl").splitlines()]
    assert [row["qid"] for row in rows] == [1, 2, 3]
    assert rows[0]["pred_relevant_windows"] == [[0.0, 10.0, 1.0], [50.0, 52.0, 0.5]]


def test_command_submits_a_test_split_without_truth(files, tmp_path, capsys):
    annotations = write_lines(tmp_path / "test.jsonl", [annotation(1, None), annotation(2, None)])
    out, submission = tmp_path / "scores.json", tmp_path / "submission.zip"
    flags = [f"--predictions={files[0]}", f"--annotations={annotations}", f"--out={out}", f"--submission={submission}"]
    run_script("evaluate", *flags, "--split=test")
    assert "nothing is scored" in capsys.readouterr().out
    assert not out.exists()
    assert zipfile.ZipFile(submission).namelist() == ["hl_test_submission.jsonl"]


def test_command_names_a_missing_file(files, tmp_path):
    flags = [f"--predictions={tmp_path}/none.jsonl", f"--annotations={files[1]}", f"--out={tmp_path}/scores.json"]
    with pytest.raises(SystemExit, match=r"^Error: .*none\.jsonl: no such file of predictions; write one with"):
        run_script("evaluate", *flags)


def test_true_windows_that_cannot_be_met_are_named(tmp_path):
    rows = [
        {"qid": qid, "query": "A cat.", "vid": "a", "duration": 30, "relevant_windows": [window]}
        for qid, window in enumerate([[2, 8], [5, 5], [20, 47], [20, 30.5]])
    ]
    annotations, predictions = tmp_path / "ann.jsonl", tmp_path / "pred.jsonl"
    annotations.write_text("".join(json.dumps(row) + "\n" for row in rows))
    predictions.write_text(
        "".join(json.dumps(row | {"pred_relevant_windows": row["relevant_windows"]}) + "\n" for row in rows)
    )
    assert evaluate_files(predictions, annotations).warnings() == [
        "1 annotated queries have a true window of no length, which no prediction can meet: 1",
        "1 annotated queries have a true window that ends more than 1 s after its video: 2",
    ]


def test_a_part_of_a_benchmark_is_scored_on_request(tmp_path, capsys):
    predictions = write_lines(tmp_path / "predictions.jsonl", [prediction(1, [[0, 10, 1]])])
    annotations = write_lines(tmp_path / "annotations.jsonl", [annotation(qid, [[0, 10]]) for qid in (1, 2, 3, 4)])
    files = [f"--predictions={predictions}", f"--annotations={annotations}", f"--out={tmp_path}/scores.json"]
    run_script("evaluate", *files)
    assert json.loads((tmp_path / "scores.json").read_text())["reference"]["R1@0.5"] == 25
    assert "3 annotated queries have no prediction and count as misses: 2, 3, 4\n" in capsys.readouterr().out
    run_script("evaluate", *files, "--only_predicted")
    scores = json.loads((tmp_path / "scores.json").read_text())["reference"]
    assert (scores["R1@0.5"], scores["unanswered"], scores["left_out"]) == (100, 0, 3)
    printed = capsys.readouterr().out
    assert "3 annotated queries have no prediction, and are left out: 2, 3, 4\n" in printed
    assert "count as misses" not in printed


def test_placeholders_in_place_of_the_truth_are_told(tmp_path):
    def warnings(count, windows):
        rows = [annotation(qid, windows(qid)) for qid in range(count)]
        annotations = write_lines(tmp_path / "annotations.jsonl", rows)
        predictions = write_lines(
            tmp_path / "predictions.jsonl", [prediction(qid, [[0, 9, 1]]) for qid in range(count)]
        )
        return evaluate_files(predictions, annotations).warnings()

    same = "all 10 annotated queries have the same true windows, [[0, 150]]: placeholders?"
    assert warnings(10, lambda _: [[0, 150]]) == [same]
    assert warnings(9, lambda _: [[0, 150]]) == []
    assert warnings(10, lambda qid: [[0, 150 - qid // 9]]) == []


def differing(tmp_path, **changes):
    """Return files of three predictions, the second and the third with changes, and of their annotations."""
    return (
        write_lines(
            tmp_path / "predictions.jsonl",
            [prediction(qid, [[0, 10, 1]], **(changes if qid > 1 else {})) for qid in (1, 2, 3)],
        ),
        write_lines(tmp_path / "annotations.jsonl", [annotation(qid, [[0, 10]]) for qid in (1, 2, 3)]),
    )


@pytest.mark.parametrize("command", ["evaluate", "merge"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vid": "w_0_150"}, "vid is 'w_0_150' in the predictions and 'v_0_150' in the annotations"),
        ({"query": "a dog barks"}, "query is 'a dog barks' in the predictions and 'a man talks' in the annotations"),
    ],
)
def test_predictions_for_other_queries_are_refused(tmp_path, command, changes, message):
    predictions, annotations = differing(tmp_path, **changes)
    with pytest.raises(SystemExit) as error:
        run_script(command, f"--predictions={predictions}", f"--annotations={annotations}", f"--out={tmp_path}/out")
    assert error.value.code == (
        f"Error: 2 of 3 predictions have the id of another query, the first of them qid 2: {message}; give the "
        "annotations that the predictions were made for"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("changes", [{"query": " a man talks\n"}, {"query": "", "vid": ""}])
def test_spaces_and_absent_values_do_not_differ(tmp_path, changes):
    assert evaluate_files(*differing(tmp_path, **changes)).scores["official"]["R1@0.5"] == 100


def test_files_that_hold_no_predictions_are_named(tmp_path):
    predictions, annotations = differing(tmp_path)
    predictions.write_text("")
    with pytest.raises(PredictionError, match=r"predictions\.jsonl has no predictions; write them with `calce infer`"):
        evaluate_files(predictions, annotations)
    write_lines(predictions, [prediction(1, [])])
    with pytest.raises(PredictionError, match="is a folder, not a file of predictions; give the file"):
        evaluate_files(tmp_path, annotations)
    with pytest.raises(AnnotationError, match="is a folder, not a file of annotations; give the file"):
        evaluate_files(predictions, tmp_path)
