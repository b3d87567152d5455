"""Annotations of ActivityNet Captions, TimeLens-Bench and TACoS, which list the queries of each video."""

import json

import pytest

from calce_jax.moments.annotations import Annotation, AnnotationError, read_annotations

ACTIVITYNET = {
    "v_abc": {"duration": 82.73, "timestamps": [[0.83, 19.86], [17.37, 60.81]], "sentences": ["A man.", " He runs. "]}
}
TIMELENS = {"v_abc": {"duration": 30, "spans": [[1, 2], [[3, 4], [5, 6]]], "queries": ["A man.", "He runs."]}}
TACOS = {"s13-d21.avi": {"num_frames": 300, "fps": 30.0, "timestamps": [[15, 45]], "sentences": ["She cuts."]}}


@pytest.fixture
def read(tmp_path):
    def read(content):
        path = tmp_path / "val.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1))
        return read_annotations(path)

    return read


def test_activitynet_captions(read):
    assert read(ACTIVITYNET) == [
        Annotation("val_1", "v_abc", "A man.", [], 82.73, [[0.83, 19.86]]),
        Annotation("val_2", "v_abc", "He runs.", [], 82.73, [[17.37, 60.81]]),
    ]
    # On one line it is not taken for a row of QVHighlights.
    assert read(json.dumps(ACTIVITYNET)) == read(ACTIVITYNET)
    assert read(ACTIVITYNET)[1].location.endswith("val.json, video v_abc, query 2")


def test_timelens_bench(read):
    first, second = read(TIMELENS)
    assert first == Annotation("val_1", "v_abc", "A man.", [], 30, [[1, 2]])
    assert second.windows == [[3, 4], [5, 6]]


def test_tacos_counts_frames(read):
    assert read(TACOS) == [Annotation("val_1", "s13-d21", "She cuts.", [], 10.0, [[0.5, 1.5]])]


def test_separated_lines(read):
    first, second = read("v_abc>>>A man > a dog.>>>[0.5, 6.9]\nv_abc>>>He runs.>>>[[1, 2], [3, 4]]\n")
    assert first == Annotation("val_1", "v_abc", "A man > a dog.", [], None, [[0.5, 6.9]])
    assert second.windows == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"v": {"duration": 9, "timestamps": [[1, 2]], "sentences": []}},
            "video v: sentences and timestamps: expected two",
        ),
        (
            {"v": {"duration": 9, "queries": ["A."]}},
            "video v: queries and spans: expected two lists of the same length",
        ),
        ({"v": TACOS["s13-d21.avi"] | {"fps": 0}}, "video v: fps and num_frames: expected positive numbers"),
        (
            {"v": {"duration": 9, "timestamps": [[2, 1]], "sentences": ["A."]}},
            "video v, query 1, .* ends before it begins",
        ),
        ({"v": {"duration": 9, "timestamps": [["a", 1]], "sentences": ["A."]}}, "query 1, relevant_windows: expected"),
        ({"v": {"timestamps": [[0, 1]], "sentences": ["A."]}, "w": {}}, "video w: sentences and timestamps: expected"),
        ("v_abc>>>A man.>>>soon", 'line 1: expected "VIDEO>>>sentence>>>'),
        ("v_abc>>>[1, 2]", 'line 1: expected "VIDEO>>>sentence>>>'),
    ],
)
def test_wrong_files_are_named(read, content, message):
    with pytest.raises(AnnotationError, match=message):
        read(content)
