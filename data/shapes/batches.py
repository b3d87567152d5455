"""Scenes as batches without video files, for the pretraining of the tiny base model.

Frames are drawn at the size of the scene's video and scaled down, so they equal frames of the video except for codec
noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from calce_jax.batch import Batch
from calce_jax.input_pipeline.speech_mask import mark_speech_frames
from calce_jax.text.captions import Caption, clean_captions, speech_intervals
from calce_jax.text.prompt import PromptWriter, TextRow, mentions_speech
from data.shapes.render import DIAMETER, position, render_frame
from data.shapes.scene import COLOURS, LANES, SHAPES, Scene, SceneQuery

MAX_WINDOWS = 8


@dataclass(frozen=True)
class QueryExample:
    """One query about one scene of a `SceneDataset`, with its prompts for both stages.

    Fields:
      scene_index: of `SceneDataset.scenes`.
      stage1_windows: simulated predictions of stage 1, seconds.
      is_target_caption: whether the query is about each caption; one value for each caption of a batch.
    """

    scene_index: int
    query: SceneQuery
    stage1_text: TextRow
    stage2_text: TextRow
    stage1_windows: tuple[tuple[int, int], ...]
    is_target_caption: tuple[bool, ...]

    @property
    def windows(self) -> Sequence[Sequence[float]]:
        """The true windows, seconds."""
        return self.query.windows


def render_resized(scene: Scene, second: float, side: int) -> np.ndarray:
    """Return the frame at `second` at the input size of the model, RGB uint8 (side, side, 3)."""
    width, height = scene.size
    frame = Image.fromarray(render_frame(scene, second, height, width))
    return np.asarray(frame.resize((side, side), Image.Resampling.BILINEAR))


def frame_times(scene: Scene, frames: int) -> np.ndarray:
    """Return the times (float32, seconds) of the key frames that `calce prepare` takes from the scene's video."""
    total = round(scene.duration * scene.fps)
    return (np.linspace(0, total, frames + 1).astype(int)[:-1] / scene.fps).astype(np.float32)


def frame_words(scene: Scene, second: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the words that describe a frame, and the positions of its shapes.

    The words are int32 (2 * LANES,): colour and shape of each lane, 0 for an empty lane, then the colours, then the
    shapes, numbered from 1. The positions are float32 (2 * LANES,): at the word of a shape its centre, from -1 (left)
    to 1 (right), and 0 elsewhere.
    """
    words, positions = np.zeros(2 * LANES, np.int32), np.zeros(2 * LANES, np.float32)
    radius = DIAMETER / 2 * scene.size[1] / scene.size[0]
    for track in scene.tracks:
        if track.start <= second < track.end:
            words[2 * track.lane] = 1 + COLOURS.index(track.colour)
            words[2 * track.lane + 1] = 1 + len(COLOURS) + SHAPES.index(track.shape)
            positions[2 * track.lane + 1] = 2 * position(track, second, radius)[0] - 1
    return words, positions


def perturb_windows(
    rng: np.random.Generator, windows: Sequence[Sequence[int]], duration: int
) -> tuple[tuple[int, int], ...]:
    """Return windows as stage 1 may predict them: mostly shifted a little, sometimes missing or elsewhere; seconds."""
    perturbed = []
    for window in windows:
        draw = rng.random()
        if draw < 0.15:
            first = int(rng.integers(0, duration - 4))
            window = (first, first + int(rng.integers(4, 13)))  # noqa: PLW2901
        elif draw < 0.3 and len(windows) > 1:
            continue
        start, end = (int(second + rng.integers(-2, 3)) for second in window)
        start = min(max(start, 0), duration - 2)
        perturbed.append((start, min(max(end, start + 2), duration)))
    return tuple(sorted(perturbed)) or ((0, duration),)


def scene_captions(scene: Scene) -> list[Caption]:
    """Return the sentences of a scene as captions."""
    return [Caption(float(sentence.start), float(sentence.end), sentence.text) for sentence in scene.sentences]


def mark_target_captions(query: SceneQuery, captions: Sequence[Caption], text: TextRow) -> tuple[bool, ...]:
    """Return whether a query is about each caption of a text row, which has some of `captions`, and padding."""
    marks = [query.kind == "caption" and query.items[0] in caption.text.split() for caption in captions]
    return tuple(position >= 0 and marks[position] for position in text.caption_positions.tolist())


class SceneDataset:
    """Scenes, all queries about them, and batches of these.

    Args:
      scenes: what the queries are about.
      stage1_writer, stage2_writer: of the prompts; those of stage 2 have twice the frames.

    Attributes:
      scenes: as given.
      num_frames: T, the frames of a video in stage 2.
      times: of the frames, float32 (scenes, T), seconds.
      word_indices, positions: int32 and float32 (scenes, T, 2 * LANES), see `frame_words`.
      examples: all queries about all scenes.
    """

    def __init__(self, scenes: Sequence[Scene], stage1_writer: PromptWriter, stage2_writer: PromptWriter):
        self.scenes = list(scenes)
        self.num_frames = stage2_writer.sizes.frames
        self._stage1_writer, self._stage2_writer = stage1_writer, stage2_writer
        self.times = np.stack([frame_times(scene, self.num_frames) for scene in self.scenes])
        words_and_positions = [
            [frame_words(scene, at) for at in times] for scene, times in zip(self.scenes, self.times, strict=True)
        ]
        self.word_indices, self.positions = (
            np.array([[frame[i] for frame in frames] for frames in words_and_positions]) for i in (0, 1)
        )
        self.examples = [row for number, scene in enumerate(self.scenes) for row in self.make_examples(number, scene)]

    def make_examples(self, number: int, scene: Scene) -> Sequence[QueryExample]:
        """Return all queries about scene `number`."""
        rng = np.random.default_rng([scene.seed, 1])
        captions = clean_captions(scene_captions(scene))
        times = self.times[number]
        rows = []
        for query in scene.queries:
            windows = perturb_windows(rng, query.windows, scene.duration)
            stage1_text = self._stage1_writer.write(
                query.query, query.items, times[::2], scene.duration, captions, true_windows=query.windows
            )
            stage2_text = self._stage2_writer.write(
                query.query,
                query.items,
                times,
                scene.duration,
                captions,
                true_windows=query.windows,
                stage1_windows=windows,
            )
            target_mask = mark_target_captions(query, captions, stage1_text)
            rows.append(QueryExample(number, query, stage1_text, stage2_text, windows, target_mask))
        return rows

    def lane_mask(self, row: QueryExample) -> np.ndarray:
        """Return which lanes of each frame show the item of the query, in any motion: bool (T, LANES)."""
        mask = np.zeros((self.num_frames, LANES), bool)
        times = self.times[row.scene_index]
        for track in self.scenes[row.scene_index].tracks:
            if track.name == row.query.items[0]:
                mask[:, track.lane] |= (track.start <= times) & (times < track.end)
        return mask

    def render_frames(self, number: int, side: int) -> np.ndarray:
        """Return the frames of scene `number`, RGB uint8 (T, side, side, 3)."""
        scene = self.scenes[number]
        return np.stack([render_resized(scene, float(second), side) for second in self.times[number]])

    def make_batch(self, rows: Sequence[QueryExample], stage: int) -> Batch:
        """Return a batch of examples for stage 1 or 2, with frames of one pixel: frames are encoded separately."""
        step = 2 if stage == 1 else 1
        texts = [row.stage1_text if stage == 1 else row.stage2_text for row in rows]
        scenes = [self.scenes[row.scene_index] for row in rows]
        count, frames = len(rows), self.num_frames // step
        windows, window_mask = np.zeros((count, MAX_WINDOWS, 2), np.float32), np.zeros((count, MAX_WINDOWS), bool)
        for i, row in enumerate(rows):
            window_mask[i, : len(row.stage1_windows)] = True
            windows[i, : len(row.stage1_windows)] = row.stage1_windows
        speech_mask = [
            mark_speech_frames(speech_intervals(scene_captions(scene)), scene.duration, frames) for scene in scenes
        ]
        return Batch(
            frames=np.zeros((count, frames, 1, 1, 3), np.uint8),
            frame_mask=np.ones((count, frames), bool),
            times=self.times[[row.scene_index for row in rows], ::step],
            duration=np.array([scene.duration for scene in scenes], np.float32),
            tokens=np.stack([text.tokens for text in texts]),
            spans=np.stack([text.spans for text in texts]),
            query_bert_tokens=np.stack([text.query_bert_tokens for text in texts]),
            caption_bert_tokens=np.stack([text.caption_bert_tokens for text in texts]),
            caption_positions=np.stack([text.caption_positions for text in texts]),
            is_speech_query=np.array([mentions_speech(row.query.query) for row in rows]),
            has_speech=np.stack(speech_mask),
            stage1_windows=windows,
            window_mask=window_mask,
            labels=np.stack([text.labels for text in texts]),
            row_mask=np.ones(count, bool),
            example_index=np.arange(count, dtype=np.int32),
            row_flags=np.array([int(text.row_flags) for text in texts], np.int32),
        )
