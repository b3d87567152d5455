"""From an example of the tables to one row of a batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from calce_jax.config import Behaviour
from calce_jax.errors import UserError
from calce_jax.input_pipeline.augment import crop_and_resize, draw_crop
from calce_jax.input_pipeline.dataset import Example
from calce_jax.input_pipeline.feature_store import Clip, FeatureFolder, sums_of
from calce_jax.input_pipeline.speech_mask import spoken_frames
from calce_jax.text.captions import clean, spoken_intervals
from calce_jax.text.prompt import PromptWriter, about_talking, stage1_windows
from calce_jax.text.text_row import Caption, Note
from calce_jax.video.decode import decode_jpeg, head_indices, jpeg_size

# The fields of a `Batch`; those of `Features` are a mapping of their own.
Row = Mapping[str, Any]


class InputError(UserError):
    """An example that cannot become a row; the message names the query, its video, what is wrong and the remedy."""


class RowMaker:
    """Makes rows of fixed shapes, the fields of a `Batch` without B.

    Args:
      writer: of the text; has stage, behaviour and sizes.
      image_size: pixels of a side; that of the stored frames.
      windows: W, of stage 1.
      use_captions: without them nothing is heard: no caption enters a prompt, and no frame is spoken.
      pixels: False leaves frames without any, for a video that has been seen before (`calce_jax.inference.predict_step`).
      features: what the tower gave of the frames, which is read in place of their pixels.
    """

    def __init__(
        self,
        writer: PromptWriter,
        *,
        image_size: int,
        windows: int,
        use_captions: bool,
        pixels: bool = True,
        features: FeatureFolder | None = None,
    ):
        self.writer, self.image_size, self.windows, self.use_captions = writer, image_size, windows, use_captions
        self.pixels, self.features = pixels and features is None, features

    def __call__(
        self,
        example: Example,
        number: int,
        augment: np.random.Generator | None,
        into: UInt8[np.ndarray, "T Y X 3"] | None = None,
    ) -> Row:
        """Make the row of one example.

        Args:
          example: read from the tables.
          number: its row in the queries table.
          augment: draws the crop; None shows the frames as they are.
          into: where the frames are put, such as a part of a batch; by default they get memory of their own.

        Raises:
          InputError: frames that are not stored, of another size or broken, or without features; a text that cannot
            be written.
        """
        try:
            return self._row(example, number, augment, into)
        except ValueError as error:
            raise InputError(f"query {example.qid} of video {example.video}: {error}") from error

    def filler(self, like: Row) -> Row:
        """Return a row that stands for nothing, shaped as another: not valid, of no query (-1)."""
        return {**jax.tree.map(np.zeros_like, dict(like)), "row": np.int32(-1)}

    def _row(self, example: Example, number: int, augment: np.random.Generator | None, into: np.ndarray | None) -> Row:
        writer, sizes = self.writer, self.writer.sizes
        behaviour: Behaviour = writer.behaviour
        stored = places_of(example.total, example.indices, sizes.frames)
        times = np.asarray(example.times, np.float32)[stored]
        if behaviour == "reference" and writer.stage == 2:
            times = np.round(times, 2)
        jpegs = [example.keyframes[i] for i in stored]
        frames = self._frames(jpegs, augment, into)

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
        row = {
            "frames": frames,
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
        if self.features is None:
            return row
        clip = Clip(example.video, [int(example.indices[i]) for i in stored], sums_of(jpegs))
        return row | {
            "features": {name: _padded(array, sizes.frames) for name, array in self.features.read(clip).items()}
        }

    def _frames(
        self, jpegs: Sequence[bytes], augment: np.random.Generator | None, into: np.ndarray | None
    ) -> UInt8[np.ndarray, "T Y X 3"]:
        frames, size = self.writer.sizes.frames, self.image_size
        if not self.pixels:
            return np.zeros((frames, 0, 0, 3), np.uint8)
        if into is None:
            into = np.empty((frames, size, size, 3), np.uint8)
        clip, rest = into[: len(jpegs)], into[len(jpegs) :]
        decode(jpegs, clip)
        rest[...] = 0
        if augment is not None:
            clip[...] = crop_and_resize(clip, draw_crop(augment, size, size), size, self.writer.behaviour)
        return into


def places_of(total: int, indices: Sequence[int] | np.ndarray, frames: int) -> list[int]:
    """Return where among a video's stored frames the wanted ones are; more may be stored than are wanted.

    Args:
      total: frames in the file.
      indices: of the stored ones in the file.
      frames: how many are wanted, unless the video has fewer.

    Raises:
      InputError: some are not stored.
    """
    wanted = head_indices(total, frames).tolist()
    place = {index: place for place, index in enumerate(np.asarray(indices).tolist())}
    missing = [index for index in wanted if index not in place]
    if missing:
        raise InputError(
            f"{len(missing)} of its {len(wanted)} frames are not among the {len(place)} stored",
            f"prepare the videos with --frames={frames}",
        )
    return [place[index] for index in wanted]


def decoded(jpegs: Sequence[bytes], size: int) -> UInt8[np.ndarray, "T Y X 3"]:
    """Decode the frames of a video, which are Y = X = `size` pixels high and wide.

    Raises:
      InputError: as `decode`.
    """
    clip = np.empty((len(jpegs), size, size, 3), np.uint8)
    decode(jpegs, clip)
    return clip


def decode(jpegs: Sequence[bytes], clip: UInt8[np.ndarray, "T Y X 3"]) -> None:
    """Decode the frames of a video into `clip`, which has their size.

    Raises:
      InputError: there are none, or one is broken or of another size.
    """
    if not jpegs:
        raise InputError("it has no frames", "prepare the video again")
    size = clip.shape[1]
    for number, (jpeg, place) in enumerate(zip(jpegs, clip, strict=True)):
        try:
            height, width = jpeg_size(jpeg)
            if (height, width) == (size, size):
                decode_jpeg(jpeg, into=place)
        except ValueError as error:
            raise InputError(f"frame {number} is no JPEG ({error})", "prepare the video again") from None
        if (height, width) != (size, size):
            raise InputError(
                f"its frames are stored with {width} x {height} pixels, and the model sees {size} x {size}",
                f"prepare the videos with --image_size={size}",
            )


def as_batch(rows: Sequence[Row], frames: UInt8[np.ndarray, "B T Y X 3"] | None = None) -> dict[str, Any]:
    """Stack rows into the fields of a batch.

    Args:
      rows: of a batch.
      frames: of all rows, if these were made `into` it; by default they are copied from the rows.
    """
    if frames is None:
        return jax.tree.map(lambda *arrays: np.stack(arrays), *map(dict, rows))
    others = [{name: array for name, array in row.items() if name != "frames"} for row in rows]
    return {"frames": frames} | jax.tree.map(lambda *arrays: np.stack(arrays), *others)


def _padded(array: np.ndarray, size: int) -> np.ndarray:
    """Add zeros at the end of the first axis, where any are missing."""
    if len(array) == size:
        return array
    return np.concatenate([array, np.zeros((size - len(array), *array.shape[1:]), array.dtype)])
