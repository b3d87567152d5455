"""A changed value in weights or in a checkpoint is refused by name; --verify=off reads it, as files of before."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from calce_jax.checkpoints.checksums import array_checksums, json_checksum, tensor_checksum
from calce_jax.checkpoints.convert.reader import WeightsFileError, open_tensors
from calce_jax.checkpoints.convert.weights import as_lazy
from calce_jax.checkpoints.convert.writer import write_safetensors
from calce_jax.checkpoints.manager import CheckpointError, Checkpoints
from calce_jax.checkpoints.params_file import load_params, save_params
from calce_jax.checkpoints.restore import check_config, check_files
from calce_jax.config import ConfigError, packaged_path, to_dict
from calce_jax.config_compat import SAME_WEIGHTS
from calce_jax.presets.tiny import tiny_config
from calce_jax.storage.provenance import file_hash
from calce_jax.storage.verification import set_verification
from calce_jax.training.state import TrainState

ARRAYS = {
    "a/kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.arange(4, dtype=ml_dtypes.bfloat16),
    "c": np.array(7, np.int32),
    "f8": np.ones(3, ml_dtypes.float8_e4m3fn),
}


@pytest.fixture
def unverified():
    set_verification(False)
    yield
    set_verification(True)


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_checksums_are_those_of_zlib_on_every_mesh():
    assert tensor_checksum(np.frombuffer(b"123456789", np.uint8)) == "cbf43926"  # the check value of CRC-32
    assert tensor_checksum(np.asfortranarray(ARRAYS["a/kernel"])) == tensor_checksum(ARRAYS["a/kernel"].copy())
    assert json_checksum({"a": 1, "b": (2,)}) == json_checksum({"b": [2], "a": 1}) != json_checksum({"a": 1, "b": [3]})
    mesh = jax.make_mesh((4,), ("x",))
    wide = jnp.arange(8.0)
    sharded = jax.device_put(wide, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x")))
    assert (
        array_checksums({"x": sharded})
        == array_checksums({"x": wide})
        == {"x": tensor_checksum(np.arange(8.0, dtype="f4"))}
    )


@pytest.mark.parametrize("written_by", ["save_params", "calce convert"])
def test_a_flipped_bit_of_any_tensor_is_named(tmp_path, written_by):
    path = tmp_path / "base.safetensors"
    if written_by == "save_params":
        arrays = {name: array for name, array in ARRAYS.items() if name != "f8"}
        save_params(path, arrays, {"seed": "0"})
    else:
        arrays = ARRAYS
        write_safetensors(path, {name: as_lazy(array) for name, array in arrays.items()}, {"seed": "0"})
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    assert metadata["seed"] == "0"
    assert json.loads(metadata["crc32"]) == {name: tensor_checksum(array) for name, array in arrays.items()}
    for name, tensor in open_tensors(path).items():
        np.testing.assert_array_equal(tensor.read(), arrays[name])

    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    offsets = {name: entry["data_offsets"][0] for name, entry in json.loads(content[8:begin]).items() if name in arrays}
    for name, offset in offsets.items():
        flip(path, begin + offset)
        for other, tensor in open_tensors(path).items():
            if other != name:
                tensor.read()
        with pytest.raises(WeightsFileError, match=rf"base.safetensors is damaged \(the checksum of {name} .*get it"):
            open_tensors(path)[name].read()
        if "f8" not in arrays:
            with pytest.raises(CheckpointError, match=rf"is damaged \(the checksum of {name} .*or convert the weights"):
                load_params(path, arrays)
        flip(path, begin + offset)


def test_checksums_that_are_damaged_themselves_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": np.ones(2)}, path, {"crc32": "{"})
    with pytest.raises(WeightsFileError, match=r'a.safetensors is damaged \("crc32" in its header is damaged\)'):
        open_tensors(path)
    save_file({"a": np.ones(2)}, path, {"crc32": "{}"})
    with pytest.raises(WeightsFileError, match=r"the checksum of a is [0-9a-f]{8}, missing was written"):
        open_tensors(path)["a"].read()


@pytest.mark.usefixtures("unverified")
def test_weights_are_read_unverified_where_asked_for(tmp_path):
    path = tmp_path / "base.safetensors"
    save_params(path, {"a": np.ones(2, np.float32)})
    flip(path, path.stat().st_size - 1)
    assert load_params(path, {"a": np.ones(2, np.float32)})["a"][1] != 1
    assert open_tensors(path)["a"].read()[1] != 1


def test_weights_without_checksums_are_read(tmp_path):
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "old.safetensors")
    assert load_params(tmp_path / "old.safetensors", {"a": np.ones(2, np.float32)})["a"][1] == 1


def make_iterator():
    return iter(grain.MapDataset.range(32).to_iter_dataset())


def make_state(value=1.0):
    return TrainState(jnp.int32(3), {"kernel": jnp.full((4, 2), value), "bias": jnp.zeros(2)}, {"mu": jnp.ones(2)})


def save(workdir, value=1.0, score=50.0):
    checkpoints, iterator = Checkpoints(workdir), make_iterator()
    next(iterator)
    checkpoints.save(make_state(value), iterator, {"seed": 42}, {"R1_avg": score})
    checkpoints.close()
    return workdir / "checkpoints/3"


def restore(workdir):
    """Do what resuming and loading the best checkpoint read, and return the state."""
    checkpoints = Checkpoints(workdir, read_only=True)
    try:
        assert checkpoints.best_step_and_metric is not None
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), make_state())
        checkpoints.restore_trainable(3, abstract.trainable)
        return checkpoints.restore(3, abstract, make_iterator())
    finally:
        checkpoints.close()


def replace_text(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


@pytest.mark.parametrize("part", ["state", "iterator", "metrics", "record"])
def test_every_part_of_a_checkpoint_is_compared(tmp_path, part):
    folder = save(tmp_path / "run")
    restore(tmp_path / "run")
    if part == "state":  # arrays that are whole, and others
        shutil.rmtree(folder / "state")
        shutil.copytree(save(tmp_path / "other", value=2.0) / "state", folder / "state")
    elif part == "iterator":
        (path,) = (folder / "iterator").glob("process_0*.json")
        replace_text(path, '"next_index": 1', '"next_index": 2')
    elif part == "metrics":
        replace_text(folder / "metrics/metrics", "50.0", "58.0")
    else:
        replace_text(folder / "record/metadata", '"seed": 42', '"seed": 43')
    name = {"state": "trainable/kernel"}.get(part, part)
    with pytest.raises(CheckpointError, match=rf"3 is damaged: {name} differ .*remove it to start over \(--verify=off"):
        restore(tmp_path / "run")
    set_verification(False)
    try:
        assert restore(tmp_path / "run").trainable["kernel"][0, 0] == (2.0 if part == "state" else 1.0)
    finally:
        set_verification(True)


def test_a_checkpoint_of_before_has_no_checksums_and_is_read(tmp_path):
    path = save(tmp_path) / "record/metadata"
    path.write_text(json.dumps({"seed": 42}))
    assert restore(tmp_path).trainable["kernel"][0, 0] == 1.0


def test_base_weights_that_changed_since_a_run_was_trained_are_refused(tmp_path):
    base = tmp_path / "base.safetensors"
    save_params(base, {"a": np.ones(2, np.float32)})
    config = replace(tiny_config(1), weights=replace(tiny_config(1).weights, base=str(base)))
    metadata = {"base": {"file": str(base), "sha256": file_hash(base)}}
    check_files(tmp_path / "checkpoints/3", metadata, config)
    flip(base, base.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=r"weights.base: .*base.safetensors is not the file that .*checkpoints/3"):
        check_files(tmp_path / "checkpoints/3", metadata, config)
    check_files(tmp_path, {"base": None}, config)


def test_the_packaged_weights_are_known_by_their_former_hash():
    (former,) = SAME_WEIGHTS
    config = tiny_config(1)
    assert SAME_WEIGHTS[former] == file_hash(packaged_path(config.weights.base))
    check_files(Path("checkpoints/3"), {"base": {"file": "base", "sha256": former}}, config)
    with safe_open(packaged_path(config.weights.base), framework="np") as file:
        assert "crc32" in file.metadata()


def test_a_config_that_is_not_that_of_the_checkpoint_is_refused():
    config = tiny_config(1)
    moved = replace(config, mesh="single", weights=replace(config.weights, base="elsewhere/base.safetensors"))
    check_config(Path("run/checkpoints/3"), {"config": to_dict(config)}, moved)
    longer = replace(config, schedule=replace(config.schedule, epochs=config.schedule.epochs + 1))
    check_config(Path("run/checkpoints/3"), {"config": to_dict(config)}, longer)
    with pytest.raises(ConfigError, match=r"schedule\.epochs"):
        check_config(Path("run/checkpoints/3"), {"config": to_dict(longer)}, config)
    with pytest.raises(ConfigError, match=r"^run/config.json is not the config of run/checkpoints/3; restore") as error:
        check_config(Path("run/checkpoints/3"), {"config": to_dict(config)}, replace(config, seed=config.seed + 1))
    assert f"\n  seed: {config.seed} there, {config.seed + 1} here" in str(error.value)
