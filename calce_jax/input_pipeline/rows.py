"""From an example of the tables to one row of a batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from calce_jax.captions import clean, spoken_intervals
from calce_jax.input_pipeline.crops import crop_and_resize, draw_crop
from calce_jax.keyframes.spoken import spoken_frames
from calce_jax.prompt import PromptWriter, about_talking, stage1_windows
from calce_jax.text_row import Behaviour, Caption, Note
from calce_jax.video import decode_jpeg, head_indices
from data.moments import Example

Row = Mapping[str, np.ndarray | np.generic]


class InputError(ValueError):
    """An example that cannot become a row; the message names the query, its video, what is wrong and the remedy."""


class RowMaker:
    """Makes rows of fixed shapes, the fields of a `Batch` without B.

    Args:
      writer: of the text; has stage, behaviour and sizes.
      image_size: pixels of a side; that of the stored frames.
      windows: W, of stage 1.
      use_captions: without them nothing is heard: no caption enters a prompt, and no frame is spoken.
      pixels: False leaves frames without any, for a video that has been seen before (`calce_jax.looked`).
    """

    def __init__(self, writer: PromptWriter, *, image_size: int, windows: int, use_captions: bool, pixels: bool = True):
        self.writer, self.image_size, self.windows, self.use_captions = writer, image_size, windows, use_captions
        self.pixels = pixels

    def __call__(self, example: Example, number: int, augment: np.random.Generator | None) -> Row:
        """Make the row of one example.

        Args:
          example: read from the tables.
          number: its row in the queries table.
          augment: draws the crop; None shows the frames as they are.

        Raises:
          InputError: frames that are not stored, of another size or broken; a text that cannot be written.
        """
        try:
            return self._row(example, number, augment)
        except ValueError as error:
            raise InputError(f"query {example.qid} of video {example.video}: {error}") from error

    def filler(self, like: Row) -> Row:
        """Return a row that stands for nothing, shaped as another: not valid, of no query (-1)."""
        return {**{name: np.zeros_like(array) for name, array in like.items()}, "row": np.int32(-1)}

    def _row(self, example: Example, number: int, augment: np.random.Generator | None) -> Row:
        writer, sizes = self.writer, self.writer.sizes
        behaviour: Behaviour = writer.behaviour
        stored = self._stored(example)
        times = np.asarray(example.times, np.float32)[stored]
        if behaviour == "reference" and writer.stage == 2:
            times = np.round(times, 2)
        frames = self._frames([example.keyframes[i] for i in stored], augment)

        said = [Caption(*caption) for caption in example.captions] if self.use_captions else []
        spoken = spoken_frames(spoken_intervals(said, behaviour), example.duration, len(stored))
        captions = clean(said)

        windows, windows_note = [], Note(0)
        if writer.stage == 2:
            windows, windows_note = stage1_windows(example.stage1_windows, example.duration, behaviour)
            if len(windows) > self.windows:
                windows, windows_note = windows[: self.windows], windows_note | Note.WINDOWS_LEFT_OUT
        text = writer.write(
            example.query,
            example.items,
            times,
            example.duration,
            captions,
            answer=example.windows,
            reference_windows=windows,
        )
        return {
            "frames": _padded(frames, sizes.frames),
            "present": np.arange(sizes.frames) < len(stored),
            "times": _padded(times, sizes.frames),
            "duration": np.float32(example.duration),
            "tokens": text.tokens,
            "spans": text.spans,
            "query_words": text.query_words,
            "caption_words": text.caption_words,
            "talk": np.bool_(bool(said) and about_talking(example.query, behaviour)),
            "spoken": _padded(spoken, sizes.frames),
            "windows": _padded(np.asarray(windows, np.float32).reshape(-1, 2), self.windows),
            "window_valid": np.arange(self.windows) < len(windows),
            "labels": text.labels,
            "valid": np.bool_(True),
            "row": np.int32(number),
            "notes": np.int32(text.notes | windows_note),
        }

    def _stored(self, example: Example) -> list[int]:
        """Return where among the stored frames the wanted ones are; more may be stored than are wanted."""
        wanted = head_indices(example.total, self.writer.sizes.frames).tolist()
        place = {index: place for place, index in enumerate(np.asarray(example.indices).tolist())}
        missing = [index for index in wanted if index not in place]
        if missing:
            raise ValueError(
                f"{len(missing)} of its {len(wanted)} frames are not among the {len(place)} stored; "
                f"prepare the videos with --frames={self.writer.sizes.frames}"
            )
        return [place[index] for index in wanted]

    def _frames(self, keyframes: Sequence[bytes], augment: np.random.Generator | None) -> np.ndarray:
        if not self.pixels:
            return np.zeros((len(keyframes), 0, 0, 3), np.uint8)
        size = self.image_size
        frames = []
        for number, keyframe in enumerate(keyframes):
            try:
                frame = decode_jpeg(keyframe)
            except ValueError as error:
                raise ValueError(f"frame {number} is no JPEG ({error}); prepare the video again") from None
            if frame.shape != (size, size, 3):
                height, width = frame.shape[:2]
                raise ValueError(
                    f"its frames are stored with {width} x {height} pixels, and the model sees {size} x {size}; "
                    f"prepare the videos with --image_size={size}"
                )
            frames.append(frame)
        if not frames:
            raise ValueError("it has no frames; prepare the video again")
        clip = np.stack(frames)
        if augment is None:
            return clip
        return crop_and_resize(clip, draw_crop(augment, size, size), size, self.writer.behaviour)


def as_batch(rows: Sequence[Row]) -> dict[str, Any]:
    """Stack rows into the fields of a batch."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _padded(array: np.ndarray, size: int) -> np.ndarray:
    """Add zeros at the end of the first axis."""
    return np.concatenate([array, np.zeros((size - len(array), *array.shape[1:]), array.dtype)])
