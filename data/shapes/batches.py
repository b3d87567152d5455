"""Scenes as batches without videos between: what the tiny base model is taught with.

Frames are drawn at the size of the scene's video and scaled down, so they look like frames of its video, less what the
video's codec does to them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from calce_jax.batch import Batch
from calce_jax.input_pipeline.speech_mask import spoken_frames
from calce_jax.text.captions import Caption, clean, spoken_intervals
from calce_jax.text.prompt import PromptWriter, TextRow, about_talking
from data.shapes.render import DIAMETER, position, render_frame
from data.shapes.scene import COLOURS, LANES, SHAPES, Scene, SceneQuery, make_scene

WINDOWS = 8


@dataclass(frozen=True)
class Asked:
    """One query about one scene of a pool, with its prompts for both stages."""

    scene: int
    query: SceneQuery
    coarse: TextRow
    fine: TextRow
    windows: tuple[tuple[int, int], ...]  # what a first stage may have answered
    about: tuple[bool, ...]  # which captions are what a caption query asks about


def draw(scene: Scene, second: float, side: int) -> np.ndarray:
    """Return the frame at `second` as the model sees it: uint8 RGB (side, side, 3)."""
    width, height = scene.size
    frame = Image.fromarray(render_frame(scene, second, height, width))
    return np.asarray(frame.resize((side, side), Image.Resampling.BILINEAR))


def frame_times(scene: Scene, frames: int) -> np.ndarray:
    """Return the times (float32, seconds) of the frames that a preparation of the scene's video picks."""
    total = round(scene.duration * scene.rate)
    return (np.linspace(0, total, frames + 1).astype(int)[:-1] / scene.rate).astype(np.float32)


def said_at(scene: Scene, second: float) -> tuple[np.ndarray, np.ndarray]:
    """Return what is to be said of a frame: for each lane the number of its colour's and of its shape's word.

    Words are numbered 0 nothing, then the colours, then the shapes: int32 (2 * LANES,). The second array (float32)
    tells at each shape's word where its middle is: -1 far left, 1 far right.
    """
    said, places = np.zeros(2 * LANES, np.int32), np.zeros(2 * LANES, np.float32)
    radius = DIAMETER / 2 * scene.size[1] / scene.size[0]
    for track in scene.tracks:
        if track.start <= second < track.end:
            said[2 * track.lane] = 1 + COLOURS.index(track.colour)
            said[2 * track.lane + 1] = 1 + len(COLOURS) + SHAPES.index(track.shape)
            places[2 * track.lane + 1] = 2 * position(track, second, radius)[0] - 1
    return said, places


def guessed(rng: np.random.Generator, windows: Sequence[Sequence[int]], duration: int) -> tuple[tuple[int, int], ...]:
    """Return windows as a first stage might answer: mostly a little off, now and then one missing or elsewhere."""
    found = []
    for window in windows:
        chance = rng.random()
        if chance < 0.15:
            first = int(rng.integers(0, duration - 4))
            window = (first, first + int(rng.integers(4, 13)))  # noqa: PLW2901
        elif chance < 0.3 and len(windows) > 1:
            continue
        start, end = (int(second + rng.integers(-2, 3)) for second in window)
        start = min(max(start, 0), duration - 2)
        found.append((start, min(max(end, start + 2), duration)))
    return tuple(sorted(found)) or ((0, duration),)


def _said(scene: Scene) -> list[Caption]:
    return [Caption(float(said.start), float(said.end), said.text) for said in scene.sentences]


class Pool:
    """Scenes, everything that is asked about them, and batches of it.

    Args:
      seeds: of the scenes.
      coarse, fine: write the prompts of stage 1 and of stage 2, the latter with twice the frames.

    Attributes:
      times: float32 (scenes, T), seconds.
      said, places: int32 and float32 (scenes, T, 2 * LANES), see `said_at`.
    """

    def __init__(self, seeds: Sequence[int], coarse: PromptWriter, fine: PromptWriter):
        self.scenes = [make_scene(seed) for seed in seeds]
        self.frames = fine.sizes.frames
        self._coarse, self._fine = coarse, fine
        self.times = np.stack([frame_times(scene, self.frames) for scene in self.scenes])
        told = [[said_at(scene, at) for at in times] for scene, times in zip(self.scenes, self.times, strict=True)]
        self.said, self.places = (np.array([[frame[i] for frame in frames] for frames in told]) for i in (0, 1))
        self.asked = [row for number, scene in enumerate(self.scenes) for row in self._rows(number, scene)]

    def _rows(self, number: int, scene: Scene) -> list[Asked]:
        rng = np.random.default_rng([scene.seed, 1])
        captions = clean(_said(scene))
        times = self.times[number]
        rows = []
        for query in scene.queries:
            windows = guessed(rng, query.windows, scene.duration)
            common = (query.query, query.items)
            coarse = self._coarse.write(*common, times[::2], scene.duration, captions, answer=query.windows)
            fine = self._fine.write(
                *common, times, scene.duration, captions, answer=query.windows, reference_windows=windows
            )
            about = [query.kind == "caption" and query.items[0] in caption.text.split() for caption in captions]
            about += [False] * (coarse.caption_words.shape[0] - len(about))
            rows.append(Asked(number, query, coarse, fine, windows, tuple(about[: coarse.caption_words.shape[0]])))
        return rows

    def shows(self, row: Asked) -> np.ndarray:
        """Return which lanes of which frames hold what is asked for, however it moves: bool (T, LANES)."""
        shown = np.zeros((self.frames, LANES), bool)
        for track in self.scenes[row.scene].tracks:
            if track.thing == row.query.items[0]:
                shown[:, track.lane] |= (track.start <= self.times[row.scene]) & (self.times[row.scene] < track.end)
        return shown

    def drawn(self, number: int, side: int) -> np.ndarray:
        """Return all frames of one scene: uint8 (T, side, side, 3)."""
        scene = self.scenes[number]
        return np.stack([draw(scene, float(second), side) for second in self.times[number]])

    def batch(self, rows: Sequence[Asked], stage: int) -> Batch:
        """Return a batch about these rows without frames, whose place what the vision tower made of them takes."""
        step = 2 if stage == 1 else 1
        texts = [row.coarse if stage == 1 else row.fine for row in rows]
        scenes = [self.scenes[row.scene] for row in rows]
        count, frames = len(rows), self.frames // step
        windows, valid = np.zeros((count, WINDOWS, 2), np.float32), np.zeros((count, WINDOWS), bool)
        for i, row in enumerate(rows):
            valid[i, : len(row.windows)] = True
            windows[i, : len(row.windows)] = row.windows
        spoken = [spoken_frames(spoken_intervals(_said(scene)), scene.duration, frames) for scene in scenes]
        return Batch(
            frames=np.zeros((count, frames, 1, 1, 3), np.uint8),
            present=np.ones((count, frames), bool),
            times=self.times[[row.scene for row in rows], ::step],
            duration=np.array([scene.duration for scene in scenes], np.float32),
            tokens=np.stack([text.tokens for text in texts]),
            spans=np.stack([text.spans for text in texts]),
            query_words=np.stack([text.query_words for text in texts]),
            caption_words=np.stack([text.caption_words for text in texts]),
            talk=np.array([about_talking(row.query.query) for row in rows]),
            spoken=np.stack(spoken),
            windows=windows,
            window_valid=valid,
            labels=np.stack([text.labels for text in texts]),
            valid=np.ones(count, bool),
            row=np.arange(count, dtype=np.int32),
            notes=np.array([int(text.notes) for text in texts], np.int32),
        )
