"""Queries of the benchmark about a scene, by kind.

    visual     a shape, or its motion, with one window
    caption    what is said; can only be answered from captions
    several    a shape, or its motion, with two to four windows
    absent     does not happen in the scene; half of them differ from something that does by one word
    short      a shape that is on the screen for one or two seconds, once, in a video of mostly such shapes
    long       as visual or caption, in a video of 90 to 150 s
    keywords   two words, as people type them into a search box: "red circle", "about violin"

Scenes of the styles `SHORT` and `LONG` give queries of their own kind and no other, so that the other kinds are about
videos as long as the demo's.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from calce_jax.errors import UserError
from calce_jax.moments.annotations import Annotation
from data.shapes.facts import scene_facts
from data.shapes.scene import (
    CAPTION_QUERY_TEMPLATES,
    COLOURS,
    LONG,
    MOTIONS,
    NOUNS,
    PLAIN,
    SHAPES,
    SHORT,
    VISUAL_QUERY_TEMPLATES,
    Motion,
    Scene,
    SceneStyle,
    windows_by_motion,
)

STYLES: Mapping[str, SceneStyle] = {"plain": PLAIN, "short": SHORT, "long": LONG}
KINDS = ("visual", "caption", "several", "absent", "short", "long", "keywords")
KINDS_BY_STYLE = {
    "plain": ("visual", "caption", "several", "absent", "keywords"),
    "short": ("short",),
    "long": ("long",),
}
MAX_MOMENTS = 4
MAX_SHORT_SECONDS = 2

Windows = list[tuple[int, int]]


def choose_queries(videos: Mapping[str, tuple[str, Scene]], counts: Mapping[str, int], seed: int) -> list[Annotation]:
    """Return queries about videos, in the order of these, and of `KINDS` for each.

    Videos take turns, so that each has about as many queries of a kind as any other, and none twice.

    Args:
      videos: video id to the name of the scene's style and the scene.
      counts: kind to the number of its queries.
      seed: of what is drawn.

    Raises:
      UserError: the videos do not hold so many queries of a kind, or there is no such kind.
    """
    if unknown := set(counts) - set(KINDS):
        raise UserError(f"queries: there is no kind {', '.join(sorted(unknown))}", f"the kinds are {', '.join(KINDS)}")
    rng = np.random.default_rng([seed, 3])
    chosen: dict[str, list[Annotation]] = {video: [] for video in videos}
    for kind in KINDS:
        left = counts.get(kind, 0)
        candidates = {
            video: _candidates(rng, kind, video, scene)
            for video, (style, scene) in videos.items()
            if kind in KINDS_BY_STYLE[style]
        }
        held = sum(map(len, candidates.values()))
        if held < left:
            raise UserError(
                f"{kind}: {left} queries of this kind are asked for, {len(candidates)} videos hold {held}",
                "ask for fewer queries or for more videos",
            )
        while left:
            order = [video for video in candidates if candidates[video]]
            for number in rng.permutation(len(order))[:left]:
                chosen[order[number]].append(candidates[order[number]].pop())
                left -= 1
    return [row for rows in chosen.values() for row in _number(rows)]


def _number(rows: Sequence[Annotation]) -> Iterator[Annotation]:
    for number, row in enumerate(rows):
        yield replace(row, qid=f"{row.video}_{number}")


def _candidates(rng: np.random.Generator, kind: str, video: str, scene: Scene) -> list[Annotation]:
    """Return all queries of a kind about a scene, in random order, without ids."""
    facts = scene_facts(scene)
    drawn = list(_draw_queries(rng, kind, scene, facts))
    return [
        Annotation(
            qid="",
            video=video,
            query=query,
            items=[item],
            duration=scene.duration,
            windows=[list(window) for window in windows],
            kind=kind,
            fact=fact,
            facts=facts,
        )
        for query, item, fact, windows in (drawn[number] for number in rng.permutation(len(drawn)))
    ]


def _draw_queries(
    rng: np.random.Generator, kind: str, scene: Scene, facts: Sequence[str]
) -> Iterator[tuple[str, str, str, Windows]]:
    """Yield query, item, fact and windows."""
    if kind == "absent":
        yield from _absent_queries(rng, scene, facts)
    for (name, motion), windows in windows_by_motion(scene.tracks).items():
        fact = name if motion is None else f"{name} {motion}"
        if kind == "keywords":
            if motion is None and len(windows) <= MAX_MOMENTS:
                yield name, name, fact, sorted(windows)
        elif _is_of_kind(kind, windows):
            yield _visual_query(rng, name, motion), name, fact, sorted(windows)
    if kind in ("caption", "long", "keywords"):
        for sentence in scene.sentences:
            fact = f"about {sentence.noun}"
            query = fact if kind == "keywords" else _caption_query(rng, sentence.noun)
            yield query, sentence.noun, fact, [(sentence.start, sentence.end)]


def _is_of_kind(kind: str, windows: Windows) -> bool:
    if kind == "several":
        return 2 <= len(windows) <= MAX_MOMENTS
    is_short = windows[0][1] - windows[0][0] <= MAX_SHORT_SECONDS
    return len(windows) == 1 and (kind in ("visual", "long") or (kind == "short" and is_short))


def _absent_queries(
    rng: np.random.Generator, scene: Scene, facts: Sequence[str]
) -> Iterator[tuple[str, str, str, Windows]]:
    """Yield what differs by one word from something that happens, and as many queries that are drawn freely."""
    near = {
        (f"{colour} {shape}", motion)
        for track in scene.tracks
        for colour, shape, motion in (
            *((colour, track.shape, track.motion) for colour in COLOURS),
            *((track.colour, shape, track.motion) for shape in SHAPES),
            *((track.colour, track.shape, motion) for motion in MOTIONS),
        )
    }
    absent_near = [(name, motion) for name, motion in sorted(near) if f"{name} {motion}" not in facts]
    absent_nouns = [noun for noun in NOUNS if f"about {noun}" not in facts]
    count = min(len(absent_near), len(absent_nouns), 4)
    for number in rng.permutation(len(absent_near))[:count]:
        name, motion = absent_near[number]
        yield _visual_query(rng, name, motion), name, f"{name} {motion}", []
    for number in rng.permutation(len(absent_nouns))[: count // 2]:
        noun = absent_nouns[number]
        yield _caption_query(rng, noun), noun, f"about {noun}", []
    free = [name for colour in COLOURS for shape in SHAPES if (name := f"{colour} {shape}") not in facts]
    for number in rng.permutation(len(free))[: count - count // 2]:
        yield _visual_query(rng, free[number], None), free[number], free[number], []


def _visual_query(rng: np.random.Generator, name: str, motion: Motion | None) -> str:
    templates = VISUAL_QUERY_TEMPLATES[motion]
    return templates[int(rng.integers(len(templates)))].format(thing=name)


def _caption_query(rng: np.random.Generator, noun: str) -> str:
    return CAPTION_QUERY_TEMPLATES[int(rng.integers(len(CAPTION_QUERY_TEMPLATES)))].format(noun=noun)
