"""Stored features: training from them equals training from frames, and features of other weights are refused."""

import pickle
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks.aot.flops import count_flops
from calce_jax.checkpoints.params_file import save_params
from calce_jax.config import ConfigError, diff, to_dict, validate
from calce_jax.inference.predict_split import open_split
from calce_jax.inference.predict_step import make_predict
from calce_jax.inference.prediction import step_config
from calce_jax.input_pipeline.batches import InputError, make_iterator
from calce_jax.input_pipeline.feature_fingerprint import check_features, weights_hash
from calce_jax.input_pipeline.feature_store import FeaturesError, FeatureStore
from calce_jax.input_pipeline.input_config import abstract_batch, input_config
from calce_jax.training.optimizer import make_optimizer
from calce_jax.training.state import create_train_state
from calce_jax.training.train_step import make_train_step
from tests.helpers.stored_features import batches, extract, frame_keys_of, loss_gradient_vector, with_features

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiled_once")]


# With float32 only the order of sums differs: the tower encodes batches of another size. The other dtypes differ by the
# error of what is stored, see below, which a loss smooths.
@pytest.mark.parametrize(("store", "off"), [("float32", 1e-6), ("bfloat16", 2e-3), ("int8", 1e-2)])
def test_loss_and_gradients_from_features_are_those_from_frames(base, extracted, store, off):
    true = loss_gradient_vector(base, base.config)
    found = loss_gradient_vector(base, with_features(base, extracted[store][0]))
    assert np.linalg.norm(found - true) < off * np.linalg.norm(true)
    assert abs(found[0] - true[0]) < off * true[0]


def test_a_step_from_features_leaves_out_the_tower_and_nothing_else(base, extracted):
    config = step_config(base.config, 8)
    optimizer = make_optimizer(base.config.optimizer)
    step = make_train_step(base.graph, config, optimizer, lambda step: jnp.float32(1e-3))
    predict = make_predict(base.graph, config)
    frames, features = (batches(base, source)[0] for source in (base.config, with_features(base, extracted["int8"][0])))
    state = jax.eval_shape(partial(create_train_state, optimizer=optimizer), base.trainable)
    tower = flops(
        lambda frames, *weights: nnx.merge(base.graph, *weights).encode_frames(frames),
        frames.frames,
        base.trainable,
        base.frozen,
    )
    assert tower > 0
    saved = [
        flops(program, *given, frames, *key) - flops(program, *given, features, *key)
        for program, given, key in (
            (step, (state, base.frozen), (jax.random.key(0),)),
            (predict, (base.trainable, base.frozen), ()),
        )
    ]
    assert saved == [tower, tower]


def flops(program, *given):
    return count_flops(jax.make_jaxpr(program)(*given))


def test_batches_with_features_have_the_shapes_of_abstract_batch(base, extracted):
    for store, (out, _) in extracted.items():
        config = replace(with_features(base, out), data=replace(with_features(base, out).data, eval_batch=3))
        promised = abstract_batch(input_config(config, "train", base.model_config, training=False))
        for batch in batches(base, config):
            assert batch.frames.size == 0
            for leaf, its in zip(jax.tree.leaves(batch), jax.tree.leaves(promised), strict=True):
                assert (leaf.shape, leaf.dtype) == (its.shape, its.dtype), store
        # The second of two batches has one query, of all frames, and two rows that stand for nothing.
        assert batch.row_mask.tolist() == [True, False, False]
        assert np.any(batch.features.values[0] != 0)
        assert not np.any(batch.features.values[1:] != 0)


@pytest.mark.slow
@pytest.mark.release
def test_worker_processes_read_features(base, extracted):
    config = with_features(base, extracted["bfloat16"][0])
    for here, there in zip(batches(base, config), batches(base, config, workers=1), strict=True):
        assert there.features.values.dtype == jnp.bfloat16
        for a, b in zip(jax.tree.leaves(here), jax.tree.leaves(there), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_pickled_store_reads_the_same_features(extracted):
    store = FeatureStore(extracted["int8"][0])
    copy = pickle.loads(pickle.dumps(store))
    assert (copy.folder, copy.metadata) == (store.folder, store.metadata)
    for name, array in store.read(frame_keys_of("a")).items():
        np.testing.assert_array_equal(copy.read(frame_keys_of("a"))[name], array)


def test_fewer_frames_are_picked_and_more_are_refused(base, extracted):
    out, _ = extracted["float32"]
    fewer = replace(base, config=replace(base.config, data=replace(base.config.data, frames=2)))
    few, all_ = batches(fewer, with_features(fewer, out))[0], batches(base, with_features(base, out))[0]
    np.testing.assert_array_equal(few.features.values[0], all_.features.values[0, ::2])
    more = replace(base.config, data=replace(base.config.data, frames=8, features=str(out)))
    with pytest.raises(FeaturesError, match=r"features.json: these features .*(\n|.)*  frames: 4 there, 8 here"):
        check_features(more, base.model_config)


def test_features_of_another_tower_are_refused(base, extracted):
    out, _ = extracted["float32"]
    check_features(with_features(base, out), base.model_config)
    config = replace(with_features(base, out), seed=1, model=replace(base.config.model, compute_dtype="bfloat16"))
    with pytest.raises(FeaturesError) as error:
        check_features(config, base.model_config)
    assert str(error.value) == (
        f"{out}/features.json: these features (of a random model) are not those of this run; run "
        "`calce cache_features` with its config and another --out, or set what they were made with:\n"
        f"  vision: drawn from seed {base.config.seed} there, drawn from seed 1 here\n"
        "  compute_dtype: float32 there, bfloat16 here"
    )
    with pytest.raises(FeaturesError, match=r"choose another --out, or remove .*:\n  store: float32 there, int8 here"):
        extract(base, out, "int8")
    with pytest.raises(FeaturesError, match=r"no features in /nowhere: .* is missing; run `calce cache_features`"):
        check_features(with_features(base, "/nowhere"), base.model_config)


def test_the_hash_of_a_tower_depends_on_its_weights_alone(tmp_path):
    tower = {"vit": {"w": np.ones((2, 3), np.float32)}}
    others = {"a": 0.0, "b": 1.0}
    for name, other in others.items():
        save_params(tmp_path / name, tower | {"t5": {"w": np.full(2, other, np.float32)}})
    save_params(tmp_path / "c", {"vit": {"w": np.full((2, 3), 2, np.float32)}})
    save_params(tmp_path / "blind", {"t5": {"w": np.ones(2, np.float32)}})
    assert weights_hash(tmp_path / "a") == weights_hash(tmp_path / "b") != weights_hash(tmp_path / "c")
    with pytest.raises(FeaturesError, match=r"blind has no vision tower"):
        weights_hash(tmp_path / "blind")
    with pytest.raises(FeaturesError, match=r"config.weights.base: .*gone cannot be read"):
        weights_hash(tmp_path / "gone")


def test_a_video_without_features_is_named_before_training(base, tmp_path):
    result = extract(base, tmp_path, splits=["val"])
    assert result.num_extracted == 2
    config = with_features(base, tmp_path)
    open_split(config, "val", base.tokenizers, base.model_config)
    with pytest.raises(FeaturesError, match=r"2 of the 3 videos of split train have no features \(a, short\); run"):
        open_split(config, "train", base.tokenizers, base.model_config)
    with pytest.raises(InputError, match=r"query 0 of video a: 4 of its 4 frames have no features in .*; run `calce"):
        batches(base, config)
    with pytest.raises(ValueError, match=r"no split 'tset', but train, val; choose"):
        extract(base, tmp_path, splits=["tset"])


def test_features_with_augment_are_refused(base, extracted):
    config = with_features(base, extracted["int8"][0])
    values = to_dict(replace(config, data=replace(config.data, augment=True)))
    with pytest.raises(ConfigError, match=r"config.data.augment: must be False with config.data.features=.*, got True"):
        validate(values)
    with pytest.raises(InputError, match=r"augment: must be False with features="):
        make_iterator(
            replace(input_config(config, "train", base.model_config, training=True), augment=True),
            base.tokenizers.t5,
            base.tokenizers.bert,
        )


def test_configs_from_before_features_stay_valid(base):
    earlier = to_dict(base.config)
    del earlier["data"]["features"]
    assert validate(earlier) == base.config
    assert diff(earlier, to_dict(base.config)) == []
    assert diff(earlier, to_dict(with_features(base, "f"))) == ["data.features: '' there, 'f' here"]
