"""Queries that do not happen in their video: what is published of them, as annotations."""

import json

import pytest

from calce_jax.moments.annotations import Annotation, AnnotationError, read_annotations

PRESENT = {"qid": 1, "query": "A cat.", "vid": "a", "duration": 30, "relevant_windows": [[2, 8]]}
# Rows of Moment of Untruth: an absent query has a mark in place of windows, and ratings of no clip.
MARK = {"relevant_windows": [[0, 0]], "relevant_clip_ids": [], "saliency_scores": [[]]}
# A video of RA-RFT's sets.
VIDEO = {
    "video": "/videos/E6DLK.mp4",
    "timestamp": [9.3, 14.4],
    "duration": 27.25,
    "GRPO": [{"q": "She runs.", "a": "9.3 to 14.4", "r": True}, {"q": "She sits.", "a": "No.", "r": False}],
}


@pytest.fixture
def read(tmp_path):
    def read(content):
        lines = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
        (tmp_path / "val.json").write_text(lines)
        return read_annotations(tmp_path / "val.json")

    return read


def test_an_empty_list_is_absence_and_no_list_is_not(read):
    absent, unknown = read([PRESENT | {"relevant_windows": []}, PRESENT | {"qid": 2, "relevant_windows": None}])
    assert (absent.windows, absent.is_absent) == ([], True)
    assert (unknown.windows, unknown.is_absent) == (None, False)
    assert not read([PRESENT])[0].is_absent


def test_moment_of_untruth(read):
    rows = read([PRESENT, PRESENT | MARK | {"vid": "b"}, PRESENT | MARK | {"qid": 7}])
    assert rows == [
        Annotation(1, "a", "A cat.", [], 30, [[2, 8]]),
        # Its file of both kinds gives an absent query the id of the present one that has its sentence.
        Annotation("1_absent", "b", "A cat.", [], 30, []),
        Annotation(7, "a", "A cat.", [], 30, []),
    ]


def test_an_id_of_our_own_repeats_in_no_form(read):
    with pytest.raises(AnnotationError, match="qid: 1 is given to 2 queries; keep one"):
        read([PRESENT, PRESENT | {"relevant_windows": []}])


def test_a_window_of_no_length_alone_is_no_mark(read):
    assert read([PRESENT | {"relevant_windows": [[0, 0]]}])[0].windows == [[0, 0]]
    assert read("a 0.0 0.0##a cat sits.")[0].windows == [[0.0, 0.0]]


@pytest.mark.parametrize("name", ["GRPO", "QA"])
def test_ra_rft(read, name):
    videos = [{name: VIDEO["GRPO"], **{field: VIDEO[field] for field in ("video", "timestamp", "duration")}}]
    videos.append({"video": "b_60.0_210.0.mp4", "timestamp": [0, 40], name: VIDEO["GRPO"][1:]})
    rows = read(json.dumps(videos, indent=1))
    assert rows == [
        Annotation("val_1", "E6DLK", "She runs.", [], 27.25, [[9.3, 14.4]]),
        Annotation("val_2", "E6DLK", "She sits.", [], 27.25, []),
        Annotation("val_3", "b_60.0_210.0", "She sits.", [], None, []),
    ]
    assert rows[1].location.endswith("val.json, row 1, query 2")


def test_sets_by_video_and_lines(read):
    assert [
        row.windows for row in read(json.dumps({"v": {"duration": 9, "spans": [[1, 2], []], "queries": ["A.", "B."]}}))
    ] == [[[1, 2]], []]
    assert read("v>>>A man.>>>[]")[0].windows == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video": None}, "row 1, video: expected the path of the video, got None; fix the video"),
        ({"GRPO": {"q": "x"}}, "row 1, GRPO: expected a list of queries, got {'q': 'x'}; fix the video"),
        ({"GRPO": [{"q": "x", "r": "no"}]}, 'row 1, GRPO: expected {"q": sentence, "r": whether it happens}, got {'),
        ({"GRPO": [{"r": False}]}, 'row 1, GRPO: expected {"q": sentence, "r": whether it happens}, got {'),
        ({"GRPO": [{"q": "", "r": False}]}, "row 1, query 1, query: expected a sentence, got ''; fix it"),
        ({"timestamp": 3}, "row 1, query 1, relevant_windows: expected [start, end] in seconds, got 3; fix or remove"),
        ({"duration": -1}, "row 1, query 1, duration: expected the video's length in positive seconds, got -1; fix it"),
    ],
)
def test_a_wrong_file_is_named(read, changes, message):
    with pytest.raises(AnnotationError) as error:
        read(json.dumps([VIDEO | changes]))
    assert f"val.json, {message}" in error.value.reason.splitlines()[0]
