"""Files of other formats: one line says what was found and what to give, not one for every row."""

import json

import pytest

from tests.helpers.commands import run_script

ROW = {"qid": 1, "query": "A cat.", "vid": "a", "duration": 8, "relevant_windows": [[0, 4]]}
PREDICTION = {"qid": 1, "query": "A cat.", "vid": "a", "pred_relevant_windows": [[0, 4, 1.0]]}
LIST = "known; give a file in one of the formats that docs/own_data.md lists"


def evaluate(folder, predictions, annotations):
    """Return the one line that `calce evaluate` ends with, without the names of the files; "" if it succeeds."""
    for name, content in (("predictions", predictions), ("annotations", annotations)):
        text = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
        (folder / f"{name}.json").write_text(text)
    files = (f"--predictions={folder}/predictions.json", f"--annotations={folder}/annotations.json")
    try:
        run_script("evaluate", *files, f"--out={folder}/scores.json")
    except SystemExit as error:
        return str(error.code).replace(f"{folder}/", "")
    return ""


@pytest.mark.parametrize(
    ("annotations", "line"),
    [
        (
            json.dumps({"version": 1, "database": {}}, indent=1),
            "it is one JSON object with 'version', 'database', in no format that is known; give a JSON list, or",
        ),
        (
            json.dumps([{"image_id": 7, "caption": "a cat"}] * 30),
            f"row 1: it has 'image_id', 'caption', and no row of the file a field that is {LIST}",
        ),
        (
            [{"problem": "a cat", "gt_answers": []}] * 30,
            f"line 1: it has 'problem', 'gt_answers', and no row of the file a field that is {LIST}",
        ),
        ("video,start,end\na,0,4\n", 'line 1: expected "VIDEO START END##sentence" or a JSON object, got'),
    ],
)
def test_annotations_of_another_format(tmp_path, annotations, line):
    message = evaluate(tmp_path, [PREDICTION], annotations)
    assert message.splitlines()[0].startswith(f"Error: annotations.json, {line}"[:118])
    assert len(message.splitlines()) <= 2
    assert "row 2" not in message


def test_predictions_of_timelens_bench(tmp_path):
    other = json.dumps({f"a.mp4>>>A cat {n}.>>>[0, 4]": {"timestamps": [[0, 5]]} for n in range(4)}, indent=1)
    assert evaluate(tmp_path, other, [ROW]).startswith(
        "Error: predictions.json, it is one JSON object with 'a.mp4>>>A cat 0"
    )


def test_a_split_without_truth(tmp_path, capsys):
    assert evaluate(tmp_path, [PREDICTION], [{**ROW, "relevant_windows": None}]) == ""
    assert "annotations.json has no true windows: nothing is scored, and" in capsys.readouterr().out


def test_saliency_of_a_wrong_length(tmp_path):
    rated = ROW | {"relevant_clip_ids": [0], "saliency_scores": [[4, 4, 4]]}
    assert evaluate(tmp_path, [PREDICTION | {"pred_saliency_scores": [1, 2]}], [rated]) == (
        "Error: query 1, pred_saliency_scores: 2 scores, for a video of 4 clips of 2 s; give one score for each clip"
    )


def test_lines_and_lists_are_told_apart(tmp_path):
    """A row that is spread over lines is the beginning of a list, which has brackets."""
    assert evaluate(tmp_path, [PREDICTION], json.dumps([ROW], indent=1)) == ""
    assert "it is one JSON object with 'qid', 'query', 'vid', ..., in no" in evaluate(
        tmp_path, [PREDICTION], json.dumps(ROW, indent=1)
    )
