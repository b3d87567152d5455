"""The timeline image: sample frames above bars of the true and the predicted windows, on one axis in seconds."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from calce_jax.report.page_parts import ticks

Seconds = int | float
Windows = Sequence[Sequence[Seconds]]

WIDTH = 960
_MARGIN, _LABEL_WIDTH, _STRIP_HEIGHT, _ROW_HEIGHT, _AXIS_HEIGHT = 12, 84, 84, 26, 24
_BACKGROUND, _LINE_COLOUR, _TEXT_COLOUR = (255, 255, 255), (224, 227, 232), (60, 66, 76)
_TRUTH_COLOUR = (14, 132, 103)
_STAGE_COLOURS = ((194, 101, 12), (44, 91, 209), (122, 79, 181))


def draw_timeline(
    truth: Windows,
    predicted_by_stage: Mapping[str, Windows],
    duration: Seconds,
    frames: UInt8[np.ndarray, "T h w 3"],
) -> UInt8[np.ndarray, "H W 3"]:
    """Draw the true and the predicted windows of one query.

    Args:
      truth: true windows [start, end] in seconds; may be empty.
      predicted_by_stage: windows [start, end, ...] of each stage, best first; the best is filled, others are outlined.
      duration: of the video, in seconds.
      frames: RGB frames at equal intervals over the video, in order of time.

    Raises:
      ValueError: the duration is not positive.
    """
    if not duration > 0:
        raise ValueError(f"duration must be a positive number of seconds, got {duration!r}")
    windows_by_name = {"true": truth, **predicted_by_stage}
    colours = [_TRUTH_COLOUR, *(_STAGE_COLOURS[i % len(_STAGE_COLOURS)] for i in range(len(predicted_by_stage)))]
    image = Image.new(
        "RGB", (WIDTH, 2 * _MARGIN + _STRIP_HEIGHT + _ROW_HEIGHT * len(windows_by_name) + _AXIS_HEIGHT), _BACKGROUND
    )
    _draw_frames(image, frames)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(13)
    top = _MARGIN + _STRIP_HEIGHT
    bottom = top + _ROW_HEIGHT * len(windows_by_name)
    for tick in ticks(duration):
        x = _x_of(tick, duration)
        draw.line((x, top + 4, x, bottom + 4), _LINE_COLOUR)
        draw.text((x, bottom + 6), f"{tick}", _TEXT_COLOUR, font, anchor="ma")
    for (name, windows), colour in zip(windows_by_name.items(), colours, strict=True):
        draw.text((_LABEL_WIDTH - 8, top + _ROW_HEIGHT / 2 + 2), name, _TEXT_COLOUR, font, anchor="rm")
        for index, (start, end, *_) in enumerate(windows):
            is_filled = index == 0 or name == "true"
            left, right = _x_of(start, duration), _x_of(end, duration)
            box = (left, top + 6, max(right, left + 2), top + _ROW_HEIGHT - 2)
            draw.rectangle(box, colour if is_filled else _BACKGROUND, colour, 2)
        top += _ROW_HEIGHT
    return np.array(image)


def _x_of(second: Seconds, duration: Seconds) -> int:
    """Return the x coordinate of a time in pixels; times outside the video are clipped."""
    return round(_LABEL_WIDTH + (WIDTH - _LABEL_WIDTH - _MARGIN) * min(max(second / duration, 0), 1))


def _draw_frames(image: Image.Image, frames: np.ndarray) -> None:
    """Paste the frames side by side, each scaled and cropped around its centre to an equal part of the axis."""
    for number, frame in enumerate(frames):
        left, right = _x_of(number, len(frames)), _x_of(number + 1, len(frames))
        width, height = max(right - left - 2, 1), _STRIP_HEIGHT - 4
        scale = max(width / frame.shape[1], height / frame.shape[0])
        size = max(round(frame.shape[1] * scale), width), max(round(frame.shape[0] * scale), height)
        picture = Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR)
        x, y = (size[0] - width) // 2, (size[1] - height) // 2
        image.paste(picture.crop((x, y, x + width, y + height)), (left + 1, _MARGIN))
