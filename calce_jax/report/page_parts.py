"""What the page of a run and the page of a search share: templates, labels, and the axis of a video's seconds."""

import itertools
from collections.abc import Sequence

import jinja2

from calce_jax.models.keyframes.treatment import Treatment
from calce_jax.moments.saliency import CLIP_SECONDS

Seconds = int | float

TREATMENT_LABELS: dict[Treatment, str] = {
    "full": "kept at full detail",
    "compressed": "compressed",
    "dropped": "dropped",
}
_TICK_STEPS = (1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600)
_MAX_TICKS = 10


def make_environment() -> jinja2.Environment:
    """Return the Jinja environment of the templates: values are escaped, an undefined name is an error."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("calce_jax.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def axis_percent(second: Seconds, duration: Seconds) -> float:
    """Return the position of a time on an axis from 0 to `duration`, in percent, clipped to [0, 100]."""
    return round(100 * min(max(second / duration, 0.0), 1.0), 3)


def curve_points(saliency: Sequence[float], duration: Seconds) -> str:
    """Return the points of an SVG polygon, the area below the saliency of clips; "" if there are none.

    The time axis is 100 wide; a saliency of 1 is at the top, y = 0, and one of 0 or less at the bottom, y = 1.
    """
    middles = [axis_percent((number + 0.5) * CLIP_SECONDS, duration) for number in range(len(saliency))]
    heights = [round(1 - min(max(value, 0), 1), 3) for value in saliency]
    points = [(middle, height) for middle, height in zip(middles, heights, strict=True)]
    if not points:
        return ""
    corners = [(0, 1), (0, heights[0]), *points, (100, heights[-1]), (100, 1)]
    return " ".join(f"{x:g},{y:g}" for x, y in corners)


def ticks(duration: Seconds) -> list[int]:
    """Return whole seconds to mark on an axis from 0 to `duration`: at most ten steps of a round number of seconds."""
    step = next((step for step in _TICK_STEPS if duration / step <= _MAX_TICKS), _TICK_STEPS[-1])
    return list(itertools.takewhile(lambda tick: tick <= duration, itertools.count(0, step)))
