"""Line charts of a page, drawn as SVG: a metric of a run by step."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Number = int | float

WIDTH, HEIGHT = 400, 160  # of the plot, in units of the drawing
_NUM_TICKS = 4
_LARGEST, _SMALLEST = 1e300, 1e-300  # in size, of numbers whose differences are numbers
_RESOLUTION = 1e-9  # of a range, relative to its largest number; below it all numbers count as equal


@dataclass(frozen=True)
class LineChart:
    """A chart.

    Fields:
      title: above it.
      x_label: of the axis of steps.
      lines: (x, y) points by name, in the order of x.
    """

    title: str
    x_label: str
    lines: Mapping[str, Sequence[tuple[Number, Number]]]


def chart_values(chart: LineChart) -> dict[str, Any] | None:
    """Return the template's values of a chart; None if there is no point with finite numbers to draw."""
    lines = {
        name: [(float(x), float(y)) for x, y in points if abs(x) < _LARGEST and abs(y) < _LARGEST]
        for name, points in chart.lines.items()
    }
    points = [point for line in lines.values() for point in line]
    if not points:
        return None
    x_ticks, y_ticks = (_ticks([point[axis] for point in points]) for axis in (0, 1))

    def at(x: Number, y: Number) -> tuple[float, float]:
        return (
            round(WIDTH * (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]), 1),
            round(HEIGHT * (y_ticks[-1] - y) / (y_ticks[-1] - y_ticks[0]), 1),
        )

    return {
        "title": chart.title,
        "x_label": chart.x_label,
        "width": WIDTH,
        "height": HEIGHT,
        "x_ticks": [(at(tick, y_ticks[0])[0], f"{tick:.10g}") for tick in x_ticks],
        "y_ticks": [(at(x_ticks[0], tick)[1], f"{tick:.10g}") for tick in y_ticks],
        "lines": [
            {"name": name, "points": [at(*point) for point in line], "last": f"{line[-1][1]:.3g}"}
            for name, line in lines.items()
            if line
        ],
    }


def _ticks(values: Sequence[Number]) -> list[float]:
    """Return round numbers, at least two, from one not above the least value to one not below the greatest."""
    low, high = min(values), max(values)
    scale = max(abs(low), abs(high))
    span = high - low
    if span < max(_RESOLUTION * scale, _SMALLEST):
        span = scale if scale > _SMALLEST else 1.0
    rough = span / _NUM_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]
