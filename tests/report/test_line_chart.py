"""Line charts of the report: points are where their numbers are."""

import math

import pytest

from calce_jax.report.line_chart import HEIGHT, WIDTH, LineChart, chart_values
from calce_jax.report.page import render_page


def chart(**lines):
    return LineChart("Loss", "steps", lines)


def test_points_lie_where_their_numbers_are():
    values = chart_values(chart(first=[(0, 0.0), (50, 2.0), (100, 1.0)], second=[(100, 4.0)]))
    assert values is not None
    assert values["x_ticks"] == [(0.0, "0"), (200.0, "50"), (400.0, "100")]
    assert [text for _, text in values["y_ticks"]] == ["0", "1", "2", "3", "4"]
    first, second = values["lines"]
    assert first == {
        "name": "first",
        "points": [(0, HEIGHT), (WIDTH / 2, HEIGHT / 2), (WIDTH, HEIGHT * 3 / 4)],
        "last": "1",
    }
    assert second["points"] == [(WIDTH, 0)]


@pytest.mark.parametrize(
    ("numbers", "ticks"),
    [
        ([83.0, 84.9, 88.0], ["82", "84", "86", "88"]),
        ([0.4379, 3.9], ["0", "1", "2", "3", "4"]),
        ([7.0], ["6", "8"]),
        ([0.0, 0.0], ["0", "0.5"]),
        ([-2.0, 1e-9], ["-2", "-1.5", "-1", "-0.5", "0", "0.5"]),
    ],
)
def test_axes_have_round_numbers_around_all_points(numbers, ticks):
    values = chart_values(chart(line=list(enumerate(numbers))))
    assert values is not None
    assert [text for _, text in values["y_ticks"]] == ticks
    assert float(ticks[0]) <= min(numbers)
    assert float(ticks[-1]) >= max(numbers)


@pytest.mark.parametrize(
    "numbers",
    [
        [0.0, 1e-15],
        [1e-13, 3e-13],
        [2.2e-14],
        [1e-320, 2e-320],
        [5e-324],
        [1.0, 1.0 + 2e-16],
        [-1e299, 1e299],
        [1e16, 1e16 + 2],
        [1.517385896198272e-08, 1.5175583614715526e-08],
    ],
)
def test_points_of_any_size_lie_on_the_plot(numbers):
    values = chart_values(chart(line=list(enumerate(numbers))))
    assert values is not None
    for x, y in values["lines"][0]["points"]:
        assert 0 <= x <= WIDTH
        assert -1 <= y <= HEIGHT + 1
    assert len({text for _, text in values["y_ticks"]}) == len(values["y_ticks"]) >= 2


@pytest.mark.parametrize("lines", [{}, {"a": []}, {"a": [(1, math.nan)], "b": [(math.inf, 1.0), (1, 10**400)]}])
def test_nothing_is_drawn_without_points(lines):
    assert chart_values(chart(**lines)) is None
    assert "<polyline" not in render_page("Found", [], charts=[chart(**lines)])


def test_the_page_draws_every_line_and_escapes_names():
    page = render_page("Found", [], charts=[LineChart("Loss", "steps", {"<u>": [(1, 2.0), (2, 1.5)], "x": [(1, 1.0)]})])
    assert page.count("<polyline") == 2
    assert "<u>" not in page
    assert "&lt;u&gt;, at the end 1.5" in page
