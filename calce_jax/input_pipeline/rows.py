"""One row of a batch from an example of the tables.

Dimensions: T frames, Y X pixels, W windows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from calce_jax.config import Behaviour
from calce_jax.errors import UserError
from calce_jax.input_pipeline.augment import sample_crop
from calce_jax.input_pipeline.background import Background, FrameSource
from calce_jax.input_pipeline.example import Example
from calce_jax.input_pipeline.feature_store import FeatureStore, FrameKeys, checksums
from calce_jax.input_pipeline.speech_mask import mark_speech_frames
from calce_jax.text.caption import Caption
from calce_jax.text.captions import clean_captions, speech_intervals
from calce_jax.text.inverted import InvertedTask
from calce_jax.text.prompt import PromptWriter, mentions_speech, stage1_windows
from calce_jax.text.text_row import RowFlag
from calce_jax.video.decode import decode_jpeg, head_indices, jpeg_size

# Field of `Batch` -> array without the batch axis; "features" is a mapping of the fields of `Features`.
Row = Mapping[str, Any]


class InputError(UserError):
    """An example or an `InputConfig` is wrong; the message names the query and video, or the field, and the remedy."""


class RowMaker:
    """Makes rows of fixed shapes: the fields of a `Batch` without the batch axis.

    Args:
      writer: writes the text of a row; has the stage, the behaviour and the sizes.
      image_size: pixels of a side of the stored frames.
      max_windows: W, stage-1 windows of a row.
      use_captions: False makes rows without captions and without speech.
      decode_pixels: False makes rows without pixels, for videos that are encoded already
        (`calce_jax.inference.predictor`).
      feature_store: stored features, which are read in place of pixels.
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
        self.writer, self.image_size = writer, image_size
        self.max_windows, self.use_captions = max_windows, use_captions
        self.decode_pixels, self.feature_store = decode_pixels and feature_store is None, feature_store

    def __call__(
        self,
        example: Example,
        index: int,
        rng: np.random.Generator | None,
        out: UInt8[np.ndarray, "T Y X 3"] | None = None,
        *,
        inverted: InvertedTask | None = None,
        background: Background | None = None,
    ) -> Row:
        """Make the row of one example.

        Args:
          example: read from the tables.
          index: its row in the queries table.
          rng: draws the field `crop`; without one a row has no such field.
          out: array for the frames, such as a slice of a batch's; by default a new one.
          inverted: asks for the query, or a word of it, in place of the windows.
          background: replaces some frames.

        Raises:
          InputError: frames are not stored, damaged, of another size or without features; or the text cannot be
            written.
        """
        try:
            return self._row(example, index, rng, out, inverted=inverted, background=background)
        except ValueError as error:
            reason, remedy = (error.reason, error.remedy) if isinstance(error, UserError) else (str(error), "")
            before = "" if background is None else f" before frames of video {background.example.video}"
            raise InputError(f"query {example.qid} of video {example.video}{before}: {reason}", remedy) from error

    def padding_row(self, like: Row) -> Row:
        """Return a row of zeros in the shapes of another, with `row_mask` False, `example_index` -1 and no captions."""
        positions = np.full_like(like["caption_positions"], -1)
        zeros = jax.tree.map(np.zeros_like, dict(like))
        return {**zeros, "example_index": np.int32(-1), "caption_positions": positions}

    def _row(
        self,
        example: Example,
        index: int,
        rng: np.random.Generator | None,
        out: np.ndarray | None,
        *,
        inverted: InvertedTask | None,
        background: Background | None,
    ) -> Row:
        writer, sizes = self.writer, self.writer.sizes
        behaviour: Behaviour = writer.behaviour
        frame_positions = example.positions or stored_frame_positions(
            example.total_frames, example.indices, sizes.frames
        )
        times = np.asarray(example.times, np.float32)[frame_positions]
        if behaviour == "reference" and writer.stage == 2:
            times = np.round(times, 2)
        sources = [(example, position) for position in frame_positions]
        if background is not None:
            sources = background.replace(sources)
        jpegs = [source.keyframes[i] for source, i in sources]
        frames = self._decode_frames(jpegs, out)

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
        shown_query = example.query if inverted is None else inverted.shown_words
        text_row = writer.write(
            example.query,
            example.items,
            times,
            example.duration,
            captions,
            true_windows=example.windows,
            stage1_windows=windows,
            is_absent=example.is_absent,
            inverted=inverted,
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
            "caption_positions": text_row.caption_positions,
            "is_speech_query": np.bool_(bool(raw_captions) and mentions_speech(shown_query, behaviour)),
            "has_speech": _pad_first_axis(speech_mask, sizes.frames),
            "stage1_windows": _pad_first_axis(np.asarray(windows, np.float32).reshape(-1, 2), self.max_windows),
            "window_mask": np.arange(self.max_windows) < len(windows),
            "labels": text_row.labels,
            "row_mask": np.bool_(True),
            "example_index": np.int32(index),
            "row_flags": np.int32(text_row.row_flags | window_flags),
        }
        if rng is not None:
            fields["crop"] = np.array(sample_crop(rng, self.image_size, self.image_size), np.int32)
        if self.feature_store is None:
            return fields
        if background is None:
            features = self.feature_store.read(_frame_keys(example, frame_positions))
        else:
            features = _read_mixed_features(self.feature_store, sources)
        return fields | {"features": {name: _pad_first_axis(array, sizes.frames) for name, array in features.items()}}

    def _decode_frames(self, jpegs: Sequence[bytes], out: np.ndarray | None) -> UInt8[np.ndarray, "T Y X 3"]:
        frames, size = self.writer.sizes.frames, self.image_size
        if not self.decode_pixels:
            return np.zeros((frames, 0, 0, 3), np.uint8)
        if out is None:
            out = np.empty((frames, size, size, 3), np.uint8)
        clip, padding = out[: len(jpegs)], out[len(jpegs) :]
        decode_frames_into(jpegs, clip)
        padding[...] = 0
        return out


def _frame_keys(example: Example, positions: Sequence[int]) -> FrameKeys:
    """Return the keys of stored frames of a video."""
    jpegs = [example.keyframes[position] for position in positions]
    return FrameKeys(example.video, [int(example.indices[position]) for position in positions], checksums(jpegs))


def _read_mixed_features(store: FeatureStore, sources: Sequence[FrameSource]) -> dict[str, np.ndarray]:
    """Return the features of frames of several videos, by field of `Features`; a frame may repeat."""
    features: dict[str, np.ndarray] = {}
    for video in dict.fromkeys(example.video for example, _ in sources):
        rows = [row for row, (example, _) in enumerate(sources) if example.video == video]
        positions, repeats = np.unique([sources[row][1] for row in rows], return_inverse=True)
        for name, array in store.read(_frame_keys(sources[rows[0]][0], positions.tolist())).items():
            features.setdefault(name, np.empty((len(sources), *array.shape[1:]), array.dtype))[rows] = array[repeats]
    return features


def stored_frame_positions(total: int, indices: Sequence[int] | np.ndarray, frames: int) -> list[int]:
    """Return the positions among a video's stored frames of the frames that a model reads; more may be stored.

    Args:
      total: frames in the file.
      indices: of the stored frames in the file.
      frames: how many to read; all if the video has fewer.

    Raises:
      InputError: some are not stored.
    """
    wanted = head_indices(total, frames).tolist()
    positions = {index: position for position, index in enumerate(np.asarray(indices).tolist())}
    missing = [index for index in wanted if index not in positions]
    if missing:
        raise InputError(
            f"{len(missing)} of its {len(wanted)} frames are not among the {len(positions)} stored",
            f"prepare the videos with --frames={frames}",
        )
    return [positions[index] for index in wanted]


def decode_frames(jpegs: Sequence[bytes], size: int) -> UInt8[np.ndarray, "T Y X 3"]:
    """Decode the JPEG frames of a video, of Y = X = `size` pixels.

    Raises:
      InputError: as for `decode_frames_into`.
    """
    clip = np.empty((len(jpegs), size, size, 3), np.uint8)
    decode_frames_into(jpegs, clip)
    return clip


def decode_frames_into(jpegs: Sequence[bytes], out: UInt8[np.ndarray, "T Y X 3"]) -> None:
    """Decode the JPEG frames of a video into `out`.

    Raises:
      InputError: there are no frames, or one is damaged or of another size than `out`.
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
            raise InputError(f"frame {index} is not a JPEG ({error})", "prepare the video again") from None
        if (height, width) != (size, size):
            raise InputError(
                f"its frames are stored with {width} x {height} pixels, and the model reads {size} x {size}",
                f"prepare the videos with --image_size={size}",
            )


def stack_rows(rows: Sequence[Row], frames: UInt8[np.ndarray, "B T Y X 3"] | None = None) -> dict[str, Any]:
    """Stack rows into the fields of a batch.

    Args:
      rows: of a batch.
      frames: array that all rows were decoded into; by default frames are copied from the rows.
    """
    if frames is None:
        return jax.tree.map(lambda *arrays: np.stack(arrays), *map(dict, rows))
    without_frames = [{name: array for name, array in row.items() if name != "frames"} for row in rows]
    return {"frames": frames} | jax.tree.map(lambda *arrays: np.stack(arrays), *without_frames)


def _pad_first_axis(array: np.ndarray, size: int) -> np.ndarray:
    """Pad the first axis with zeros at its end to `size`."""
    if len(array) == size:
        return array
    return np.concatenate([array, np.zeros((size - len(array), *array.shape[1:]), array.dtype)])
