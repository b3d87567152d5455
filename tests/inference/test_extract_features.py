"""Extraction of features: every video once, interruptions, failures, damage, errors of storage."""

import json
import shutil
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calce_jax.datasets.tables import build_tables
from calce_jax.input_pipeline.batches import InputError
from calce_jax.input_pipeline.feature_store import FeaturesError, FeatureStore, FrameKeys, ShardWriter
from calce_jax.models.feature_codec import dequantize, quantize
from calce_jax.storage.locks import FileLock, LockError
from tests.helpers.commands import run_script
from tests.helpers.stored_features import (
    FRAMES,
    STORED,
    VAL,
    batches,
    extract,
    frame_keys_of,
    make_video,
    with_features,
)

pytestmark = pytest.mark.usefixtures("compiled_once")


def test_every_video_is_encoded_once(extracted):
    out, result = extracted["float32"]
    assert (result.num_extracted, result.num_existing, result.failures) == (4, 0, [])
    assert result.num_frames == 3 * FRAMES + 3
    assert [path.name for path in sorted(out.glob("*.array_record*"))] == [
        f"features-0000{n}-of-host-0.array_record" for n in range(2)
    ]
    assert (out / "features-00000-of-host-0.array_record").stat().st_size >= 3 * 3 * result.bytes_per_frame


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
    with pytest.raises(FeaturesError, match=r"take up to \d+ kB and 0 kB are free; make room, use --store=int8"):
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
