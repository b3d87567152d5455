"""Weights files: lazy reading, refusal of damaged and unsafe files, atomic writing."""

import json
import pickle
import re
import resource
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from calce_jax.checkpoints.convert.reader import WeightsFileError, open_tensors
from calce_jax.checkpoints.convert.state_dict import LazyArray
from calce_jax.checkpoints.convert.weights import as_lazy
from calce_jax.checkpoints.convert.writer import atomic_new_dir, cast_floating, write_safetensors, write_shards

ARRAYS = {
    "wide": np.arange(6, dtype=np.float32).reshape(2, 3),
    "half": np.array([1.5, -2.0], np.float16),
    "brain": np.array([[0.1], [3.0]], ml_dtypes.bfloat16),
    "count": np.arange(4)[None],
    "one": np.array(7.0, np.float32),
}


def as_lazy_arrays(arrays):
    return {name: as_lazy(array) for name, array in arrays.items()}


def assert_same(opened, arrays):
    assert opened.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (opened[name].shape, opened[name].dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(opened[name].read(), array)


def write_four_shards(folder):
    folder.mkdir()
    write_shards(folder, as_lazy_arrays(ARRAYS), max_shard_bytes=24)
    return folder / "model.safetensors.index.json"


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def as_torch(torch, arrays):
    return {
        name: torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        if array.dtype == ml_dtypes.bfloat16
        else torch.from_numpy(array.copy())
        for name, array in arrays.items()
    }


def test_safetensors_round_trip(tmp_path):
    path = tmp_path / "new/weights.safetensors"
    write_safetensors(path, as_lazy_arrays(ARRAYS), {"origin": "here"})
    assert_same(open_tensors(path), ARRAYS)
    for name, array in load_file(path).items():  # the reader of safetensors
        np.testing.assert_array_equal(array, ARRAYS[name])
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_file_written_by_safetensors(tmp_path):
    save_file(ARRAYS, tmp_path / "model.safetensors")
    assert_same(open_tensors(tmp_path), ARRAYS)


def test_shards_and_their_index(tmp_path):
    index = write_four_shards(tmp_path / "hub")
    assert len(list(index.parent.glob("model-0000?-of-00004.safetensors"))) == 4
    assert_same(open_tensors(index), ARRAYS)
    assert_same(open_tensors(index.parent), ARRAYS)
    content = json.loads(index.read_text())
    assert content["metadata"]["total_size"] == sum(array.nbytes for array in ARRAYS.values())


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_float8(tmp_path, torch, dtype):
    every = np.arange(256, dtype=np.uint8).view(dtype)
    arrays = {"half": ARRAYS["half"], "every": every.reshape(16, 16), "one": every[77, ...], "none": every[:0]}
    save_file(arrays, tmp_path / "a.safetensors")
    write_safetensors(tmp_path / "b.safetensors", as_lazy_arrays(arrays))
    tensors = {name: torch.from_numpy(array.view(np.uint8)) for name, array in arrays.items() if name != "half"}
    torch.save({name: tensor.view(getattr(torch, dtype)) for name, tensor in tensors.items()}, tmp_path / "c.pth")
    for file in ("a.safetensors", "b.safetensors", "c.pth"):
        opened = open_tensors(tmp_path / file)
        assert {name: (tensor.shape, tensor.dtype) for name, tensor in opened.items() if name != "half"} == {
            name: (array.shape, array.dtype) for name, array in arrays.items() if name != "half"
        }
        for name, tensor in opened.items():
            assert tensor.read().tobytes() == arrays[name].tobytes()
    whole = (tmp_path / "a.safetensors").read_bytes()
    tensor = open_tensors(tmp_path / "a.safetensors")["every"]
    (tmp_path / "a.safetensors").write_bytes(whole[:-1])
    with pytest.raises(WeightsFileError, match=r"a\.safetensors cannot be read: it is truncated or damaged"):
        tensor.read()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_pth(tmp_path, torch, zipped, nested):
    tensors = as_torch(torch, ARRAYS)
    content = {"model": tensors, "optimizer": {"state": {0: tensors}}, "epoch": 3} if nested else tensors
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert_same(open_tensors(path), ARRAYS)


def test_pth_is_reopened(tmp_path, torch, monkeypatch):
    monkeypatch.setattr("calce_jax.checkpoints.convert.reader.REOPEN_AFTER_BYTES", 10)
    torch.save(as_torch(torch, ARRAYS), tmp_path / "pytorch_model.bin")
    assert_same(open_tensors(tmp_path), ARRAYS)


class Code:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_pickle_with_code_is_refused_and_not_run(tmp_path, torch, form):
    created, path = tmp_path / "ran", tmp_path / "checkpoint.pth"
    content = {"model": as_torch(torch, ARRAYS), "config": Code(created)}
    if form == "pickle":
        path.write_bytes(pickle.dumps(Code(created), protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(
        WeightsFileError, match=r"checkpoint\.pth was not loaded: it holds other objects than tensors"
    ) as refusal:
        open_tensors(path)
    # Torch's own text says how to load it all the same.
    assert form == "legacy" or str(refusal.value).endswith("save its state dict alone (it holds getattr)")
    assert not re.search("weights_only|two options|safe_globals|do those steps", str(refusal.value))
    assert not created.exists()
    if form == "pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert created.exists()  # the code does run without the check


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["safetensors", "pth", "legacy.pth"])
def test_truncated(tmp_path, torch, kind, keep):
    path = tmp_path / f"weights.{kind}"
    if kind == "safetensors":
        save_file(ARRAYS, path)
    else:
        torch.save(as_torch(torch, ARRAYS), path, _use_new_zipfile_serialization=kind == "pth")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(WeightsFileError, match=r"weights\.\S+ (cannot be read: it is truncated|was not loaded)"):
        {name: tensor.read() for name, tensor in open_tensors(path).items()}


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth", "x.index.json"])
def test_file_that_is_not_weights(tmp_path, name, torch):
    (tmp_path / name).write_bytes(b"<html>Too many requests</html>" * 9)
    with pytest.raises(WeightsFileError, match=name):
        open_tensors(tmp_path / name)


def test_missing_shards_are_all_named(tmp_path):
    index = write_four_shards(tmp_path / "hub")
    gone = sorted(index.parent.glob("model-*"))[1:]
    for path in gone:
        path.unlink()
    with pytest.raises(
        WeightsFileError, match=f"3 of 4 shards are missing; get them: {', '.join(path.name for path in gone)}"
    ):
        open_tensors(index.parent)


@pytest.mark.parametrize("shard", ["x.index.json", "../a.safetensors", "/a.safetensors", 7, None, ["a"]])
def test_index_that_names_itself_or_other_folders(tmp_path, shard):
    index = tmp_path / "x.index.json"
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(WeightsFileError, match=r"x.index.json is not an index of shards, or is damaged"):
        open_tensors(index)


@pytest.mark.parametrize("text", ['{"weight_map": ' * 50_000, "[" * 100_000, "9" * 5000, "[]", "null"])
def test_index_that_is_hostile_json(tmp_path, text):
    index = tmp_path / "x.index.json"
    index.write_text(text)
    with pytest.raises(WeightsFileError, match=r"x.index.json is not an index of shards, or is damaged"):
        open_tensors(index)


def test_index_with_a_tensor_that_is_in_no_shard(tmp_path):
    index = write_four_shards(tmp_path / "hub")
    content = json.loads(index.read_text())
    content["weight_map"]["more"] = content["weight_map"]["wide"]
    index.write_text(json.dumps(content))
    with pytest.raises(WeightsFileError, match=r"not in their shards; .*: more \(model-00001-of-00004.safetensors\)"):
        open_tensors(index)


def test_missing_and_unsupported_files(tmp_path, torch):
    with pytest.raises(WeightsFileError, match="no such file; get it"):
        open_tensors(tmp_path / "gone.pth")
    with pytest.raises(WeightsFileError, match=r"holds none of model\.safetensors\.index\.json"):
        open_tensors(tmp_path)
    (tmp_path / "weights.npz").touch()
    with pytest.raises(WeightsFileError, match=r"weights\.npz: must be a \.safetensors"):
        open_tensors(tmp_path / "weights.npz")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsFileError, match="holds a list, not a state dict"):
        open_tensors(tmp_path / "list.pth")
    torch.save({"epoch": 3}, tmp_path / "epoch.pth")
    with pytest.raises(WeightsFileError, match="these entries are not tensors: epoch"):
        open_tensors(tmp_path / "epoch.pth")


def test_only_floating_point_tensors_are_cast(tmp_path):
    narrow = cast_floating(as_lazy_arrays(ARRAYS), np.dtype(ml_dtypes.bfloat16))
    assert {name: str(tensor.dtype) for name, tensor in narrow.items()} == dict.fromkeys(ARRAYS, "bfloat16") | {
        "count": "int64"
    }
    assert all(tensor.read().dtype == tensor.dtype for tensor in narrow.values())


def damaged_tensors():
    """Return two tensors, of which the second cannot be read."""

    def read():
        raise WeightsFileError("damaged")

    return {"good": as_lazy(np.ones(100, np.float32)), "bad": LazyArray((3,), np.dtype(np.float32), read)}


@pytest.fixture
def full_disk():
    """Limit files to 1000 bytes, as on a disk that fills up while writing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


BIG = {name: as_lazy(np.ones(200, np.float32)) for name in "abc"}


def test_no_partial_file_is_left(tmp_path, full_disk):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"before")
    with pytest.raises(OSError, match=r"cannot write .*weights\.safetensors \(.*\); make room"):
        write_safetensors(path, BIG)
    with pytest.raises(WeightsFileError, match="damaged"):
        write_safetensors(path, damaged_tensors())
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def write_folder(path, tensors):
    with atomic_new_dir(path) as tmp_dir:
        write_shards(tmp_dir, tensors, max_shard_bytes=500)


def test_no_partial_folder_is_left(tmp_path, full_disk):
    resource.setrlimit(resource.RLIMIT_FSIZE, (900, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    write_folder(tmp_path / "small", {"a": as_lazy(np.ones(9, np.float32))})
    with pytest.raises(OSError, match="make room"):
        write_folder(tmp_path / "big", {"a": BIG["a"], "b": as_lazy(np.ones(300, np.float32))})
    with pytest.raises(WeightsFileError):
        write_folder(tmp_path / "broken", damaged_tensors())
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_too_little_free_space(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"weights\.safetensors \(it needs \d+ kB, 0 kB are free\); make room"):
        write_safetensors(tmp_path / "weights.safetensors", BIG)
    assert list(tmp_path.iterdir()) == []


def test_existing_folder_is_kept(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").touch()
    with pytest.raises(FileExistsError, match="run exists already; remove it"):
        write_folder(tmp_path / "run", BIG)
    assert (tmp_path / "run/notes.txt").exists()
