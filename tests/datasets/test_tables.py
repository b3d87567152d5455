"""The tables: what is put in comes out, a video is there once, and neither needs TensorFlow."""

import json
import multiprocessing
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from tensorflow_datasets.proto import tf_example_pb2

from calce_jax.datasets import builder as builder_module
from calce_jax.datasets import tables
from calce_jax.datasets.builder import TableBuilder
from calce_jax.datasets.tables import SkippedQuery, VideoRecord, build_tables, rebuild_queries
from calce_jax.errors import UserError
from calce_jax.input_pipeline import dataset
from calce_jax.input_pipeline.dataset import MomentDataset, TablesError, open_dataset
from calce_jax.moments.annotations import Annotation

ROOT = Path(__file__).parents[2]
TRAIN = [
    Annotation(2579, "b", 'She says "no" — twice.', ["she", "é"], 150, [[82, 150]]),
    Annotation("x_1", "a", "An empty road.", [], 20.123456789, [[0.1, 6.9], [7, 11.3]], [[1, 2.7]], "several"),
    Annotation("x_2", "b", "Nothing was found.", ["one"], 150, [], [], "visual", fact="é", facts=["a", "b"]),
    Annotation("x_3", "broken", "Not to be seen.", [], 9, [[0, 1]]),
]
VAL = [Annotation(1, "c", "How long is it?", ["it"], None, [[0, 3]])]
CAPTIONS = {"a": [], "b": [(0.1, 2.2, "hé, you"), (3.0, 4.0, "again")], "c": [(0, 1, "one")]}


def load(video: str) -> VideoRecord:
    if video not in CAPTIONS:
        raise UserError(f"{video}.mp4: it is empty", "fetch it again")
    rng = np.random.default_rng(ord(video))
    return VideoRecord(
        video=video,
        total_frames=300,
        fps=30000 / 1001,
        duration=300 / (30000 / 1001),
        indices=np.arange(0, 300, 100),
        times=(np.arange(0, 300, 100) / (30000 / 1001)).astype(np.float32),
        jpegs=[b"", b"\x00\xff\xd8\x00", rng.bytes(20_000)],
        captions=CAPTIONS[video],
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    loaded = []
    left_out = build_tables(folder, "qvhighlights", {"train": TRAIN, "val": VAL}, lambda v: loaded.append(v) or load(v))
    return folder, loaded, left_out


def test_the_features_of_a_row_are_in_the_order_of_their_names(built):
    """Otherwise the same rows give other bytes in every process."""
    files = sorted(built[0].rglob("*.array_record*"))
    assert len(files) == 4
    for file in files:
        reader = ArrayRecordReader(str(file))
        for record in reader.read_all():
            example = tf_example_pb2.Example.FromString(record)
            assert len(example.features.feature) > 3
            assert record == example.SerializeToString(deterministic=True)
        reader.close()


@pytest.fixture
def folder(tmp_path):
    build_tables(tmp_path, "shapes", {"train": TRAIN[:3], "val": VAL}, load)
    return tmp_path


def assert_comes_back(example, annotation):
    record = load(annotation.video)
    for field in ("qid", "video", "query", "items", "kind"):
        assert getattr(example, field) == getattr(annotation, field)
        assert type(getattr(example, field)) is type(getattr(annotation, field))
    assert example.duration == (record.duration if annotation.duration is None else annotation.duration)
    assert example.windows.shape == (len(annotation.windows), 2)
    assert example.windows.tolist() == annotation.windows
    assert (example.is_absent, example.fact) == (annotation.is_absent, annotation.fact or "")
    assert example.facts == tuple(annotation.facts or ())
    if annotation.stage1_windows is None:
        assert example.stage1_windows is None
    else:
        assert example.stage1_windows.tolist() == annotation.stage1_windows
    assert example.keyframes == record.jpegs
    assert (example.indices.dtype, example.times.dtype) == (np.int32, np.float32)
    np.testing.assert_array_equal(example.indices, record.indices)
    np.testing.assert_array_equal(example.times, record.times)
    assert (example.total_frames, example.fps) == (record.total_frames, record.fps)
    assert example.captions == record.captions


def test_all_fields_come_back_bit_for_bit(built):
    folder, _, _ = built
    train, val = open_dataset(folder, "train"), open_dataset(str(folder), "val")
    assert (len(train), len(val)) == (3, 1)
    for example, annotation in zip([*train, *val], TRAIN[:3] + VAL, strict=True):
        assert_comes_back(example, annotation)
    assert train[-1].qid == "x_2"
    with pytest.raises(IndexError):
        train[3]


def test_tables_of_before_absent_queries_are_read(monkeypatch, tmp_path):
    """The builder of earlier versions, and its rows, without the newer fields."""
    newer = ("is_absent", "fact", "facts")
    features, rows = builder_module._table_features, tables._query_rows
    monkeypatch.setattr(
        builder_module,
        "_table_features",
        lambda table: tfds.features.FeaturesDict({n: f for n, f in features(table).items() if n not in newer}),
    )
    monkeypatch.setattr(
        tables, "_query_rows", lambda *a: ({n: v for n, v in row.items() if n not in newer} for row in rows(*a))
    )
    build_tables(tmp_path, "shapes", {"train": TRAIN[:3]}, load)
    assert [(q.is_absent, q.fact, q.facts) for q in open_dataset(tmp_path, "train").queries()] == [(False, "", ())] * 3


def test_queries_need_no_videos(built, monkeypatch):
    folder, _, _ = built
    train = open_dataset(folder, "train")
    monkeypatch.setattr(type(train), "_videos", None)
    assert [(query.qid, query.video_row) for query in train.queries()] == [(2579, 0), ("x_1", 1), ("x_2", 0)]


def test_a_video_is_loaded_and_stored_once_and_failures_are_named(built):
    folder, loaded, left_out = built
    assert loaded == ["b", "a", "broken", "c"]
    videos = tfds.builder_from_directory(folder / "tables" / "videos")
    assert {split: info.num_examples for split, info in videos.info.splits.items()} == {"train": 2, "val": 1}
    assert left_out == [SkippedQuery("train", "x_3", "broken", "broken.mp4: it is empty", "fetch it again")]
    assert sorted(path.name for path in folder.rglob("*") if path.is_dir()) == ["queries", "tables", "videos"]


def test_datasets_say_what_they_are(built):
    info = tfds.builder_from_directory(built[0] / "tables" / "queries").info
    assert info.name == "qvhighlights"
    assert "YouTube" in info.description
    assert "lei2021qvhighlights" in info.citation
    assert {cls.name for cls in tables.BUILDERS.values()} == {"qvhighlights", "charades_sta", "activitynet", "shapes"}


def test_rows_of_several_shards_keep_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "VIDEOS_PER_SHARD", 4)
    monkeypatch.setattr(tables, "QUERIES_PER_SHARD", 7)
    rows = [Annotation(number, f"v{number}", "A query.", [], 10, [[0, 1]]) for number in range(23)]
    absent = {"v0", *(f"v{number}" for number in range(5, 14))}

    def numbered(video: str) -> VideoRecord:
        if video in absent:
            raise OSError("gone")
        return VideoRecord(video, 1, 1.0, 1.0, np.zeros(1), np.zeros(1), [video.encode()], [])

    assert {left.video for left in build_tables(tmp_path, "charades_sta", {"train": rows}, numbered)} == absent
    train = open_dataset(tmp_path, "train")
    kept = [row for row in rows if row.video not in absent]
    assert len(train) == len(kept)
    assert [(e.qid, e.video, e.keyframes) for e in train] == [(r.qid, r.video, [r.video.encode()]) for r in kept]


def test_more_than_tfds_would_sort_in_memory_can_be_built(tmp_path, monkeypatch):
    """Beyond a gigabyte, TFDS's usual builders import TensorFlow."""
    monkeypatch.setattr("tensorflow_datasets.core.shuffle.MAX_MEM_BUFFER_SIZE", 0)
    build_tables(tmp_path, "shapes", {"train": TRAIN}, load)
    assert_comes_back(open_dataset(tmp_path, "train")[2], TRAIN[2])


def test_rebuilding_changes_queries_and_keeps_videos(folder):
    stored = {path: path.stat().st_mtime_ns for path in (folder / "tables" / "videos").iterdir()}
    merged = [Annotation("new", "a", "Other words.", ["x"], 20.5, [[0, 1]], [[2, 3.5]]), TRAIN[3]]
    assert rebuild_queries(folder, "shapes", {"train": merged}) == [
        SkippedQuery("train", "x_3", "broken", "its video is not prepared", "run `calce prepare` with its video")
    ]
    (example,) = open_dataset(folder, "train")
    assert_comes_back(example, merged[0])
    assert {path: path.stat().st_mtime_ns for path in (folder / "tables" / "videos").iterdir()} == stored
    with pytest.raises(TablesError, match=r"has the splits train, but not val"):
        open_dataset(folder, "val")
    rebuild_queries(folder, "shapes", {"train": TRAIN, "val": VAL})
    assert_comes_back(open_dataset(folder, "train")[1], TRAIN[1])
    assert_comes_back(open_dataset(folder, "val")[0], VAL[0])


def read_second(opened):
    return opened[1]


def test_workers_open_the_files_themselves(built):
    opened = open_dataset(built[0], "train")
    assert opened[0].qid == 2579
    assert len(pickle.dumps(opened)) < 1000
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert_comes_back(pool.submit(read_second, opened).result(), TRAIN[1])


def test_no_part_of_it_imports_tensorflow(tmp_path):
    program = """
import sys
from tests.datasets.test_tables import TRAIN, VAL, load
from calce_jax.input_pipeline.dataset import open_dataset
from calce_jax.datasets.tables import build_tables, rebuild_queries
build_tables(sys.argv[1], "charades_sta", {"train": TRAIN, "val": VAL}, load)
rebuild_queries(sys.argv[1], "charades_sta", {"train": TRAIN})
assert open_dataset(sys.argv[1], "train")[1].keyframes
assert not [name for name in sys.modules if name.split(".")[0] in ("tensorflow", "jax")]
"""
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == ""


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ({"train": []}, "split train has no annotated query"),
        ({"train": TRAIN[:1], "val": TRAIN[3:]}, r"none of the 1 videos of split val .*broken\.mp4: it is empty"),
    ],
)
def test_nothing_to_build_is_an_error_and_changes_nothing(folder, rows, named):
    with pytest.raises(TablesError, match=named):
        build_tables(folder, "shapes", rows, load)
    assert_comes_back(open_dataset(folder, "train")[0], TRAIN[0])
    assert [path.name for path in folder.iterdir()] == ["tables"]


def test_wrong_folder_split_version_or_dataset_is_named(folder, monkeypatch):
    with pytest.raises(TablesError, match=r"no tables in .*nowhere.*run `calce prepare` with --out="):
        open_dataset(folder / "nowhere", "train")
    with pytest.raises(TablesError, match=r"has the splits train and val, but not test; choose one"):
        open_dataset(folder, "test")
    with pytest.raises(
        TablesError, match="no dataset 'qvhighlight'; there are qvhighlights, charades_sta, activitynet, shapes"
    ):
        build_tables(folder, "qvhighlight", {"train": TRAIN}, load)
    with pytest.raises(TablesError, match="holds shapes, not qvhighlights"):
        rebuild_queries(folder, "qvhighlights", {"train": TRAIN})
    with pytest.raises(TablesError, match="has the splits train, val, not test; run `calce prepare`"):
        rebuild_queries(folder, "shapes", {"test": TRAIN})
    with pytest.raises(TablesError, match="no query of split val is about a video"):
        rebuild_queries(folder, "shapes", {"val": TRAIN})
    for old_name, name in (("qvh", "qvhighlights"), ("charades", "charades_sta")):
        with pytest.raises(TablesError, match=f"no dataset '{old_name}'; it is now called '{name}'"):
            build_tables(folder, old_name, {"train": TRAIN}, load)
    monkeypatch.setattr(dataset, "VERSION", "2.0.0")
    with pytest.raises(TablesError, match=r"holds tables of version 1\.0\.0, calce_jax .* reads 2\.0\.0; run `calce"):
        open_dataset(folder, "train")


@pytest.mark.parametrize(
    "full", [OSError(28, "No space left on device"), RuntimeError("write() failed: No space left on device; writing x")]
)
def test_full_disk_leaves_the_old_tables(folder, monkeypatch, full):
    """ArrayRecord raises the second."""

    def write(*args, **kwargs):
        raise full

    monkeypatch.setattr(TableBuilder, "download_and_prepare", write)
    with pytest.raises(OSError, match=r"cannot write .*tables .*No space left on device.*make room"):
        build_tables(folder, "shapes", {"train": TRAIN}, load)
    with pytest.raises(OSError, match=r"cannot write .*queries .*No space left on device.*make room"):
        rebuild_queries(folder, "shapes", {"train": TRAIN})
    assert_comes_back(open_dataset(folder, "train")[0], TRAIN[0])
    assert json.loads((folder / "tables" / "videos" / "metadata.json").read_text())["train"].keys() == {"b", "a"}
    assert not list(folder.rglob("*.part"))


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", '{"name": 1}'])
def test_damaged_tables_are_named_and_built_anew(folder, file, content):
    (folder / "tables/queries" / file).write_text(content)
    (folder / "tables/videos" / file).write_text(content)
    with pytest.raises(
        TablesError, match=r"tables/videos: its JSON files are damaged \(.*\); run `calce prepare` again"
    ):
        open_dataset(folder, "train")
    assert not tables.videos_table_matches(folder, "shapes", {"train": TRAIN[:3], "val": VAL}, 0.0)
    build_tables(folder, "shapes", {"train": TRAIN[:3]}, load)
    assert_comes_back(open_dataset(folder, "train")[0], TRAIN[0])


@pytest.mark.parametrize("table", ["videos", "queries"])
@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:100]), Path.unlink])
def test_damaged_records_are_named(folder, table, damage):
    (path,) = (folder / "tables" / table).glob("*-train.array_record*")
    damage(path)
    opened = MomentDataset(folder, "train")  # the type check of what `open_dataset` returns would read a query
    with pytest.raises(TablesError, match=r"tables: a file of records is damaged \(.*\); remove the tables and run"):
        opened[0]
    if table == "queries":
        with pytest.raises(TablesError, match="a file of records is damaged"):
            list(opened.queries())
