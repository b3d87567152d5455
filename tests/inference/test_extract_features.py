"""Stored features: training from them equals training from frames, and features of other weights are refused."""

import functools
import json
import pickle
import shutil
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks.aot.flops import count_flops
from calce_jax.checkpoints.manager import save_params
from calce_jax.config import ConfigError, diff, to_dict, validate
from calce_jax.datasets.tables import VideoRecord, build_tables
from calce_jax.inference import extract_features as extract_features_module
from calce_jax.inference.extract_features import VideoDataset, extract_features
from calce_jax.inference.predict_split import open_split
from calce_jax.inference.predict_step import make_predict, step_config
from calce_jax.input_pipeline.batches import InputError, abstract_batch, input_config, make_iterator
from calce_jax.input_pipeline.feature_fingerprint import check_features, weights_hash
from calce_jax.input_pipeline.feature_store import FeaturesError, FeatureStore, FrameKeys, ShardWriter, checksums
from calce_jax.models.feature_codec import dequantize, load_or_encode, quantize
from calce_jax.moments.annotations import Annotation
from calce_jax.storage.locks import FileLock, LockError
from calce_jax.training.optimizer import make_optimizer
from calce_jax.training.state import create_train_state
from calce_jax.training.train_step import make_train_step
from calce_jax.video.decode import encode_jpeg
from tests.helpers.commands import run_script
from tests.helpers.search_stages import make_stages
from tests.helpers.tiny_model import IMAGE_SIZE

STORED, FRAMES = 8, 4
TOTALS = {"a": 80, "b": 80, "short": 3, "c": 80}
TRAIN = [Annotation(n, video, "a red circle", [], None, [[0, 1]]) for n, video in enumerate(("a", "short", "b", "a"))]
VAL = [Annotation(n, video, "a red circle", [], None, [[0, 1]]) for n, video in enumerate(("c", "b"))]


def make_video(video, seed=0):
    """Return a record with frames of noise, which depend on id and seed."""
    count, total = min(STORED, TOTALS[video]), TOTALS[video]
    noise = np.random.default_rng((ord(video[0]), seed)).integers(0, 256, (count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    indices = np.arange(count, dtype=np.int32) * (total // count)
    return VideoRecord(video, total, 10.0, 8.0, indices, indices.astype(np.float32) / 10, encode_jpeg(noise), [])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    build_tables(folder, "shapes", {"train": TRAIN, "val": VAL}, make_video)
    return folder


@pytest.fixture(scope="module")
def base(prepared):
    """The smallest model, with the config of stage 1."""
    stage, _ = make_stages()
    data = replace(stage.config.data, directory=str(prepared), frames=FRAMES, batch=2, eval_batch=2)
    return replace(stage, config=replace(stage.config, data=data))


def frame_keys_of(video, seed=0):
    """Return the keys of the frames of a video that the model reads."""
    record = make_video(video, seed)
    step = len(record.jpegs) // min(FRAMES, len(record.jpegs))
    return FrameKeys(video, record.indices[::step].tolist(), checksums(record.jpegs[::step]))


def with_features(base, features):
    return replace(base.config, data=replace(base.config.data, features=str(features)))


def extract(base, out, store="float32", splits=(), **more):
    return extract_features(base, VideoDataset(base.config.data.directory, splits), out, storage_dtype=store, **more)


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """Compile the extraction once for each dtype."""
    with pytest.MonkeyPatch.context() as patch:
        make_extract_fn = functools.cache(extract_features_module.make_extract_fn)
        patch.setattr(extract_features_module, "make_extract_fn", make_extract_fn)
        yield


@pytest.fixture(scope="module")
def extracted(base, tmp_path_factory):
    """Features of the same videos in each dtype: the folder, and the result of the extraction."""
    return {
        store: (out := tmp_path_factory.mktemp(store), extract(base, out, store, videos_per_shard=3))
        for store in ("float32", "bfloat16", "int8")
    }


def batches(base, config, split="train", workers=0):
    inputs = replace(input_config(config, split, base.model_config, training=False), num_workers=workers)
    return list(make_iterator(inputs, base.tokenizers.t5, base.tokenizers.bert))


def test_every_video_is_encoded_once(extracted):
    out, result = extracted["float32"]
    assert (result.num_extracted, result.num_existing, result.failures) == (4, 0, [])
    assert result.num_frames == 3 * FRAMES + 3
    assert [path.name for path in sorted(out.glob("*.array_record*"))] == [
        f"features-0000{n}-of-host-0.array_record" for n in range(2)
    ]
    assert (out / "features-00000-of-host-0.array_record").stat().st_size >= 3 * 3 * result.bytes_per_frame


@partial(jax.jit, static_argnames=("graph", "config"))
def loss_and_gradients(graph, config, weights, vision_features, batch):
    """Return the mean loss of a batch with these vision features, and its gradients."""
    trainable, frozen = weights

    def loss(trainable):
        model = nnx.merge(graph, trainable, frozen)
        selection = model.select(vision_features, batch, config.selection)
        return model.loss(vision_features, batch, selection, config.buckets[-1]).mean()

    return jax.value_and_grad(loss)(trainable)


def loss_gradient_vector(base, config):
    """Return loss and gradients of the first batch of a run, as one vector."""
    batch = batches(base, config)[0]
    see = jax.jit(lambda batch, *weights: load_or_encode(nnx.merge(base.graph, *weights), batch))
    vision_features = see(batch, base.trainable, base.frozen)
    made = loss_and_gradients(
        base.graph, step_config(base.config, 8), (base.trainable, base.frozen), vision_features, batch.without_frames()
    )
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(made)])


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


@pytest.mark.parametrize(
    "damage", [lambda _: b"", lambda content: content[: len(content) // 2], lambda _: b"no features" * 9]
)
def test_a_damaged_shard_is_named(base, extracted, tmp_path, damage):
    out = shutil.copytree(extracted["float32"][0], tmp_path / "out")
    shard = out / "features-00000-of-host-0.array_record"
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(FeaturesError, match=f"{shard} is damaged .*; remove it and run `calce cache_features` again"):
        extract(base, out)
    shard.unlink()
    assert extract(base, out).num_extracted == 3


def test_a_damaged_record_is_named(extracted, tmp_path):
    out = shutil.copytree(extracted["float32"][0], tmp_path / "out")
    shard = out / "features-00000-of-host-0.array_record"
    values = FeatureStore(out).read(frame_keys_of("a"))["values"].tobytes()
    content = bytearray(shard.read_bytes())
    content[content.index(values[:16])] ^= 1
    shard.write_bytes(content)
    with pytest.raises(FeaturesError, match=f"{shard} is damaged .*; remove it and run"):
        FeatureStore(out).read(frame_keys_of("a"))


def test_a_second_extraction_of_the_same_host_is_refused(base, extracted, tmp_path):
    out = shutil.copytree(extracted["float32"][0], tmp_path / "out")
    with FileLock(out / "features-of-host-0.lock"):
        with pytest.raises(LockError, match="writes here"):
            extract(base, out)
        assert extract(base, out, host=1, num_hosts=2).num_existing == 2


def test_an_interrupted_extraction_continues_with_the_remaining_videos(base, extracted, tmp_path, monkeypatch):
    close, closed = ShardWriter.close, []

    def interrupted(shard):
        if closed:
            raise KeyboardInterrupt
        closed.append(shard.path)
        close(shard)

    monkeypatch.setattr(ShardWriter, "close", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract(base, tmp_path, videos_per_shard=1)
    assert list(tmp_path.glob("*.array_record*")) == closed
    monkeypatch.undo()
    # As a killed process leaves it.
    (tmp_path / "features-00001-of-host-0.array_record.part").write_bytes(b"half")
    result = extract(base, tmp_path, videos_per_shard=2)
    assert (result.num_extracted, result.num_existing) == (3, 1)
    assert not list(tmp_path.glob("*.part"))
    assert extract(base, tmp_path).num_existing == 4
    for mine, whole in zip(
        batches(base, with_features(base, tmp_path)),
        batches(base, with_features(base, extracted["float32"][0])),
        strict=True,
    ):
        np.testing.assert_allclose(mine.features.values, whole.features.values, rtol=1e-5, atol=1e-5)


def test_a_video_that_was_prepared_again_is_encoded_again(base, tmp_path):
    folder, out = tmp_path / "prepared", tmp_path / "features"
    here = replace(base, config=replace(base.config, data=replace(base.config.data, directory=str(folder))))
    build_tables(folder, "shapes", {"val": VAL}, make_video)
    extract(here, out)
    before = batches(here, with_features(here, out), "val")[0]
    build_tables(folder, "shapes", {"val": VAL}, lambda video: make_video(video, seed=int(video == "c")))
    with pytest.raises(InputError, match=r"query 0 of video c: it was prepared anew since .*; run `calce cache_feat"):
        batches(here, with_features(here, out), "val")
    assert (again := extract(here, out)).num_extracted == again.num_existing == 1
    after = batches(here, with_features(here, out), "val")[0]
    assert np.all(np.any(after.features.values[0] != before.features.values[0], axis=(1, 2)))
    np.testing.assert_array_equal(after.features.values[1], before.features.values[1])


def test_machines_share_the_videos(base, tmp_path):
    assert [extract(base, tmp_path, host=host, num_hosts=2).num_extracted for host in range(2)] == [2, 2]
    assert extract(base, tmp_path).num_existing == 4
    assert batches(base, with_features(base, tmp_path))[1].row_mask.all()


def test_a_video_that_cannot_be_encoded_is_named(base, tmp_path, monkeypatch):
    def prepare(name, bad):
        def load(video):
            return replace(make_video(video), jpegs=[b"nothing"] * STORED) if video in bad else make_video(video)

        build_tables(tmp_path / name, "shapes", {"val": VAL}, load)
        data = replace(base.config.data, directory=str(tmp_path / name))
        return replace(base, config=replace(base.config, data=data))

    one = prepare("one", "c")
    result = extract(one, tmp_path / "out")
    assert [(failure.video, failure.remedy) for failure in result.failures] == [("c", "prepare the video again")]
    assert json.loads((tmp_path / "out/failures-of-host-0.jsonl").read_text())["video"] == "c"
    with pytest.raises(
        FeaturesError, match=r"none of the 2 videos in .* can be encoded; first: c: frame 0 is not a JPEG"
    ):
        extract(prepare("all", "bc"), tmp_path / "none")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(FeaturesError, match=r"take up to 0.00 GB and 0.00 GB are free; make room, use --store=int8"):
        extract(one, tmp_path / "full")


def test_a_full_disk_leaves_no_shard_and_says_what_to_do(tmp_path):
    def write(shard):
        shard.add(FrameKeys("a", [0, 1], [0, 0]), [bytes(2**20)] * 2, {})
        shard.close()

    (tmp_path / "features-00000-of-host-0.array_record.part").symlink_to("/dev/full")
    shard = ShardWriter(tmp_path, 0, 0)
    with pytest.raises(OSError, match=r"cannot write .*features-00000.* make room and run the same command again"):
        write(shard)
    shard.discard()
    assert list(tmp_path.iterdir()) == []


def test_int8_is_off_by_half_a_step_of_its_group():
    tokens = jax.random.normal(jax.random.key(0), (2, 3, 5, 256)).at[:, :, :, 7].mul(1000).at[0, 0, 0].set(0)
    features = quantize(tokens, "int8")
    assert features.values.dtype == np.int8
    assert features.scale.shape == (2, 3, 5, 2)
    off = np.abs(dequantize(features, "float32") - tokens).reshape(2, 3, 5, 2, 128)
    assert np.all(off <= np.asarray(features.scale)[..., None] * (0.5 + 1e-5))
    # The large channel is in the first group alone.
    assert np.median(features.scale[..., 0]) > 100 * np.median(features.scale[..., 1])
    assert off[..., 1, :].max() < 0.02
    half = tokens.astype(jnp.bfloat16)
    np.testing.assert_array_equal(dequantize(quantize(half, "bfloat16"), "bfloat16"), half)


def test_the_reported_error_is_that_of_the_folder(base, extracted):
    exact, _ = extracted["float32"]
    clip = frame_keys_of("a")
    true = FeatureStore(exact).read(clip)["values"]
    reported = {store: result.error for store, (_, result) in extracted.items()}
    assert reported["float32"] == 0
    # Half a unit of 8 bits at most; of 127 steps, where the largest of 16 values is about twice their spread.
    assert 2**-11 < reported["bfloat16"] < 2**-9
    assert 2**-10 < reported["int8"] < 2**-7
    for store in ("bfloat16", "int8"):
        found = FeatureStore(extracted[store][0]).read(clip)
        values = found["values"].astype(np.float32) * found.get("scale", 1)
        error = np.linalg.norm(values - true) / np.linalg.norm(true)
        assert error == pytest.approx(reported[store], rel=0.15), "the error of one video is near that of all"
        assert extracted[store][1].projected_error == pytest.approx(reported[store], rel=0.5)


# ml_collections reads a config's file in a way that Python 3.11 calls old.
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
def test_the_command_reports_numbers_and_errors(base, prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("calce_jax.inference.trained_run.load_base_model", lambda config: base)
    asked = ["--config=configs/calce.py:shapes,stage=1", f"--out={tmp_path}", "--store=int8", "--splits=val"]
    command = partial(run_script, "cache_features", *asked)
    command(f"--config.data.directory={prepared}")
    expected = "2 videos encoded (8 frames of 100 bytes), 0 existed already, 0 failed\nrelative L2 error of int8: 0."
    assert expected in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"Error: there are no tables in /nowhere"):
        command("--config.data.directory=/nowhere")
    with pytest.raises(SystemExit, match=r"Error: .*features.json: .*\n  store: int8 there, float32 here"):
        command(f"--config.data.directory={prepared}", "--store=float32")


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
