"""Merging stage-1 windows into annotations; queries without any are named."""

import dataclasses
import json

import pytest

from calce_jax.moments.annotations import AnnotationError, read_annotations, write_annotations
from calce_jax.moments.merge import merge_stage1
from calce_jax.moments.predictions import Prediction, write_predictions
from tests.helpers.commands import run_script

ROWS = [
    {"qid": qid, "query": f"query {qid}", "vid": "v_0_150", "duration": 150, "relevant_windows": [[0, 10]]}
    for qid in (1, 2, 3)
]
PREDICTIONS = [
    Prediction("QVHighlight_1", "query 1", "v_0_150", [[30.0, 40.0, 0.9], [1.5, 8.0, 0.2]]),
    Prediction(3, "query 3", "v_0_150", [], status="empty"),
    Prediction(9, "query 9", "v_0_150", [[0, 1, 0.5]]),
]


@pytest.fixture
def annotations(tmp_path):
    path = tmp_path / "annotations.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_merged_rows_read_back(annotations, tmp_path):
    merged = merge_stage1(read_annotations(annotations), PREDICTIONS)
    assert merged.missing_stage1 == [2, 3]
    assert merged.unknown_predictions == [9]
    write_annotations(tmp_path / "stage2.jsonl", merged.annotations)
    before, after = read_annotations(annotations), read_annotations(tmp_path / "stage2.jsonl")
    assert [row.stage1_windows for row in after] == [[[1.5, 8], [30, 40]], [[0, 150]], [[0, 150]]]
    assert [dataclasses.replace(row, stage1_windows=None) for row in after] == before


def test_whole_seconds_are_written_as_the_model_writes_them(annotations):
    merged = merge_stage1(read_annotations(annotations), PREDICTIONS)
    assert str(merged.annotations[0].stage1_windows) == "[[1.5, 8], [30, 40]]"


def test_stage_2_gets_the_windows_of_the_answer_alone(annotations):
    listed = dataclasses.replace(PREDICTIONS[0], windows=[*PREDICTIONS[0].windows, [50, 60, 0.1]], answer_windows=2)
    alone, among_others = (
        merge_stage1(read_annotations(annotations), [prediction]) for prediction in (PREDICTIONS[0], listed)
    )
    assert alone == among_others


def test_a_whole_video_needs_its_length(tmp_path):
    lines = tmp_path / "charades.txt"
    lines.write_text("AO8RW 0.0 6.9##a person talks.\nAO8RW 1.0 2.0##a person walks.\n")
    predictions = [Prediction("charades_1", "a person talks.", "AO8RW", [[0, 5, 0.5]])]
    with pytest.raises(AnnotationError, match=r"1 queries have no window .*, such as charades_2"):
        merge_stage1(read_annotations(lines), predictions)
    merged = merge_stage1(read_annotations(lines, durations={"AO8RW": 33.5}), predictions)
    assert [row.stage1_windows for row in merged.annotations] == [[[0, 5]], [[0, 33.5]]]


def test_command_names_every_query_without_result(annotations, tmp_path, capsys):
    write_predictions(tmp_path / "predictions.jsonl", PREDICTIONS)
    run_script("merge", *[f"--{name}={tmp_path / name}.jsonl" for name in ("predictions", "annotations", "out")])
    output = capsys.readouterr().out
    assert "2 queries have no window of stage 1; stage 2 will use the whole video: 2, 3\n" in output
    assert "1 predictions are for queries that are not annotated, and are left out: 9\n" in output
    assert "unmatched" not in output
    assert "3 queries, 1 with windows of stage 1" in output
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 3


def test_command_names_what_is_missing(annotations, tmp_path):
    flags = [f"--{name}={tmp_path / name}.jsonl" for name in ("predictions", "annotations", "out")]
    with pytest.raises(SystemExit, match=r"^Error: .*predictions\.jsonl: no such file of predictions; write one with"):
        run_script("merge", *flags)
    assert not (tmp_path / "out.jsonl").exists()


def test_many_queries_without_a_window_are_counted_and_listed_in_a_file(tmp_path, capsys):
    rows = [{"qid": n, "query": "a cat", "vid": "a", "duration": 30, "relevant_windows": [[0, 5]]} for n in range(8)]
    annotations, predictions = tmp_path / "annotations.jsonl", tmp_path / "predictions.jsonl"
    annotations.write_text("".join(json.dumps(row) + "\n" for row in rows))
    predictions.write_text(json.dumps(rows[0] | {"pred_relevant_windows": [[1, 2, 0.5]]}) + "\n")
    files = [f"--predictions={predictions}", f"--annotations={annotations}", f"--out={tmp_path}/merged.jsonl"]
    run_script("merge", *files)
    printed = capsys.readouterr().out
    assert "7 queries have no window of stage 1; stage 2 will use the whole video: 1, 2, 3, 4, 5, ...\n" in printed
    assert f"{tmp_path}/merged.unmatched.json lists all of them" in printed
    (missing, unknown) = json.loads((tmp_path / "merged.unmatched.json").read_text()).values()
    assert (missing, unknown) == ([1, 2, 3, 4, 5, 6, 7], [])
    predictions.write_text("".join(json.dumps(row | {"pred_relevant_windows": [[1, 2, 0.5]]}) + "\n" for row in rows))
    run_script("merge", *files)
    assert not (tmp_path / "merged.unmatched.json").exists()
