"""The cache: entries come back bit by bit or not at all, whatever the dtype and whatever became of the file."""

import json
import os
import pickle
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save

from calce_jax.config import ModelConfig
from calce_jax.inference.predict_step import make_encode_video
from calce_jax.inference.predictor import Predictor
from calce_jax.search.captions import caption_with_cache
from calce_jax.search.searcher import Searcher, _weights_key
from calce_jax.search.segments import SegmentSampling, read_segments
from calce_jax.search.web.visitors import COOKIE
from calce_jax.storage.disk_cache import DTYPES, MAGIC, OVERHEAD, DiskCache, EntryKind
from tests.helpers.search_stages import FRAMES, MAX_SEGMENT_SECONDS, make_stages
from tests.helpers.tiny_model import SIZES, make_model
from tests.helpers.video_files import write_clip

ARRAYS = {
    "means": np.array([[0.1, np.nan, np.inf], [-0.0, 3.0, 1e-40]], np.float32),
    "queries": np.array([[0.1, np.nan], [-0.0, 3.0]], ml_dtypes.bfloat16),
}


def assert_bitwise(there, arrays):
    assert there is not None
    assert list(there) == list(arrays)
    for name, array in arrays.items():
        found = there[name]
        assert (found.shape, found.dtype, found.tobytes()) == (array.shape, array.dtype, array.tobytes())


def header(about):
    content = about if isinstance(about, bytes) else json.dumps(about).encode()
    return len(content).to_bytes(8, "little") + content


def warnings_in(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_of_every_dtype_come_back_bit_by_bit(tmp_path, dtype):
    rng, kind = np.random.default_rng(0), DTYPES[dtype]
    wide = np.frombuffer(rng.bytes(24 * kind.itemsize), kind).reshape(2, 3, 4)  # NaNs with any bits, subnormals
    if dtype == "bool":
        wide = rng.integers(0, 2, (2, 3, 4)).astype(bool)
    arrays = {
        "wide": wide,
        "none": wide[:, :0],
        "one": wide[0, 0, 0, ...],
        "columns": np.asfortranarray(wide),
        "strided": wide[:, ::2, ::-1],
    }
    cache = DiskCache(tmp_path)
    cache.write_arrays("features", "a", arrays)
    assert_bitwise(cache.read_arrays("features", "a"), arrays)


def test_arrays_of_a_device_of_no_name_and_of_another_byte_order(tmp_path):
    cache = DiskCache(tmp_path)
    cache.write_arrays("features", "a", {"": jnp.ones((2, 1), jnp.bfloat16), "é": np.float32(1.5)})
    assert_bitwise(cache.read_arrays("features", "a"), {"": np.ones((2, 1), jnp.bfloat16), "é": np.float32(1.5)})
    cache.write_arrays("features", "b", {"big": np.arange(3, dtype=">f4")})
    assert_bitwise(cache.read_arrays("features", "b"), {"big": np.arange(3, dtype="<f4")})
    cache.write_arrays("features", "c", {})
    assert cache.read_arrays("features", "c") == {}
    for array in (np.array(["text"]), np.array([None]), np.zeros(2, "datetime64[s]"), np.zeros(2, "i4,f4")):
        with pytest.raises(TypeError, match=r"array a has dtype .*; a cache stores bool, int8"):
            cache.write_arrays("features", "d", {"a": array})
    assert cache.read_arrays("features", "d") is None


def test_every_dtype_that_a_config_allows_is_kept():
    fields = get_type_hints(ModelConfig)
    allowed = {*get_args(fields["frozen_dtype"]), *get_args(fields["compute_dtype"])}
    assert allowed == {"float32", "bfloat16"}
    assert allowed <= DTYPES.keys()


def spoilt(entry):
    """Yield what may become of an entry of `ARRAYS`."""
    yield from (entry[:length] for length in range(len(entry)))
    for place, bit in product(range(len(entry)), range(8)):
        yield entry[:place] + bytes([entry[place] ^ 1 << bit]) + entry[place + 1 :]
    yield bytes(len(entry))
    yield entry[:OVERHEAD] + bytes(len(entry) - OVERHEAD)
    yield entry + b"\0"
    yield entry + entry
    yield pickle.dumps(ARRAYS)
    yield save(ARRAYS)  # an entry of an earlier version
    yield entry[OVERHEAD:]
    yield MAGIC.replace(b"2", b"3") + entry[len(MAGIC) :]
    yield json.dumps({"means": [1.0]}).encode()


def test_an_entry_that_was_spoilt_is_absent_and_made_anew(tmp_path):
    cache, path = DiskCache(tmp_path), tmp_path / "features/a"
    cache.write_arrays("features", "a", ARRAYS)
    entry = path.read_bytes()
    for content in spoilt(entry):
        path.write_bytes(content)
        assert cache.read_arrays("features", "a") is None
        assert cache.read("features", "a") is None
    cache.write_arrays("features", "a", ARRAYS)
    assert_bitwise(cache.read_arrays("features", "a"), ARRAYS)


def test_an_entry_under_the_name_or_kind_of_another_is_absent(tmp_path):
    cache = DiskCache(tmp_path)
    cache.write_arrays("features", "a", ARRAYS)
    other_names: tuple[tuple[EntryKind, str], ...] = (("features", "b"), ("frames", "a"))
    for kind, key in other_names:
        (tmp_path / kind).mkdir(exist_ok=True)
        (tmp_path / kind / key).write_bytes((tmp_path / "features/a").read_bytes())
        assert cache.read_arrays(kind, key) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        bytes(16),
        (2**64 - 1).to_bytes(8, "little") + b"[]",
        header(b"[") + bytes(4),
        header(b"\xff\xfe"),
        header(b"[" * 10_000),
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}) + bytes(4),
        header({"__metadata__": None, "b": 1, "c": 2}),
        header("abc"),
        header(1),
        header(None),
        header(["abc", "def"]),
        header([["a", "float32"]]),
        header([["a", "float32", [1], 0]]) + bytes(4),
        header([["a", "float32", [2]]]) + bytes(4),
        header([["a", "float32", [1]]]) + bytes(8),
        header([["a", "float32", [1]]]) + bytes(3),
        header([["a", "float64", [1]]]) + bytes(4),
        header([["a", "object", [1]]]) + bytes(8),
        header([["a", "V8", [1]]]) + bytes(8),
        header([["a", None, [1]]]) + bytes(8),
        header([["a", ["float32"], [1]]]) + bytes(4),
        header([["a", "float32", [-1]]]),
        header([["a", "float32", [-1, -1]]]) + bytes(4),
        header([["a", "float32", [1.0]]]) + bytes(4),
        header([["a", "float32", [True]]]) + bytes(4),
        header([["a", "float32", ["1"]]]) + bytes(4),
        header([["a", "float32", 1]]) + bytes(4),
        header([["a", "float32", None]]) + bytes(4),
        header([["a", "float32", [2**70]]]) + bytes(4),
        header([["a", "float32", [0, 2**70]]]),
        header([["a", "float32", [1] * 200]]) + bytes(4),
        header([[1, "float32", [1]]]) + bytes(4),
        header([["a", "float32", [10**400]]]) + bytes(4),
    ],
)
def test_a_header_that_lies_under_a_right_checksum_makes_an_entry_absent(tmp_path, caplog, content):
    cache = DiskCache(tmp_path)
    cache.write("features", "a", content)
    assert cache.read("features", "a") == content
    assert cache.read_arrays("features", "a") is None
    assert cache.read_arrays("features", "a") is None
    (warning,) = warnings_in(caplog)
    assert f"{tmp_path}/features/a is computed again: it" in warning


def test_what_cannot_be_opened_is_absent_and_one_warning_says_so(tmp_path, caplog, monkeypatch):
    cache = DiskCache(tmp_path)
    cache.write_arrays("features", "a", ARRAYS)
    assert warnings_in(caplog) == []
    (tmp_path / "features/b/inside").mkdir(parents=True)
    (tmp_path / "features/loop").symlink_to(tmp_path / "features/loop")
    assert [cache.read_arrays("features", key) for key in ("b", "loop", "gone", "a/b")] == [None] * 4
    assert warnings_in(caplog) == [f"{tmp_path}/features/b is computed again: Is a directory"]
    assert_bitwise(cache.read_arrays("features", "a"), ARRAYS)

    def denied(_):
        raise PermissionError(13, "Permission denied")

    cache = DiskCache(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", denied)
        assert cache.read_arrays("features", "a") is None
        assert cache.read("captions", "a") is None
    assert warnings_in(caplog)[1:] == [f"{tmp_path}/features/a is computed again: Permission denied"]
    monkeypatch.setattr(os, "utime", denied)  # as where the folder is another user's
    assert_bitwise(cache.read_arrays("features", "a"), ARRAYS)


def test_a_directory_in_the_place_of_an_entry_stays_and_the_bound_holds(tmp_path, caplog):
    cache = DiskCache(tmp_path, max_bytes=1000)
    (tmp_path / "frames/b/inside").mkdir(parents=True)
    os.utime(tmp_path / "frames/b", (0, 0))
    cache.write("frames", "b", bytes(400))
    assert cache.read("frames", "b") is None
    for key in "acde":
        cache.write("frames", key, bytes(400))
        assert cache.read("frames", key) == bytes(400)
    assert cache.total_bytes() == 2 * (400 + OVERHEAD)
    assert (tmp_path / "frames/b/inside").is_dir()
    assert len(warnings_in(caplog)) == 2  # not written, not read


def changed(entry, **arrays):
    """Return arrays of an entry with some replaced, or left out where they are none."""
    return {name: array for name, array in {**entry, **arrays}.items() if array is not None}


@pytest.mark.slow
@pytest.mark.parametrize("whole", [True, False])
def test_frames_that_do_not_fit_together_are_decoded_again(tmp_path, caplog, whole):
    video, cache = write_clip(tmp_path / "a.mp4", frames=16 if whole else 30, rate=2), DiskCache(tmp_path / "cache")
    sampling = SegmentSampling(max_seconds=10.0, num_frames=10, image_size=16)
    first = list(read_segments(video, "it", sampling, cache)[2])
    path = sorted((tmp_path / "cache/frames").iterdir())[0]
    entry = cache.read_arrays("frames", path.name)
    assert entry is not None
    jpeg, ends, about = entry["jpeg"], entry["ends"], entry["about"]
    for n, wrong in enumerate(
        (
            {},
            *({name: None} for name in entry),
            *({name: array[:-1]} for name, array in entry.items()),
            *({name: array[None]} for name, array in entry.items()),
            *({name: array.astype(np.float16)} for name, array in entry.items()),
            {"more": ends},
            {"jpeg": np.zeros_like(jpeg)},
            {"jpeg": np.append(jpeg, jpeg[:2])},
            {"ends": ends - 1},
            {"ends": ends[::-1]},
            {"ends": np.zeros_like(ends)},
            {"times": np.full_like(entry["times"], np.nan)},
            {"indices": entry["indices"] + 10**6},
            {"indices": entry["indices"] - 1},
            {"about": about + np.array([1.0, 1.0, 0.0, 0.0])},
            {"about": about * [1, 1, 1, np.nan]},
            {"about": about * [1, 1, 1, -1]},
            {"about": about * [1, -1, 1, 1]},
            {"about": about * [1, np.inf, 1, 1]},
            {name: array[:0] for name, array in entry.items() if name != "about"},
            {name: np.concatenate([array] * 2) for name, array in entry.items() if name not in ("about", "ends")}
            | {"ends": np.concatenate([ends, ends + len(jpeg)])},
        )
    ):
        cache.write_arrays("frames", path.name, changed(entry, **wrong) if wrong else {})
        caplog.clear()
        cache = DiskCache(tmp_path / "cache")
        for before, after in zip(first, read_segments(video, "it", sampling, cache)[2], strict=True):
            assert (before.segment, before.keyframes) == (after.segment, after.keyframes)
            assert (before.total_frames, before.fps) == (after.total_frames, after.fps)
            np.testing.assert_array_equal(before.times, after.times)
            np.testing.assert_array_equal(before.indices, after.indices)
        assert len(warnings_in(caplog)) == 1, n
        assert_bitwise(cache.read_arrays("frames", path.name), entry)


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\xfd", b"1\nnot a time --> 00:00:01,000\nhello\n", b"\x80\x04]", b"some text"]
)
def test_captions_that_cannot_be_read_are_heard_again(tmp_path, monkeypatch, caplog, content):
    srt = "1\n00:00:01,000 --> 00:00:02,000\nhello\n"
    asked = []

    def caption(videos, folder, *_):
        for video in videos:
            target = folder / f"{video.stem}.srt"
            if not target.exists():
                asked.append(video)
                target.parent.mkdir(exist_ok=True)
                target.write_text(srt)
        return {video: folder / f"{video.stem}.srt" for video in videos}

    monkeypatch.setattr("calce_jax.search.captions.caption_without_srt", caption)
    cache, video = DiskCache(tmp_path / "cache"), tmp_path / "a.mp4"
    video.write_bytes(b"a video")
    caption_with_cache([video], tmp_path / "out", "tiny", cache)
    (path,) = (tmp_path / "cache/captions").iterdir()
    assert cache.read("captions", path.name) == srt.encode()
    for n, spoil in enumerate((lambda: cache.write("captions", path.name, content), lambda: path.write_bytes(b"")), 2):
        spoil()
        found = caption_with_cache([video], tmp_path / "out", "tiny", cache)
        assert found[video].read_text() == srt
        assert len(asked) == n
    assert len(warnings_in(caplog)) == 1
    caption_with_cache([video], tmp_path / "out", "tiny", cache)
    assert len(asked) == 3
    cache.write("captions", path.name, b"")  # of a video in which nobody speaks
    assert caption_with_cache([video], tmp_path / "out", "tiny", cache)[video].read_text() == ""
    assert len(asked) == 3


@pytest.mark.slow
@pytest.mark.parametrize(("frozen", "compute"), list(product(("float32", "bfloat16"), repeat=2)))
def test_what_is_seen_has_the_shapes_and_dtypes_that_are_expected_of_an_entry(frozen, compute):
    graph, trainable, weights = make_model(sizes := replace(SIZES, dtype=compute))
    weights = jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(frozen)), weights)
    video = jax.ShapeDtypeStruct((1, 5, sizes.vit.image_size, sizes.vit.image_size, 3), jnp.uint8)
    looked = jax.eval_shape(make_encode_video(graph), trainable, weights, video)
    predictor: Any = SimpleNamespace(num_frames=5, model=SimpleNamespace(model_config=sizes))
    arrays = {name: np.zeros(getattr(looked, name).shape, getattr(looked, name).dtype) for name in ("means", "queries")}
    assert Predictor.features_from_arrays(predictor, arrays).queries.dtype == jnp.dtype(compute)
    for wrong in (
        {"means": None},
        {"queries": None},
        {"more": arrays["means"]},
        {"means": arrays["means"][:, :4]},
        {"queries": arrays["queries"][0]},
        {"queries": arrays["queries"].astype(np.float16)},
    ):
        with pytest.raises(ValueError, match="features must be"):
            Predictor.features_from_arrays(predictor, changed(arrays, **wrong))


def counted(monkeypatch):
    """Return what reading the cache gave, by kind, and the frames of every video that was looked at."""
    reads, looked = [], []
    read, look = DiskCache.read_arrays, Predictor.encode_video

    def counting_read(self, kind, key):
        found = read(self, kind, key)
        reads.append((kind, found is not None))
        return found

    def counting_look(self, example):
        looked.append(self.num_frames)
        return look(self, example)

    monkeypatch.setattr(DiskCache, "read_arrays", counting_read)
    monkeypatch.setattr(Predictor, "encode_video", counting_look)
    return reads, looked


@pytest.fixture(scope="module")
def compiled():
    """Serves two tests, which makes it compile once."""
    return Searcher(make_stages("bfloat16"), DiskCache(""), MAX_SEGMENT_SECONDS)


@pytest.fixture
def searcher(compiled, tmp_path, monkeypatch):
    """Its weights are random and write no windows, so each of their answers stands for one."""
    monkeypatch.setattr("calce_jax.inference.answers.decode_answer", lambda _, ids: f"[[{int(np.sum(ids)) % 7}, 8]]")
    compiled.cache = DiskCache(tmp_path / "cache")
    return compiled


@pytest.mark.slow
def test_a_second_search_with_a_bfloat16_model_reads_what_the_first_one_saw(searcher, tmp_path, monkeypatch, caplog):
    video, folder = write_clip(tmp_path / "a.mp4", frames=40, rate=5), tmp_path / "cache"
    reads, looked = counted(monkeypatch)
    first = searcher.search(video, ["a red circle moves"])
    assert reads == [("frames", False)] + [("features", False)] * 2
    assert sorted(looked) == sorted(FRAMES.values())
    kept = [DiskCache(folder).read_arrays("features", path.name) for path in sorted((folder / "features").iterdir())]
    assert [str(entry["queries"].dtype) for entry in kept if entry] == ["bfloat16"] * 2

    reads.clear()
    assert searcher.search(video, ["a red circle moves"]) == first
    assert reads == [("frames", True)] + [("features", True)] * 2
    assert len(looked) == 2
    assert warnings_in(caplog) == []

    # Entries that are sound but not of this model, and entries of an earlier version, are made anew, bit by bit.
    paths = sorted((folder / "features").iterdir())
    DiskCache(folder).write_arrays("features", paths[0].name, {"means": np.zeros((1, 3), np.float32)})
    paths[1].write_bytes(save({"means": kept[1]["means"], "queries": kept[1]["queries"]}))
    assert searcher.search(video, ["a red circle moves"]) == first
    assert len(looked) == 4
    assert len(warnings_in(caplog)) == 1
    for path, entry in zip(paths, kept, strict=True):
        assert_bitwise(DiskCache(folder).read_arrays("features", path.name), entry)


@pytest.mark.release
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::ResourceWarning")  # Gradio's
def test_a_second_search_in_the_app_with_a_bfloat16_model(searcher, tmp_path, monkeypatch):
    web = pytest.importorskip("calce_jax.search.web.app", reason="gradio is absent: pip install 'calce_jax[web]'")
    video = write_clip(tmp_path / "a.mp4", frames=40, rate=5)
    results, files = (web.ResultStore(tmp_path / name, 60.0) for name in ("results", "uploads"))
    quota, samples = web.Quota(files, results, limits := web.Limits()), {"it": web.Sample("it", video, [])}
    search = web.SearchHandler(searcher, results, web.Uploads(files, quota, limits), quota, samples, limits)
    visitor = web.gr.Request(headers={"cookie": f"{COOKIE}=somebody"})
    reads, looked = counted(monkeypatch)
    for _ in range(2):
        assert "iframe" in search(None, None, "it", "a red circle moves", visitor)
    assert reads[3:] == [("frames", True)] + [("features", True)] * 2
    assert len(looked) == 2


def test_features_of_another_precision_are_other_entries():
    assert len({_weights_key(stage) for dtype in ("float32", "bfloat16") for stage in make_stages(dtype)}) == 2
