"""Scenes of the shapes world: the tracks of shapes, the spoken sentences, and the queries with their windows.

A scene is a function of its seed. Coloured shapes appear in two lanes, one above the other, so that they never overlap;
each stands still or moves to one side. Sentences are spoken at times. The windows of a query are computed from the
tracks and sentences, so they are complete: those of "a red circle moves to the left" are the times of every red circle
that does.

Another scene for a seed, or another frame (`render.py`), needs another `data.shapes.write.WORLD_VERSION`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
SHAPES = ("circle", "square", "triangle", "cross")
MOTIONS = ("stays", "left", "right")
LANES = 2
VIDEO_SIZES = ((192, 144), (176, 176), (256, 144), (200, 150))  # width, height
FRAME_RATES = (10.0, 12.0, 12.5, 15.0)

NOUNS = (
    *("lighthouse", "bridge", "bread", "violin", "garden", "castle", "river", "market", "rocket", "camera", "winter"),
    *("desert", "forest", "kitchen", "train", "mountain", "library", "dragon", "coffee", "museum", "bicycle"),
    *("harbour", "candle", "thunder"),
)
SENTENCE_TEMPLATES = (
    "let me tell you about the {noun} we found",
    "nobody had ever seen such a {noun} before",
    "the {noun} was much older than the town",
    "my sister still dreams of that {noun}",
    "we went back to look at the {noun} again",
    "you can hear them say that the {noun} is lovely",
)
VISUAL_QUERY_TEMPLATES = {
    "stays": ("A {thing} stays in one place.", "A {thing} stands still."),
    "left": ("A {thing} moves to the left.", "A {thing} travels to the left."),
    "right": ("A {thing} moves to the right.", "A {thing} travels to the right."),
    None: ("A {thing} is on the screen.", "A {thing} appears.", "We can see a {thing}."),
}
CAPTION_QUERY_TEMPLATES = (
    "Someone talks about a {noun}.",
    "A voice says something about a {noun}.",
    "They speak about a {noun}.",
)

Motion = Literal["stays", "left", "right"]
QueryKind = Literal["visual", "caption", "several"]


@dataclass(frozen=True)
class Track:
    """One shape that is visible from `start` to `end`, in seconds.

    Fields:
      lane: 0 (above) or 1.
      position: from 0 (left) to 1 (right); of a moving shape, where its motion begins, in the free width.
    """

    colour: str
    shape: str
    motion: Motion
    lane: int
    start: int
    end: int
    position: float

    @property
    def name(self) -> str:
        """Colour and shape, such as "red circle"."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Sentence:
    """A sentence that is spoken from `start` to `end`, in seconds, about `noun`."""

    start: int
    end: int
    text: str
    noun: str


@dataclass(frozen=True)
class SceneQuery:
    """A query about the scene: sentence, the items it names, and all its windows in whole seconds."""

    kind: QueryKind
    query: str
    items: tuple[str, ...]
    windows: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Scene:
    """A scene: `duration` in seconds, `fps` in frames per second, `size` (width, height) in pixels."""

    seed: int
    duration: int
    fps: float
    size: tuple[int, int]
    tracks: tuple[Track, ...]
    sentences: tuple[Sentence, ...]
    queries: tuple[SceneQuery, ...]


@dataclass(frozen=True)
class SceneStyle:
    """Lengths that are drawn for a scene: the least and the greatest, in whole seconds.

    Fields:
      duration: of the scene.
      track: of a shape on the screen; one at the end of the scene may be shorter than drawn, not than the least.
      pause: between two shapes of a lane.
      silence: between two sentences.
    """

    duration: tuple[int, int] = (20, 40)
    track: tuple[int, int] = (4, 12)
    pause: tuple[int, int] = (1, 5)
    silence: tuple[int, int] = (2, 8)


PLAIN = SceneStyle()
SHORT = SceneStyle(track=(1, 2), pause=(2, 6))
LONG = SceneStyle(duration=(90, 150), track=(6, 20), pause=(2, 10), silence=(8, 25))


def make_scene(seed: int, style: SceneStyle = PLAIN) -> Scene:
    """Return the scene of a seed, 20 to 40 s long if its style is plain, as in every dataset but the benchmark's."""
    rng = np.random.default_rng(seed)
    duration = _draw(rng, style.duration)
    tracks = _tracks(rng, duration, style)
    sentences = _sentences(rng, duration, style)
    return Scene(
        seed=seed,
        duration=duration,
        fps=_choose(rng, FRAME_RATES),
        size=_choose(rng, VIDEO_SIZES),
        tracks=tracks,
        sentences=sentences,
        queries=_queries(rng, tracks, sentences),
    )


def _choose(rng: np.random.Generator, choices):
    return choices[int(rng.integers(len(choices)))]


def _draw(rng: np.random.Generator, bounds: tuple[int, int]) -> int:
    return int(rng.integers(bounds[0], bounds[1] + 1))


def _tracks(rng: np.random.Generator, duration: int, style: SceneStyle) -> tuple[Track, ...]:
    tracks: list[Track] = []
    for lane in range(LANES):
        second = int(rng.integers(0, 4))
        while second + style.track[0] <= duration:
            end = min(second + _draw(rng, style.track), duration)
            tracks.append(_track(rng, tracks, lane, second, end))
            second = end + _draw(rng, style.pause)
    return tuple(sorted(tracks, key=lambda track: (track.start, track.lane)))


def _track(rng: np.random.Generator, others: list[Track], lane: int, start: int, end: int) -> Track:
    """Draw a track: often of a shape that appeared before, or a distractor that shares its colour or its shape."""
    colour, shape = _choose(rng, COLOURS), _choose(rng, SHAPES)
    if others:
        other, kind = _choose(rng, others), rng.random()
        colour = other.colour if kind < 0.55 else colour
        shape = other.shape if kind < 0.35 or kind > 0.8 else shape
    # The same shape twice at once, or with less than 2 s between, would be a single moment to a viewer.
    while any(
        (other.colour, other.shape) == (colour, shape) and start < other.end + 2 and other.start < end + 2
        for other in others
    ):
        colour, shape = _choose(rng, COLOURS), _choose(rng, SHAPES)
    return Track(colour, shape, _choose(rng, MOTIONS), lane, start, end, float(rng.uniform(0.15, 0.85)))


def _sentences(rng: np.random.Generator, duration: int, style: SceneStyle) -> tuple[Sentence, ...]:
    sentences, second = [], int(rng.integers(0, 6))
    nouns = [NOUNS[i] for i in rng.permutation(len(NOUNS))]
    while second + 4 <= duration and nouns:
        end = min(second + int(rng.integers(4, 9)), duration)
        noun = nouns.pop()
        sentences.append(Sentence(second, end, _choose(rng, SENTENCE_TEMPLATES).format(noun=noun), noun))
        second = end + _draw(rng, style.silence)
    return tuple(sentences)


def windows_by_motion(tracks: Sequence[Track]) -> dict[tuple[str, Motion | None], list[tuple[int, int]]]:
    """Return when each shape is on the screen, seconds, by its name and its motion, None for any."""
    windows: dict[tuple[str, Motion | None], list[tuple[int, int]]] = {}
    for track in tracks:
        for motion in (track.motion, None):
            windows.setdefault((track.name, motion), []).append((track.start, track.end))
    return windows


def _queries(
    rng: np.random.Generator, tracks: tuple[Track, ...], sentences: tuple[Sentence, ...]
) -> tuple[SceneQuery, ...]:
    """Return queries about two shapes with one window, one with several if there is any, and one sentence."""
    windows_by_query = windows_by_motion(tracks)
    once = [key for key, windows in windows_by_query.items() if len(windows) == 1]
    repeated = [key for key, windows in windows_by_query.items() if len(windows) > 1]
    chosen = [once[i] for i in rng.permutation(len(once))[:2]] + [
        repeated[i] for i in rng.permutation(len(repeated))[:1]
    ]
    queries = []
    for name, motion in chosen:
        windows = tuple(sorted(windows_by_query[name, motion]))
        text = _choose(rng, VISUAL_QUERY_TEMPLATES[motion]).format(thing=name)
        queries.append(SceneQuery("visual" if len(windows) == 1 else "several", text, (name,), windows))
    if sentences:
        sentence = _choose(rng, sentences)
        text = _choose(rng, CAPTION_QUERY_TEMPLATES).format(noun=sentence.noun)
        queries.append(SceneQuery("caption", text, (sentence.noun,), ((sentence.start, sentence.end),)))
    return tuple(queries)
