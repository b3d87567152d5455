"""Runs with a frozen `ln_vision`: the Q-Former's tokens of a frame are constant, and can be stored."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks.aot.flops import count_flops
from calce_jax.checkpoints.params_file import save_params
from calce_jax.checkpoints.restore import check_ln_vision_frozen
from calce_jax.config import ConfigError, to_dict, validate
from calce_jax.datasets.tables import build_tables
from calce_jax.distributed.param_names import named_leaves
from calce_jax.distributed.sharding import build_mesh
from calce_jax.inference.extract_features import VideoDataset, extract_features
from calce_jax.inference.length_grouping import LengthGrouper, make_batch_predictor
from calce_jax.inference.predict_step import make_predict
from calce_jax.inference.prediction import step_config
from calce_jax.input_pipeline.feature_fingerprint import check_features, make_feature_metadata, weights_hash
from calce_jax.input_pipeline.feature_store import FeaturesError, FeatureStore
from calce_jax.models.feature_codec import dequantize, load_or_encode, quantize
from calce_jax.models.vision_features import QFormerFeatures
from calce_jax.training.optimizer import make_optimizer
from calce_jax.training.state import create_train_state
from calce_jax.training.train_step import make_train_step
from tests.helpers.commands import run_script
from tests.helpers.search_stages import make_stages
from tests.helpers.stored_features import (
    TRAIN,
    VAL,
    batches,
    frame_keys_of,
    loss_gradient_vector,
    make_video,
    with_features,
)
from tests.helpers.tiny_model import FRAMES, SIZES, STEPS, make_batch, make_model

pytestmark = pytest.mark.slow

FROZEN_SIZES = replace(SIZES, ln_vision="frozen")
BATCH = make_batch([FRAMES, FRAMES - 3])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    build_tables(folder, "shapes", {"train": TRAIN, "val": VAL}, make_video)
    return folder


@pytest.fixture(scope="module")
def base(prepared):
    """The smallest model of stage 1, with `ln_vision` frozen."""
    stage, _ = make_stages()
    data = replace(stage.config.data, directory=str(prepared), frames=4, batch=2, eval_batch=2)
    config = replace(stage.config, data=data, model=replace(stage.config.model, ln_vision="frozen"))
    sizes = replace(stage.model_config, ln_vision="frozen")
    return replace(stage, config=config, model_config=sizes)


@pytest.fixture(scope="module")
def extracted(base, tmp_path_factory):
    """Q-Former features of the same videos in each dtype: the folder, and the result of the extraction."""
    return {
        store: (
            out := tmp_path_factory.mktemp(store),
            extract_features(
                base, VideoDataset(base.config.data.directory), out, storage_dtype=store, source="qformer"
            ),
        )
        for store in ("float32", "bfloat16", "int8")
    }


@pytest.fixture(scope="module")
def parts():
    """Structure, trainables and frozen weights where `ln_vision` is trained."""
    return make_model(SIZES)


@pytest.fixture(scope="module")
def frozen_parts(parts):
    """The same weights: the graph definition decides what is frozen."""
    return (make_model(FROZEN_SIZES)[0], *parts[1:])


@partial(jax.jit, static_argnames=("graph", "config"))
def loss_and_gradients(graph, config, trainable, frozen, batch):
    def loss(trainable):
        model = nnx.merge(graph, trainable, frozen)
        seen = load_or_encode(model, batch)
        return model.loss(seen, batch, model.select(seen, batch, config.selection), config.buckets[-1]).mean()

    return jax.value_and_grad(loss)(trainable)


@pytest.mark.release
def test_ln_vision_alone_has_no_gradient(frozen_parts):
    _, gradients = loss_and_gradients(frozen_parts[0], STEPS[1], *frozen_parts[1:], BATCH)
    without = {name for name, gradient in named_leaves(gradients).items() if not np.any(gradient)}
    assert without == {"ln_vision/scale", "ln_vision/bias"}


@pytest.mark.release
@pytest.mark.parametrize("stage", [1, 2])
def test_the_other_gradients_are_those_of_a_run_that_trains_it(stage, parts, frozen_parts):
    """XLA orders products by what is differentiated, so losses agree to 1e-6, the effect of the order of sums."""
    whole, gradients = loss_and_gradients(parts[0], STEPS[stage], *parts[1:], BATCH)
    loss, found = loss_and_gradients(frozen_parts[0], STEPS[stage], *frozen_parts[1:], BATCH)
    np.testing.assert_allclose(loss, whole, rtol=1e-6)
    expected = named_leaves(gradients)
    for name, gradient in named_leaves(found).items():
        if name.startswith("ln_vision/"):
            assert not np.any(gradient), name
            assert np.any(expected[name]), name
        else:
            np.testing.assert_allclose(gradient, expected[name], rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.release
def test_steps_leave_ln_vision_bit_for_bit(base, parts, frozen_parts):
    """Weight decay included, by which AdamW changes parameters without a gradient."""
    optimizer = make_optimizer(replace(base.config.optimizer, weight_decay=0.5, accumulate=1))
    step = jax.jit(make_train_step(frozen_parts[0], STEPS[1], optimizer, lambda step: jnp.float32(1e-2)))
    state = create_train_state(parts[1], optimizer)
    for _ in range(3):
        state, _ = step(state, parts[2], BATCH, jax.random.key(0))
    before = named_leaves(parts[1])
    for name, leaf in named_leaves(state.trainable).items():
        assert np.array_equal(leaf, before[name]) == name.startswith("ln_vision/"), name


@pytest.mark.release
@pytest.mark.parametrize("stage", [1, 2])
def test_answers_are_those_of_a_run_that_trains_it(stage, parts, frozen_parts):
    told, found = (jax.jit(make_predict(model[0], STEPS[stage]))(*model[1:], BATCH) for model in (parts, frozen_parts))
    np.testing.assert_array_equal(found.answers.tokens, told.answers.tokens)
    np.testing.assert_array_equal(
        found.prompt_selection.frame_plan.frame_index, told.prompt_selection.frame_plan.frame_index
    )
    np.testing.assert_allclose(found.answers.score, told.answers.score, rtol=1e-5, atol=1e-6)


@pytest.mark.release
def test_a_window_holds_qformer_tokens_in_place_of_frames(frozen_parts):
    mesh = build_mesh((2, 1, 1), jax.devices()[:2])
    grouper, table = LengthGrouper(frozen_parts[0], STEPS[1], mesh), make_batch([3, 8, 5, 4])
    halves = [jax.tree.map(lambda leaf, n=n: leaf[n : n + 2], table) for n in (0, 2)]
    picked = grouper.take_rows(grouper.encode_window(*frozen_parts[1:], halves), np.array([1, 2]))
    assert picked.features.values.shape == (2, FRAMES, SIZES.qformer.query_tokens, SIZES.qformer.width)
    predict = jax.jit(make_predict(frozen_parts[0], STEPS[1]))
    found, plain = (
        list(make_batch_predictor(predict, mesh, grouper, window)(*frozen_parts[1:], halves)) for window in (2, 1)
    )
    for grouped, alone in zip(found, plain, strict=True):
        np.testing.assert_array_equal(grouped.answers.tokens, alone.answers.tokens)
        np.testing.assert_array_equal(grouped.batch.example_index, alone.batch.example_index)


# As for the tower's tokens.
@pytest.mark.parametrize(("store", "off"), [("float32", 1e-6), ("bfloat16", 4e-3), ("int8", 1e-2)])
@pytest.mark.release
def test_loss_and_gradients_from_qformer_features_are_those_from_frames(base, extracted, store, off):
    true, found = (
        loss_gradient_vector(base, config) for config in (base.config, with_features(base, extracted[store][0]))
    )
    assert np.linalg.norm(found - true) < off * np.linalg.norm(true)
    assert abs(found[0] - true[0]) < off * true[0]


def test_a_step_leaves_out_the_tower_and_the_qformer_over_frames(base, extracted):
    config, optimizer = step_config(base.config, 8), make_optimizer(base.config.optimizer)
    step = make_train_step(base.graph, config, optimizer, lambda step: jnp.float32(1e-3))
    frames, said = (batches(base, source)[0] for source in (base.config, with_features(base, extracted["bfloat16"][0])))
    state = jax.eval_shape(partial(create_train_state, optimizer=optimizer), base.trainable)

    def flops(program, *given):
        return count_flops(jax.make_jaxpr(program)(*given))

    def encode(frames, *weights):
        model = nnx.merge(base.graph, *weights)
        return model.encode_queries(model.encode_frames(frames))

    saved = flops(step, state, base.frozen, frames, jax.random.key(0)) - flops(
        step, state, base.frozen, said, jax.random.key(0)
    )
    assert saved == flops(encode, frames.frames, base.trainable, base.frozen) > 0


def test_stored_features_are_the_qformers_tokens(base, extracted):
    out, result = extracted["float32"]
    assert (result.num_extracted, result.num_frames, result.error, result.projected_error) == (4, 3 * 4 + 3, 0, 0)
    assert result.bytes_per_frame == 4 * (SIZES.qformer.query_tokens * SIZES.qformer.width + SIZES.vit.width)
    batch = batches(base, base.config)[0]
    model = nnx.merge(base.graph, base.trainable, base.frozen)
    features = jax.jit(lambda frames: model.encode_queries(model.encode_frames(frames)))(batch.frames)
    found = batches(base, with_features(base, out))[0].features
    there = np.asarray(batch.frame_mask)
    np.testing.assert_allclose(found.values[there], features.queries[there], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.means[there], features.means[there], rtol=1e-5, atol=1e-5)
    narrow = FeatureStore(extracted["int8"][0]).read(frame_keys_of("a"))
    np.testing.assert_array_equal(narrow["means"], FeatureStore(out).read(frame_keys_of("a"))["means"])
    assert 2**-10 < extracted["int8"][1].error < 2**-6
    assert extracted["int8"][1].projected_error == pytest.approx(extracted["int8"][1].error, rel=0.7)


def test_means_are_stored_in_float32():
    features = QFormerFeatures(
        means=jnp.full((1, 2, 3), 1 / 3), queries=jax.random.normal(jax.random.key(0), (1, 2, 4, 16))
    )
    for store in ("float32", "bfloat16", "int8"):
        again = dequantize(quantize(features, store), "float32")
        np.testing.assert_array_equal(again.means, features.means)
        np.testing.assert_allclose(again.queries, features.queries, atol=2e-2)


def test_features_of_a_trained_ln_vision_are_refused(base, extracted, tmp_path):
    out, _ = extracted["float32"]
    check_features(with_features(base, out), base.model_config)
    learning = replace(base.config, model=replace(base.config.model, ln_vision="trained"))
    with pytest.raises(FeaturesError, match=r"config.model.ln_vision: must be 'frozen' .* or store the tower's tok"):
        make_feature_metadata(learning, base.model_config, "float32", "qformer")
    with pytest.raises(FeaturesError, match=r"config.model.ln_vision: must be 'frozen' to store the Q-Former's tokens"):
        check_features(with_features(replace(base, config=learning), out), base.model_config)
    with pytest.raises(FeaturesError, match=r"choose another --out, .*(\n|.)*\n  of: qformer there, vit here"):
        extract_features(base, VideoDataset(base.config.data.directory), out, storage_dtype="float32")
    wrong = to_dict(replace(base.config, behaviour="reference"))
    with pytest.raises(
        ConfigError, match=r"config.model.ln_vision: must be 'trained' with .*'reference', got 'frozen'"
    ):
        validate(wrong)
    check_ln_vision_frozen(base.trainable, base.trainable, tmp_path)
    moved = jax.tree.map(lambda leaf: leaf + 1, base.trainable)
    with pytest.raises(ConfigError, match=rf"config.weights.start: {tmp_path} trained ln_vision, .* left it frozen"):
        check_ln_vision_frozen(base.trainable, moved, tmp_path)


def test_the_hash_depends_on_all_weights_up_to_the_qformer(tmp_path):
    one = {name: {"w": np.ones(2, np.float32)} for name in ("vit", "ln_vision", "qformer", "t5")}
    names = []
    for changed in (None, "t5", "qformer", "ln_vision", "vit"):
        save_params(
            tmp_path / str(changed), one if changed is None else one | {changed: {"w": np.zeros(2, np.float32)}}
        )
        names.append([weights_hash(tmp_path / str(changed), of) for of in ("vit", "qformer")])
    towers, said = zip(*names, strict=True)
    assert towers[0] == towers[1] == towers[2] == towers[3] != towers[4]
    assert said[0] == said[1]
    assert len(set(said)) == 4


# ml_collections reads a config's file in a way that Python 3.11 calls old.
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_the_command_stores_qformer_features(base, prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("calce_jax.inference.trained_run.load_base_model", lambda config: base)
    asked = ["--config=configs/calce.py:shapes,stage=1", f"--config.data.directory={prepared}", f"--out={tmp_path}"]
    run_script("cache_features", *asked, "--of=qformer", "--splits=val")
    assert "relative L2 error of bfloat16: 0.1" in (told := capsys.readouterr().out)
    assert " % after t5_proj" in told
    assert FeatureStore(tmp_path).metadata.of == "qformer"
