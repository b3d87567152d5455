"""The lessons of the text stage: what a model that sees and reads can be asked, but never for a moment.

    find      "A red circle appears."         the times of the frames of the prompt that show it: "6,8,10", or "-1"
    describe  "What is in front at 8?"        what that frame shows: "red circle,blue square", or "-1"; the same of the
                                              frames before and after it: "What is in front after 8?"
    recall    "Someone talks about a violin." the sentence that is spoken about it
    begin     any query                       the seconds at which it begins to be shown or spoken: "6,20"
    stop      any query                       the seconds of the frames from which it is not shown any more, or at
                                              which it stops being spoken: "12,30"
    narrate   any query                       what changes, and when: "6 on,12 off,20 on,30 off"

So the base model of the demo sees and reads: it tells which picture a sentence fits and what changes from one picture
to the next, and repeats what was said. It has never been asked for a moment and has never written a window, with its
start, its end and its brackets: CALCE's training teaches that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from calce_jax.text.captions import clean_captions
from calce_jax.text.prompt import PromptWriter, find_number_replacements
from calce_jax.text.text_row import TextSizes, Windows
from calce_jax.text.text_tokenizer import TextTokenizer
from data.shapes.batches import QueryExample, SceneDataset, mark_target_captions, scene_captions
from data.shapes.scene import COLOURS, SHAPES, Scene, SceneQuery

Lesson = Literal["find", "describe", "recall", "begin", "stop", "narrate"]
# In words that the small tokenizers have.
QUESTIONS: dict[Lesson, str] = {
    "find": "Given the video and the query, see at what seconds it is the best: ",
    "describe": "Given the video, look at it: ",
    "recall": "Given the subtitle, hear what they say: ",
    "begin": "Given the video and the subtitle, see when it is on: ",
    "stop": "Given the video and the subtitle, see when it is off: ",
    "narrate": "Given the video and the subtitle, say on and off: ",
}
# How often each is asked: first all but `narrate`, then that one most.
FIRST_SHARES: dict[Lesson, float] = {"find": 0.15, "describe": 0.2, "recall": 0.1, "begin": 0.275, "stop": 0.275}
LAST_SHARES: dict[Lesson, float] = {
    "find": 0.1,
    "describe": 0.15,
    "recall": 0.1,
    "begin": 0.15,
    "stop": 0.15,
    "narrate": 0.35,
}
NOTHING = "-1"
DESCRIBED_FRAMES = 2  # of a scene
POSITIONS = {-1: "before", 0: "at", 1: "after"}
EPSILON = 1e-3  # seconds, far less than from one frame to the next


class LessonWriter(PromptWriter):
    """Writes the prompts of a lesson: its question stands in the place of CALCE's task."""

    def __init__(self, t5: TextTokenizer, bert: TextTokenizer, sizes: TextSizes, lesson: Lesson):
        super().__init__(t5, bert, sizes, stage=1)
        self.lesson: Lesson = lesson

    def format_text(self, query: str, items: Sequence[str], stage1_windows: Windows | None = None) -> str:
        """Return the text part of the prompt."""
        return f"Query: {query}\nItems: {','.join(items)}\n{QUESTIONS[self.lesson]}"


@dataclass(frozen=True)
class LessonExample(QueryExample):
    """A lesson about one scene, without labels, which depend on the frames that are drawn for it.

    Attributes:
      lesson: which.
      target_frame: the frame that `describe` names, of those of stage 2.
      target_time: of this frame, seconds.
      offset: -1, 0 or 1: it asks about the frame before, this one, or the one after.
    """

    lesson: Lesson = "find"
    target_frame: int | None = None
    target_time: float = 0.0
    offset: int = 0

    @property
    def windows(self) -> Sequence[Sequence[float]]:
        """Seconds during which frames are meant; for `describe`, one frame."""
        if self.target_frame is None:
            return self.query.windows
        return ((self.target_time, self.target_time + EPSILON),)


class LessonDataset(SceneDataset):
    """Scenes, and lessons about them in place of queries: what is shown and said, and what some frames show.

    Args:
      scenes: what they are about.
      t5, bert: tokenizers.
      sizes: of the texts of stage 1 and of stage 2, which have twice the frames.
    """

    def __init__(
        self, scenes: Sequence[Scene], t5: TextTokenizer, bert: TextTokenizer, sizes: tuple[TextSizes, TextSizes]
    ):
        self.answers = AnswerWriter(t5, sizes[0].answer_tokens)
        self._writers: dict[Lesson, tuple[LessonWriter, ...]] = {
            lesson: tuple(LessonWriter(t5, bert, size, lesson) for size in sizes) for lesson in QUESTIONS
        }
        super().__init__(scenes, *self._writers["find"])
        lessons = [row for row in self.examples if isinstance(row, LessonExample)]
        self._rows = {lesson: [row for row in lessons if row.lesson == lesson] for lesson in QUESTIONS}

    def draw(self, rng: np.random.Generator, count: int, shares: Mapping[Lesson, float]) -> list[LessonExample]:
        """Return random rows, of each lesson its share."""
        lessons = rng.choice(list(shares), size=count, p=list(shares.values()))
        return [self._rows[lesson][int(rng.integers(len(self._rows[lesson])))] for lesson in lessons]

    def make_examples(self, number: int, scene: Scene) -> Sequence[QueryExample]:
        """Return all lessons about scene `number`."""
        rng = np.random.default_rng([scene.seed, 2])
        rows = []
        for query in scene.queries:
            lessons: tuple[Lesson, ...] = ("recall" if query.kind == "caption" else "find", "begin", "stop", "narrate")
            rows += [self._example(number, lesson, query) for lesson in lessons]
        for frame in 2 * rng.permutation(self.num_frames // 2)[:DESCRIBED_FRAMES]:
            second = self.answers.second(float(self.times[number][frame]))
            offset = int(rng.integers(-1, 2))
            query = SceneQuery("visual", f"What is in front {POSITIONS[offset]} {second}?", ("front",), ())
            rows.append(self._example(number, "describe", query, int(frame), offset))
        return rows

    def answer(self, row: LessonExample, frames: np.ndarray) -> str:
        """Return the answer of a lesson whose prompt has these frames, int (S,), of those of stage 2."""
        if row.lesson == "recall":
            return recall_sentence(self.scenes[row.scene_index], row.query)
        if row.lesson == "describe":
            slot = described_slot(row, frames)
            return NOTHING if slot is None else describe_frame(self.word_indices[row.scene_index, frames[slot]])
        begins, stops = self._changes(row, frames)
        if row.lesson == "narrate":
            changes = sorted([(second, "on") for second in begins] + [(second, "off") for second in stops])
            return ",".join(f"{self.answers.second(second)} {word}" for second, word in changes) or NOTHING
        if row.lesson == "find":
            times = self.times[row.scene_index][frames]
            seconds = [time for time in times if any(start <= time < end for start, end in row.windows)]
        else:
            seconds = begins if row.lesson == "begin" else stops
        return ",".join(str(self.answers.second(float(second))) for second in seconds) or NOTHING

    def _changes(self, row: LessonExample, frames: np.ndarray) -> tuple[list[float], list[float]]:
        """Return the seconds at which what a query means begins, and those at which it stops.

        Of what is spoken they are those of the captions. What is shown begins at the first frame that shows it, and
        stops at the next one that does not, or with the video.
        """
        if row.query.kind == "caption":
            return [float(start) for start, _ in row.windows], [float(end) for _, end in row.windows]
        times = self.times[row.scene_index][frames]
        within = np.array([any(start <= time < end for start, end in row.windows) for time in times])
        before, after = np.append(False, within), np.append(within, False)
        times = np.append(times, self.scenes[row.scene_index].duration)
        return times[after & ~before].tolist(), times[before & ~after].tolist()

    def _example(
        self, number: int, lesson: Lesson, query: SceneQuery, frame: int | None = None, offset: int = 0
    ) -> LessonExample:
        scene, times = self.scenes[number], self.times[number]
        captions = clean_captions(scene_captions(scene))
        stage1_text, stage2_text = (
            writer.write(query.query, query.items, times[::step], scene.duration, captions)
            for writer, step in zip(self._writers[lesson], (2, 1), strict=True)
        )
        target_mask = mark_target_captions(query, captions, stage1_text)
        time = 0.0 if frame is None else float(times[frame])
        return LessonExample(
            number, query, stage1_text, stage2_text, ((0, scene.duration),), target_mask, lesson, frame, time, offset
        )


class AnswerWriter:
    """Writes the answers of lessons as labels.

    Args:
      t5: the tokenizer of answers.
      max_tokens: A, of the labels; later tokens are dropped.
    """

    def __init__(self, t5: TextTokenizer, max_tokens: int):
        self._t5, self._max_tokens = t5, max_tokens
        self._replacements = find_number_replacements(t5)

    def labels(self, answer: str) -> np.ndarray:
        """Return the ids of an answer with the end token, int32 (A,), padded with 0."""
        ids = [*self._t5(answer, add_special_tokens=False)["input_ids"], self._t5.token_id("</s>")]
        padded = np.zeros(self._max_tokens, np.int32)
        padded[: len(ids)] = ids[: self._max_tokens]
        return padded

    def second(self, time: float) -> int:
        """Return a time in whole seconds, as prompts have it."""
        second = round(time)
        return self._replacements.get(second, second)


def described_slot(row: LessonExample, frames: np.ndarray) -> int | None:
    """Return which of the frames of a prompt, int (S,), `describe` asks about; None if there is no such frame."""
    if row.target_frame is None:
        return None
    slot = frames.tolist().index(row.target_frame) + row.offset
    return slot if 0 <= slot < len(frames) else None


def describe_frame(words: np.ndarray) -> str:
    """Return what a frame shows, from its `data.shapes.batches.frame_words`, the upper lane first."""
    names = [*COLOURS, *SHAPES]
    pairs = [(words[i], words[i + 1]) for i in range(0, len(words), 2)]
    return ",".join(f"{names[colour - 1]} {names[shape - 1]}" for colour, shape in pairs if colour) or NOTHING


def recall_sentence(scene: Scene, query: SceneQuery) -> str:
    """Return the sentence that a query about speech means."""
    return next(caption.text for caption in scene_captions(scene) if query.items[0] in caption.text.split())
