"""What the tiny base model is taught: the truth of the lessons, at the sizes of a few scenes."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from calce_jax.models.calce import Calce, CalceConfig, PromptSelection
from calce_jax.models.keyframes.plan import FramePlan
from calce_jax.models.prompt_packing import CaptionSelection
from calce_jax.text.prompt import PromptWriter, TextSizes, decode_answer
from calce_jax.text.tokenizers import load_bert, load_t5
from data.shapes.batches import SceneDataset, frame_words
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
    return SceneDataset(range(6), PromptWriter(t5, bert, sizes[0], stage=1), PromptWriter(t5, bert, sizes[1], stage=2))


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


def test_a_told_prompt_has_what_the_plan_says(dataset, t5):
    rng = np.random.default_rng(0)
    rows = dataset.examples[:5]
    said, places, task = make_text_batch(rng, dataset, rows, 1, 20)
    assert said.shape == places.shape == (5, 20, 4)
    assert (task.prompt_selection.frame_plan.frame_index == np.arange(20)).all()
    row = rows[0]
    for frame, second in enumerate(task.batch.times[0]):
        there = {" ".join(WORDS[word] for word in said[0, frame, lane : lane + 2]) for lane in (0, 2)}
        shown = row.query.items[0] in there
        assert shown == task.labels.lane_mask[0, frame].any(), (row.query.query, second)
    assert decode_answer(t5, task.batch.labels[0]) == str([list(window) for window in row.query.windows])


@pytest.mark.parametrize("stage", [1, 2])
def test_only_the_caption_that_is_meant_is_told(dataset, stage):
    rows = [row for row in dataset.examples if row.query.kind == "caption"]
    _, _, task = make_text_batch(np.random.default_rng(0), dataset, rows, stage, 20)
    for row, order, used in zip(
        rows,
        task.prompt_selection.caption_selection.caption_index,
        task.prompt_selection.caption_selection.is_used,
        strict=True,
    ):
        assert [row.is_target_caption[caption] for caption in order[used]] == [True] * sum(row.is_target_caption)


def test_inside_marks_the_window_its_first_and_its_last_frame(dataset):
    times = np.arange(0, 40, 2, dtype=np.float32)
    plan = FramePlan(
        frame_index=np.array([[0, 2, 3, 4, 5]]),
        slot_mask=np.array([[True, True, True, True, False]]),
        is_keyframe=np.zeros((1, 5), bool),
        cluster=np.zeros((1, 20), np.int32),
        reference_error=np.zeros(1, bool),
    )
    rows = dataset.make_batch(dataset.examples[:1], 1).replace(times=times[None])
    truth = Labels(windows=np.array([[[3.0, 7.0], [8.0, 20.0]]]), lane_mask=np.zeros((1, 20, 2), bool))
    found = np.asarray(window_boundary_labels(jax.tree.map(jnp.asarray, rows), jax.tree.map(jnp.asarray, plan), truth))
    assert found[0, :, 0].tolist() == [False, True, True, True, False]
    assert found[0, :, 1].tolist() == [False, True, False, False, False]
    assert found[0, :, 2].tolist() == [False, False, False, True, False]


def test_the_pointer_counts_only_where_it_should():
    logits = jnp.asarray([[[0.0], [50.0], [-50.0]]])
    wanted = jnp.asarray([[[True], [True], [True]]])
    some = masked_sigmoid_loss(logits, wanted, jnp.asarray([[True, True, False]]))
    # ln 2 where undecided, 0 where right and sure; the third, wrong and sure, is not looked at.
    np.testing.assert_allclose(some, np.log(2) / 2, rtol=1e-6)


@pytest.mark.release
def test_frames_told_take_the_place_of_frames_seen(dataset, t5, bert):
    model = Calce(CalceConfig.tiny(len(t5), len(bert), lora=None), rngs=nnx.Rngs(0))
    init_text_stage(model)
    embedder = FrameTextEmbedder(model.config.t5.width, word_token_ids(t5), rngs=nnx.Rngs(1))
    rows = dataset.examples[:2]
    said, places, task = make_text_batch(np.random.default_rng(0), dataset, rows, 1, 20)
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
