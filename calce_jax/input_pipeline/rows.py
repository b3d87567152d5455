"""From an example of the tables to one row of a batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from calce_jax.config import Behaviour
from calce_jax.errors import UserError
from calce_jax.input_pipeline.augment import crop_and_resize, sample_crop
from calce_jax.input_pipeline.dataset import Example
from calce_jax.input_pipeline.feature_store import FeatureStore, FrameKeys, checksums
from calce_jax.input_pipeline.speech_mask import mark_speech_frames
from calce_jax.text.captions import clean_captions, speech_intervals
from calce_jax.text.prompt import PromptWriter, mentions_speech, stage1_windows
from calce_jax.text.text_row import Caption, RowFlag
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
      max_windows: W, of stage 1.
      use_captions: without them nothing is heard: no caption enters a prompt, and no frame is spoken.
      decode_pixels: False leaves frames without any, for a video that has been seen before (`calce_jax.inference.predict_step`).
      feature_store: what the tower gave of the frames, which is read in place of their pixels.
    """

    def __init__(
        self,
        writer: PromptWriter,
        *,
        image_size: int,
        max_windows: int,
        use_captions: bool,
        decode_pixels: bool = True,
        feature_store: FeatureStore | None = None,
    ):
        self.writer, self.image_size, self.max_windows, self.use_captions = (
            writer,
            image_size,
            max_windows,
            use_captions,
        )
        self.decode_pixels, self.feature_store = decode_pixels and feature_store is None, feature_store

    def __call__(
        self,
        example: Example,
        index: int,
        rng: np.random.Generator | None,
        out: UInt8[np.ndarray, "T Y X 3"] | None = None,
    ) -> Row:
        """Make the row of one example.

        Args:
          example: read from the tables.
          index: its row in the queries table.
          rng: draws the crop; None shows the frames as they are.
          out: where the frames are put, such as a part of a batch; by default they get memory of their own.

        Raises:
          InputError: frames that are not stored, of another size or broken, or without features; a text that cannot
            be written.
        """
        try:
            return self._row(example, index, rng, out)
        except ValueError as error:
            raise InputError(f"query {example.qid} of video {example.video}: {error}") from error

    def padding_row(self, like: Row) -> Row:
        """Return a row that stands for nothing, shaped as another: not valid, of no query (-1)."""
        return {**jax.tree.map(np.zeros_like, dict(like)), "example_index": np.int32(-1)}

    def _row(self, example: Example, index: int, rng: np.random.Generator | None, out: np.ndarray | None) -> Row:
        writer, sizes = self.writer, self.writer.sizes
        behaviour: Behaviour = writer.behaviour
        frame_positions = stored_frame_positions(example.total_frames, example.indices, sizes.frames)
        times = np.asarray(example.times, np.float32)[frame_positions]
        if behaviour == "reference" and writer.stage == 2:
            times = np.round(times, 2)
        jpegs = [example.keyframes[i] for i in frame_positions]
        frames = self._decode_frames(jpegs, rng, out)

        raw_captions = [Caption(*caption) for caption in example.captions] if self.use_captions else []
        speech_mask = mark_speech_frames(
            speech_intervals(raw_captions, behaviour), example.duration, len(frame_positions)
        )
        captions = clean_captions(raw_captions)

        windows, window_flags = [], RowFlag(0)
        if writer.stage == 2:
            windows, window_flags = stage1_windows(example.stage1_windows, example.duration, behaviour)
            if len(windows) > self.max_windows:
                windows, window_flags = windows[: self.max_windows], window_flags | RowFlag.STAGE1_WINDOWS_DROPPED
        text_row = writer.write(
            example.query,
            example.items,
            times,
            example.duration,
            captions,
            true_windows=example.windows,
            stage1_windows=windows,
        )
        fields = {
            "frames": frames,
            "frame_mask": np.arange(sizes.frames) < len(frame_positions),
            "times": _pad_first_axis(times, sizes.frames),
            "duration": np.float32(example.duration),
            "tokens": text_row.tokens,
            "spans": text_row.spans,
            "query_bert_tokens": text_row.query_bert_tokens,
            "caption_bert_tokens": text_row.caption_bert_tokens,
            "is_speech_query": np.bool_(bool(raw_captions) and mentions_speech(example.query, behaviour)),
            "has_speech": _pad_first_axis(speech_mask, sizes.frames),
            "stage1_windows": _pad_first_axis(np.asarray(windows, np.float32).reshape(-1, 2), self.max_windows),
            "window_mask": np.arange(self.max_windows) < len(windows),
            "labels": text_row.labels,
            "row_mask": np.bool_(True),
            "example_index": np.int32(index),
            "row_flags": np.int32(text_row.row_flags | window_flags),
        }
        if self.feature_store is None:
            return fields
        frame_keys = FrameKeys(example.video, [int(example.indices[i]) for i in frame_positions], checksums(jpegs))
        return fields | {
            "features": {
                name: _pad_first_axis(array, sizes.frames)
                for name, array in self.feature_store.read(frame_keys).items()
            }
        }

    def _decode_frames(
        self, jpegs: Sequence[bytes], rng: np.random.Generator | None, out: np.ndarray | None
    ) -> UInt8[np.ndarray, "T Y X 3"]:
        frames, size = self.writer.sizes.frames, self.image_size
        if not self.decode_pixels:
            return np.zeros((frames, 0, 0, 3), np.uint8)
        if out is None:
            out = np.empty((frames, size, size, 3), np.uint8)
        clip, padding = out[: len(jpegs)], out[len(jpegs) :]
        decode_frames_into(jpegs, clip)
        padding[...] = 0
        if rng is not None:
            clip[...] = crop_and_resize(clip, sample_crop(rng, size, size), size, self.writer.behaviour)
        return out


def stored_frame_positions(total: int, indices: Sequence[int] | np.ndarray, frames: int) -> list[int]:
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


def decode_frames(jpegs: Sequence[bytes], size: int) -> UInt8[np.ndarray, "T Y X 3"]:
    """Decode the frames of a video, which are Y = X = `size` pixels high and wide.

    Raises:
      InputError: as `decode`.
    """
    clip = np.empty((len(jpegs), size, size, 3), np.uint8)
    decode_frames_into(jpegs, clip)
    return clip


def decode_frames_into(jpegs: Sequence[bytes], out: UInt8[np.ndarray, "T Y X 3"]) -> None:
    """Decode the frames of a video into `out`, which has their size.

    Raises:
      InputError: there are none, or one is broken or of another size.
    """
    if not jpegs:
        raise InputError("it has no frames", "prepare the video again")
    size = out.shape[1]
    for index, (jpeg, frame) in enumerate(zip(jpegs, out, strict=True)):
        try:
            height, width = jpeg_size(jpeg)
            if (height, width) == (size, size):
                decode_jpeg(jpeg, out=frame)
        except ValueError as error:
            raise InputError(f"frame {index} is no JPEG ({error})", "prepare the video again") from None
        if (height, width) != (size, size):
            raise InputError(
                f"its frames are stored with {width} x {height} pixels, and the model sees {size} x {size}",
                f"prepare the videos with --image_size={size}",
            )


def stack_rows(rows: Sequence[Row], frames: UInt8[np.ndarray, "B T Y X 3"] | None = None) -> dict[str, Any]:
    """Stack rows into the fields of a batch.

    Args:
      rows: of a batch.
      frames: of all rows, if these were made `into` it; by default they are copied from the rows.
    """
    if frames is None:
        return jax.tree.map(lambda *arrays: np.stack(arrays), *map(dict, rows))
    without_frames = [{name: array for name, array in row.items() if name != "frames"} for row in rows]
    return {"frames": frames} | jax.tree.map(lambda *arrays: np.stack(arrays), *without_frames)


def _pad_first_axis(array: np.ndarray, size: int) -> np.ndarray:
    """Add zeros at the end of the first axis, where any are missing."""
    if len(array) == size:
        return array
    return np.concatenate([array, np.zeros((size - len(array), *array.shape[1:]), array.dtype)])
