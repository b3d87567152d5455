"""What the tiny base model is taught: the truth of the lessons, at the sizes of a few scenes."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from calce_jax.models.calce import Calce
from calce_jax.models.calce_sizes import CalceConfig
from calce_jax.models.keyframes.plan import FramePlan
from calce_jax.models.selection import CaptionSelection, PromptSelection
from calce_jax.text.prompt import PromptWriter, TextSizes, decode_answer
from calce_jax.text.tokenizers import load_bert, load_t5
from data.shapes.batches import SceneDataset, frame_words
from data.shapes.pretrain.lessons import FIRST_SHARES, LAST_SHARES, QUESTIONS, LessonDataset, described_slot
from data.shapes.pretrain.pointing_loss import Labels, masked_sigmoid_loss, window_boundary_labels
from data.shapes.pretrain.pretrain import word_token_ids
from data.shapes.pretrain.text_stage import FrameTextEmbedder, init_text_stage, make_text_batch
from data.shapes.scene import COLOURS, SHAPES, make_scene

pytestmark = pytest.mark.slow

TOKENIZERS = Path(__file__).parents[2] / "calce_jax" / "assets" / "tiny"
WORDS = ("nothing", *COLOURS, *SHAPES)


@pytest.fixture(scope="module")
def t5():
    return load_t5(TOKENIZERS / "t5")


@pytest.fixture(scope="module")
def bert():
    return load_bert(TOKENIZERS / "bert")


@pytest.fixture(scope="module")
def dataset(t5, bert):
    sizes = [TextSizes(frames, 8, 24, 320, 32) for frames in (20, 40)]
    scenes = [make_scene(seed) for seed in range(6)]
    return SceneDataset(scenes, PromptWriter(t5, bert, sizes[0], stage=1), PromptWriter(t5, bert, sizes[1], stage=2))


@pytest.fixture(scope="module")
def lessons(t5, bert):
    sizes = (TextSizes(20, 8, 24, 320, 32), TextSizes(40, 8, 24, 320, 32))
    return LessonDataset([make_scene(seed) for seed in range(6)], t5, bert, sizes)


def test_what_is_said_of_a_frame_is_what_is_there():
    scene = make_scene(3)
    for track in scene.tracks:
        said, _ = frame_words(scene, (track.start + track.end) / 2)
        lane = said[2 * track.lane : 2 * track.lane + 2]
        assert " ".join(WORDS[word] for word in lane) == track.name
    assert not frame_words(scene, scene.duration + 1.0)[0].any()


def test_the_place_follows_the_motion():
    scene = next(s for s in map(make_scene, range(50)) if any(t.motion == "right" for t in s.tracks))
    track = next(t for t in scene.tracks if t.motion == "right")
    early, late = (frame_words(scene, at)[1][2 * track.lane + 1] for at in (track.start + 0.1, track.end - 0.1))
    assert -1 <= early < late <= 1


def test_a_told_prompt_has_what_the_plan_says(lessons):
    rng = np.random.default_rng(0)
    rows = [row for row in lessons.examples if row.lesson == "find"][:5]
    said, places, task = make_text_batch(rng, lessons, rows, "dense", 20)
    assert said.shape == places.shape == (5, 20, 4)
    assert (task.prompt_selection.frame_plan.frame_index == np.arange(20)).all()
    row = rows[0]
    for frame, _ in enumerate(task.batch.times[0]):
        there = {" ".join(WORDS[word] for word in said[0, frame, lane : lane + 2]) for lane in (0, 2)}
        shown = row.query.items[0] in there
        assert shown == task.labels.lane_mask[0, frame].any(), row.query.query


@pytest.mark.parametrize(("layout", "frames"), [("dense", 20), ("dense", 8), ("sparse", 20), ("stage2", 20)])
def test_the_answer_of_a_lesson_is_what_the_frames_of_its_prompt_show(lessons, t5, layout, frames):
    kinds = {row.lesson for row in lessons.examples}
    assert kinds == set(QUESTIONS)
    rows = lessons.examples
    said, _, task = make_text_batch(np.random.default_rng(1), lessons, rows, layout, frames)
    plan = task.prompt_selection.frame_plan
    for number, row in enumerate(rows):
        answer, scene = decode_answer(t5, task.batch.labels[number]), lessons.scenes[row.scene_index]
        times = task.batch.times[number][plan.frame_index[number]]
        if row.lesson == "recall":
            (spoken,) = [sentence.text for sentence in scene.sentences if sentence.noun == row.query.items[0]]
            assert answer == spoken
        elif row.query.kind == "caption":
            (spoken,) = [sentence for sentence in scene.sentences if sentence.noun == row.query.items[0]]
            both = f"{spoken.start} on,{spoken.end} off"
            assert answer == {"begin": str(spoken.start), "stop": str(spoken.end), "narrate": both}[row.lesson]
        elif row.lesson == "narrate":
            shown = [any(start <= at < end for start, end in row.query.windows) for at in times]
            said_of, is_on = [], False
            for at, is_shown in zip([*times, scene.duration], [*shown, False], strict=True):
                if is_shown != is_on:
                    said_of.append(f"{round(float(at))} {'on' if is_shown else 'off'}")
                is_on = is_shown
            assert answer == (",".join(said_of) or "-1")
        elif row.lesson in ("find", "begin", "stop"):
            shown = [any(start <= at < end for start, end in row.query.windows) for at in times]
            borders = list(zip([*times, scene.duration], [False, *shown], [*shown, False], strict=True))
            expected = {
                "find": [at for at, _, here in borders if here],
                "begin": [at for at, before, here in borders if here and not before],
                "stop": [at for at, before, here in borders if before and not here],
            }[row.lesson]
            assert answer == (",".join(str(round(float(at))) for at in expected) or "-1")
        else:
            word, second = row.query.query.rstrip("?").split()[-2:]
            slots = np.flatnonzero(times == np.float32(row.target_time))
            assert len(slots) == 1
            assert int(second) == round(row.target_time)
            slot = int(slots[0]) + {"before": -1, "at": 0, "after": 1}[word]
            words = said[number, slot] if 0 <= slot < len(times) else []
            pairs = [
                f"{WORDS[words[lane]]} {WORDS[words[lane + 1]]}" for lane in range(0, len(words), 2) if words[lane]
            ]
            assert answer == (",".join(pairs) or "-1")
            # Its words are in the prompt, not their sum.
            assert not 0 <= slot < len(times) or plan.is_keyframe[number, slot]


def test_every_lesson_has_its_share_of_a_batch(lessons):
    for shares in (FIRST_SHARES, LAST_SHARES):
        drawn = [row.lesson for row in lessons.draw(np.random.default_rng(0), 4000, shares)]
        assert sum(shares.values()) == pytest.approx(1.0)
        for lesson in QUESTIONS:
            assert abs(drawn.count(lesson) / 4000 - shares.get(lesson, 0.0)) < 0.03, lesson


def test_no_lesson_asks_for_a_moment(lessons, t5):
    rows = lessons.examples
    _, _, task = make_text_batch(np.random.default_rng(0), lessons, rows, "stage2", 20)
    for labels in task.batch.labels:
        assert "[" not in decode_answer(t5, labels)
    for question in QUESTIONS.values():
        assert "windows" not in question


def test_the_frame_after_the_last_shows_nothing(lessons):
    row = next(row for row in lessons.examples if row.lesson == "describe" and row.offset == 1)
    assert described_slot(row, np.array([row.target_frame - 1, row.target_frame])) is None
    assert described_slot(row, np.array([row.target_frame, row.target_frame + 1])) == 1


@pytest.mark.parametrize("layout", ["dense", "stage2"])
def test_only_the_caption_that_is_meant_is_told(lessons, layout):
    rows = [row for row in lessons.examples if row.query.kind == "caption"]
    _, _, task = make_text_batch(np.random.default_rng(0), lessons, rows, layout, 20)
    for row, order, used in zip(
        rows,
        task.prompt_selection.caption_selection.caption_index,
        task.prompt_selection.caption_selection.is_used,
        strict=True,
    ):
        assert [row.is_target_caption[caption] for caption in order[used]] == [True] * sum(row.is_target_caption)


def test_inside_marks_the_window_its_first_frame_and_the_one_after_it(dataset):
    times = np.arange(0, 40, 2, dtype=np.float32)
    plan = FramePlan(
        frame_index=np.array([[0, 2, 3, 4, 5]]),
        slot_mask=np.array([[True, True, True, True, False]]),
        is_keyframe=np.zeros((1, 5), bool),
        cluster=np.zeros((1, 20), np.int32),
        reference_error=np.zeros(1, bool),
    )
    rows = replace(dataset.make_batch(dataset.examples[:1], 1), times=times[None])
    truth = Labels(windows=np.array([[[3.0, 7.0], [20.0, 30.0]]]), lane_mask=np.zeros((1, 20, 2), bool))
    found = np.asarray(window_boundary_labels(jax.tree.map(jnp.asarray, rows), jax.tree.map(jnp.asarray, plan), truth))
    assert found[0, :, 0].tolist() == [False, True, True, False, False]
    assert found[0, :, 1].tolist() == [False, True, False, False, False]
    assert found[0, :, 2].tolist() == [False, False, False, True, False]


def test_the_pointer_counts_only_where_it_should():
    logits = jnp.asarray([[[0.0], [50.0], [-50.0]]])
    wanted = jnp.asarray([[[True], [True], [True]]])
    some = masked_sigmoid_loss(logits, wanted, jnp.asarray([[True, True, False]]))
    # ln 2 where undecided, 0 where right and sure; the third, wrong and sure, is not looked at.
    np.testing.assert_allclose(some, np.log(2) / 2, rtol=1e-6)


@pytest.mark.release
def test_frames_told_take_the_place_of_frames_seen(lessons, t5, bert):
    model = Calce(CalceConfig.tiny(len(t5), len(bert), lora=None), rngs=nnx.Rngs(0))
    init_text_stage(model)
    embedder = FrameTextEmbedder(model.config.t5.width, word_token_ids(t5), rngs=nnx.Rngs(1))
    rows = lessons.examples[:2]
    said, places, task = make_text_batch(np.random.default_rng(0), lessons, rows, "dense", 20)
    frames = embedder.embed_frames(model, jnp.asarray(said), jnp.asarray(places))
    plan = jax.tree.map(jnp.asarray, task.prompt_selection.frame_plan)
    choice: CaptionSelection = jax.tree.map(jnp.asarray, task.prompt_selection.caption_selection)
    prompt_selection = PromptSelection(
        frame_plan=plan, caption_selection=choice, prompt_lengths=jnp.zeros(2, jnp.int32)
    )
    x, mask = model.assemble_prompt(frames, jax.tree.map(jnp.asarray, task.batch), prompt_selection, 160)
    assert x.shape == (2, 160, model.config.t5.width)
    assert mask.any()
    # The first frame stands at the front: all of it, or what a compressed one keeps.
    full = model.config.qformer.query_tokens
    for sample in range(2):
        if plan.is_keyframe[sample, 0]:
            np.testing.assert_array_equal(x[sample, :full], frames[sample, 0, :full])
        else:
            np.testing.assert_array_equal(x[sample, 0], frames[sample, 0, full])
