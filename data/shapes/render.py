"""Draw frames of a scene, at any size and time."""

from functools import lru_cache

import numpy as np

from data.shapes.scene import LANES, Scene, Track

COLOUR_RGB = {
    "red": (230, 40, 40),
    "green": (40, 200, 60),
    "blue": (50, 90, 240),
    "yellow": (240, 220, 40),
    "purple": (190, 60, 220),
    "white": (240, 240, 240),
}
DIAMETER = 0.4  # as a fraction of the frame's height
TRAVEL_FRACTION = 0.7  # of the frame's width that a moving shape crosses


def render_frame(scene: Scene, second: float, height: int, width: int) -> np.ndarray:
    """Return the frame at `second`, RGB uint8 (height, width, 3).

    A track is visible at its start and not at its end. Shapes keep their proportions of the scene's own size, so that a
    small frame looks like the video's frame scaled down.
    """
    frame = _background(18 + scene.seed % 30, height, width).copy()
    aspect = scene.size[0] / scene.size[1]
    radius_y, radius_x = DIAMETER / 2, DIAMETER / 2 / aspect
    for track in scene.tracks:
        if not track.start <= second < track.end:
            continue
        x, y = position(track, second, radius_x)
        top, bottom = int((y - radius_y) * height), int(np.ceil((y + radius_y) * height))
        left, right = int((x - radius_x) * width), int(np.ceil((x + radius_x) * width))
        top, left, bottom, right = max(top, 0), max(left, 0), min(bottom, height), min(right, width)
        # Pixel centres in units of the radius, relative to the centre of the shape.
        v = (((np.arange(top, bottom) + 0.5) / height - y) / radius_y)[:, None]
        u = (((np.arange(left, right) + 0.5) / width - x) / radius_x)[None, :]
        frame[top:bottom, left:right][_shape_mask(track.shape, u, v)] = COLOUR_RGB[track.colour]
    return frame


@lru_cache(maxsize=8)
def _background(shade: int, height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), (shade, shade, shade + 8), np.uint8)


def position(track: Track, second: float, radius: float) -> tuple[float, float]:
    """Return the centre (x, y) of a shape, as fractions of width and height; `radius` is a fraction of the width."""
    y = (track.lane + 0.5) / LANES
    if track.motion == "stays":
        return radius + track.position * (1 - 2 * radius), y
    progress = (second - track.start) / (track.end - track.start)
    free_width = 1 - 2 * radius - TRAVEL_FRACTION
    begin = radius + track.position * max(free_width, 0.0)
    distance = progress * min(TRAVEL_FRACTION, 1 - 2 * radius)
    return (begin + distance if track.motion == "right" else 1 - begin - distance), y


def _shape_mask(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    if shape == "circle":
        return u * u + v * v <= 1
    if shape == "square":
        return np.maximum(abs(u), abs(v)) <= 0.82
    if shape == "triangle":
        return (v <= 0.85) & (2 * abs(u) <= v + 1)
    return np.minimum(abs(u), abs(v)) <= 0.3
