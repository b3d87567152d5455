"""Windows: parsing, the original's repairs against its recorded results, overlap and order."""

import json
import math
import random

import numpy as np
import pytest

from calce_jax.moments import windows, windows_reference
from calce_jax.moments.windows import parse_windows

DURATIONS = {"None": None, "150": 150, "31": 31, "15": 15, "tensor150": 150, "float30.96": 30.96}


@pytest.fixture(scope="module")
def recorded(shared):
    return json.loads((shared / "golden/09_postprocess.json").read_text())


def outcome(function, *arguments):
    try:
        return {"out": function(*arguments)}
    except (ValueError, TypeError) as error:
        return {"error": type(error).__name__}


def without_message(record):
    return {key: value for key, value in record.items() if key != "msg"}


@pytest.mark.parametrize("duration", DURATIONS)
def test_repair_windows_equals_the_original(recorded, duration):
    assert len(recorded["cases"]) == 156
    for case in recorded["cases"]:
        ours = outcome(windows_reference.repair_windows, case["s"], DURATIONS[duration])
        assert ours == without_message(case[f"post_process_{duration}"]), case["s"]


@pytest.mark.parametrize(
    ("text", "duration", "expected"),
    [
        ("[[0, 1</s>]]", 150, [[0, 150]]),
        ("[[0, 1], [2</s>, 3]]", None, [[-1, -1]]),
        ("[[0, 1]]</s> [[2, 3]]", 150, [[0, 1]]),
        ("[[5]]", 0, []),
        ("[[0, 0], [5]]", 0, [[0, 0]]),
        ("[[50, 60], [40, 45]]", 15, [[15, 40], [15, 50]]),
        ("[[9, 12], [50, 60], [40]]", 15, [[9, 12], [15, 40], [15, 50]]),
        ("[[30, 40], [30, 35]]", 150, [[30, 40], [30, 35]]),
        ("[[10, 20], [30, 15005]]", 150, [[5, 30], [10, 20]]),
    ],
)
def test_repairs_that_no_recorded_answer_needs(text, duration, expected):
    assert windows_reference.repair_windows(text, duration) == expected


@pytest.mark.parametrize(
    ("text", "expected", "status"),
    [
        ("[[82, 150]]", [[82, 150]], "exact"),
        ("[[82,150],[3, 9.5]]", [[82, 150], [3, 9.5]], "exact"),
        ("[[24.3, 30.4]]", [[24.3, 30.4]], "exact"),
        ("[[0, 10], [20, 3", [[0, 10]], "repaired"),
        ("[[0, 10], [20, 30]", [[0, 10], [20, 30]], "repaired"),
        ("Windows: [[1, 2]]", [[1, 2]], "repaired"),
        ("[[9, 4]]", [[4, 9]], "repaired"),
        ("[[140, 160]]", [[140, 150]], "repaired"),
        ("[[-5, 10]]", [[0, 10]], "repaired"),
        ("[[160, 170], [1, 2]]", [[1, 2]], "repaired"),
        ("[[5, 5], [1, 2]]", [[1, 2]], "repaired"),
        ("[[1, 2], [1, 2]]", [[1, 2]], "repaired"),
        ("[[5, 5]]", [], "empty"),
        ("[[160, 170]]", [], "empty"),
        ("[[1, 2, 3]]", [], "empty"),
        ("[]", [], "exact"),
        (" [ ]\n", [], "exact"),
        ("[[]]", [], "empty"),
        ("", [], "empty"),
        ("[[٣, ٤]]", [], "empty"),
        ("no windows", [], "empty"),
        ("[[0, " + "9" * 5000 + "]]", [[0, 150]], "repaired"),
        ("[[" + "0" * 5000 + "3, 9]]", [[3, 9]], "exact"),
    ],
)
def test_answers_by_default(text, expected, status):
    parsed = parse_windows(text, 150)
    assert (parsed.windows, parsed.status) == (expected, status)
    assert parsed.malformed == (status != "exact")


@pytest.mark.parametrize(
    ("text", "expected", "status"),
    [
        ("[[7, 9], [1, 2]]", [[1, 2], [7, 9]], "exact"),
        ("[[160, 170]]", [[150, 160]], "repaired"),
        ("[[0, 10], [20, 3", [[0, 150]], "whole_video"),
        ("[[]]", [], "empty"),
        ("[[0, 1</s>]]", [[0, 150]], "whole_video"),
    ],
)
def test_answers_under_reference(text, expected, status):
    parsed = parse_windows(text, 150, behaviour="reference")
    assert (parsed.windows, parsed.status) == (expected, status)


def test_reference_stops_where_the_original_does():
    with pytest.raises(ValueError, match="invalid literal for int"):
        parse_windows("[[0, 150150]]", 150, behaviour="reference")


@pytest.mark.parametrize("duration", [0, -3, math.nan, math.inf])
def test_duration_must_be_positive(duration):
    with pytest.raises(ValueError, match="duration: must be a positive number of seconds"):
        parse_windows("[[0, 1]]", duration)


def test_windows_of_random_text_lie_inside_the_video():
    rng = random.Random(0)
    pieces = ["[", "]", "[[", "]]", ", ", ",", " ", "-", ".", "\n", "</s>", "x", "٣", "1e3", "nan", "0"]
    for _ in range(5000):
        text = "".join(
            rng.choice(pieces) if rng.random() < 0.6 else str(rng.choice([rng.randrange(200), rng.uniform(0, 99)]))
            for _ in range(rng.randrange(30))
        )
        duration = rng.choice([1, 31, 150, 30.96])
        parsed = parse_windows(text, duration)
        assert all(0 <= start < end <= duration for start, end in parsed.windows), text
        says_nowhere = "".join(text.split()) == "[]"
        assert (parsed.status == "empty") == (not parsed.windows and not says_nowhere)
        assert parsed.is_answer == (bool(parsed.windows) or says_nowhere)


def test_text_and_windows_are_inverses():
    rng = random.Random(1)
    for _ in range(500):
        borders = sorted(rng.sample(range(1500), 2 * rng.randint(1, 8)))
        numbers = [border if rng.random() < 0.5 else border + 0.5 for border in borders]
        expected = [list(pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)]
        parsed = parse_windows(str(expected), 1501)
        assert (parsed.windows, parsed.status) == (expected, "exact")


def test_iou():
    assert windows.iou([10, 20], [15, 25]) == pytest.approx(1 / 3, abs=1e-15)
    assert windows.iou([0, 1], [1, 2]) == 0
    assert windows.iou([5, 5], [5, 5]) == 0
    assert windows.iou([0, 10, 0.9], [0, 10]) == 1
    matrix = windows.iou_matrix(np.array([[0.0, 10], [20, 30]]), np.array([[0.0, 5], [25, 30], [40, 50]]))
    np.testing.assert_array_equal(matrix, [[0.5, 0, 0], [0, 0.5, 0]])
    batched = windows.iou_matrix(np.array([[[0.0, 10]], [[5, 5]]]), np.array([[[0.0, 5]], [[5, 5]]]), undefined=7.0)
    np.testing.assert_array_equal(batched, [[[0.5]], [[7]]])


def test_order():
    given = [[0, 4], [10, 30], [40, 60], [70, 71]]
    assert windows.order_windows(given) == [0, 1, 2, 3]
    assert windows.order_windows(given, window_order="longest") == [1, 2, 0, 3]
    assert windows.order_windows(given, [0.1, 0.2, 0.9, 0.2], window_order="score") == [2, 1, 3, 0]
    with pytest.raises(ValueError, match="as many scores"):
        windows.order_windows(given, [0.1], window_order="score")
