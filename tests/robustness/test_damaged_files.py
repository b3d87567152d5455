"""Damage to every kind of file that the program reads: flipped bits, files cut, emptied or zeroed.

Each case ends in one of three ways: the same is read, for what the damage is not in; what can be made anew counts as
absent; or an error of one line names the file and the remedy. Kinds without checksums, whose content people write
(`exact=False`), may also read as something else.
"""

import gc
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from calce_jax.checkpoints.manager import Checkpoints
from calce_jax.checkpoints.params_file import load_params, save_params
from calce_jax.checkpoints.restore import PATH_FIELDS, check_config, check_files
from calce_jax.config import RunConfig, flatten, is_ignored_on_resume, packaged_path, read_config, to_dict
from calce_jax.datasets.prepared_video import PrepareJob, PrepareSettings, load_video, prepare_video
from calce_jax.datasets.tables import VideoRecord, build_tables
from calce_jax.errors import UserError
from calce_jax.inference.extract_features import VideoDataset
from calce_jax.inference.partial_predictions import PartialPredictions
from calce_jax.input_pipeline.dataset import MomentDataset
from calce_jax.input_pipeline.example import Query
from calce_jax.input_pipeline.feature_store import (
    FeatureMetadata,
    FeatureStore,
    FrameKeys,
    ShardWriter,
    diff_metadata,
    init_feature_folder,
)
from calce_jax.moments.annotations import Annotation, read_annotations, write_annotations
from calce_jax.moments.predictions import Prediction, prediction_to_json, read_predictions, write_predictions
from calce_jax.presets.tiny import tiny_config
from calce_jax.search.load_searcher import enable_compilation_cache
from calce_jax.storage.atomic_files import write_atomic
from calce_jax.storage.disk_cache import DiskCache
from calce_jax.text.captions import read_srt
from calce_jax.text.tokenizers import open_tokenizers, tokenizer_hashes
from calce_jax.training.state import TrainState
from calce_jax.video.decode import VideoError, encode_jpeg, read_frames
from tests.helpers.commands import unchanged_process
from tests.helpers.video_files import write_clip


def _flip(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :]


def _zero_middle(content: bytes) -> bytes:
    third = len(content) // 3
    return content[:third] + bytes(third) + content[2 * third :]


FLIPS = {f"bit flipped at {tenths}/10": tenths / 10 for tenths in (0, 2, 4, 5, 7, 9)}
DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda content: b"",
    "zeroed": lambda content: bytes(len(content)),
    "cut in half": lambda content: content[: len(content) // 2],
    "cut at its end": lambda content: content[: max(0, len(content) - 7)],
    "zeroed in its middle": _zero_middle,
    **{name: (lambda content, at=at: _flip(content, int(at * (len(content) - 1)))) for name, at in FLIPS.items()},
}
CHEAP_DAMAGES = ("cut in half", "bit flipped at 5/10")


@dataclass(frozen=True)
class Kind:
    """A kind of file: how it is written to a folder, which file is damaged, and how the program reads the folder."""

    write: Callable[[Path], None]
    file: str  # a pattern: the largest file is damaged
    read: Callable[[Path], Any]
    exact: bool = True


ROWS = [Annotation(n, "clip", f"A red circle number {n}.", ["circle"], 8.0, [[1.0, 2.5]]) for n in range(4)]
PREDICTIONS = [Prediction(row.qid, row.query, row.video, [[1.0, 2.5, 0.5]], "[[1, 2]]", "exact", 8) for row in ROWS]
QUERIES = [Query(row.qid, row.video, 0, row.query, row.items, 8.0, np.asarray(row.windows), None, None) for row in ROWS]
NOISE = np.random.default_rng(0).integers(0, 256, (4, 28, 28, 3), np.uint8)


def write_annotation_list(folder: Path) -> None:
    rows = [
        {"qid": r.qid, "vid": r.video, "query": r.query, "duration": r.duration, "relevant_windows": r.windows}
        for r in ROWS
    ]
    (folder / "train.json").write_text(json.dumps(rows))


def write_srt(folder: Path) -> None:
    entries = (f"{n}\n00:00:0{n},000 --> 00:00:0{n},900\nsomebody says word {n}\n" for n in range(1, 6))
    (folder / "clip.srt").write_text("\n".join(entries))


def write_video(folder: Path) -> None:
    write_clip(folder / "clip.mp4", frames=20, rate=5, noise=True)


def prepare_job(folder: Path) -> PrepareJob:
    return PrepareJob("clip", folder / "clip.mp4", None, folder / "prepared/clip.npz", PrepareSettings(4, 28))


def write_prepared(folder: Path) -> None:
    write_video(folder)
    prepare_video(prepare_job(folder))


def read_prepared(folder: Path) -> Any:
    return arrays_of(vars(load_video(folder / "prepared", "clip")))


METADATA = FeatureMetadata("hash", "tiny", "float32", "float32", 28, 4, "float32", 3, 8, 0, "base", "git", "jax")
KEYS = FrameKeys("clip", range(4), range(100, 104))


def write_features(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    init_feature_folder(folder, METADATA, host=0)
    writer = ShardWriter(folder, 0, 0)
    values = np.random.default_rng(0).random((4, 3, 8), np.float32)
    writer.add(KEYS, [value.tobytes() for value in values], {"changed": 1.0})
    writer.close()


def write_tables(folder: Path) -> None:
    indices = np.arange(4, dtype=np.int32)
    video = VideoRecord(
        "clip", 20, 5.0, 8.0, indices, indices.astype(np.float32), encode_jpeg(NOISE), [(0.0, 1.0, "a")]
    )
    build_tables(folder, "shapes", {"train": ROWS}, lambda _: video)
    write_features(folder / "features")


def read_tables(folder: Path) -> Any:
    dataset = MomentDataset(folder, "train")
    queries = [arrays_of(vars(query)) for query in dataset.queries()]
    videos = VideoDataset(folder)
    loaded = [arrays_of(videos.load(0, FeatureStore(folder / "features")).frames)]
    return queries, [arrays_of(vars(example)) for example in dataset], videos.video_ids, loaded


def read_features(folder: Path) -> Any:
    """Read features as a run does, which first compares their metadata with its own."""
    store = FeatureStore(folder)
    if differences := diff_metadata(store.metadata, METADATA, ("frames", "store")):
        raise UserError(f"{folder}/features.json: {differences}", "other features")
    return arrays_of(store.read(KEYS)), store.squared_sums()


def make_state() -> TrainState:
    kernel = np.random.default_rng(0).normal(size=(32, 16)).astype(np.float32)
    return TrainState(jnp.int32(3), {"kernel": jnp.asarray(kernel)}, {"mu": jnp.arange(16.0)})


def make_iterator() -> grain.DatasetIterator:
    return iter(grain.MapDataset.range(32).to_iter_dataset())


def write_run(folder: Path) -> None:
    config = to_dict(tiny_config(1))
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    checkpoints, iterator = Checkpoints(folder), make_iterator()
    next(iterator)
    checkpoints.save(make_state(), iterator, {"config": config, "base": None}, {"R1_avg": 54.25})
    checkpoints.close()


def read_run(folder: Path) -> Any:
    """Read what resuming and loading read; paths of a config, which name files of their own, are left out."""
    config, checkpoints, iterator = read_config(folder), Checkpoints(folder, read_only=True), make_iterator()
    try:
        best, metadata = checkpoints.best_step_and_metric, checkpoints.read_metadata(3)
        check_config(folder / "checkpoints/3", metadata, config)
        sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), make_state())
        state = checkpoints.restore(3, abstract, iterator)
    finally:
        checkpoints.close()
    fields = {
        name: value
        for name, value in flatten(to_dict(config))
        if name not in PATH_FIELDS and not is_ignored_on_resume(name)
    }
    return best, metadata, arrays_of(vars(state)), iterator.get_state(), fields


WEIGHTS = {"kernel": np.random.default_rng(1).normal(size=(64, 8)).astype(np.float32), "bias": np.ones(8, np.float32)}


def copy_tokenizers(folder: Path) -> None:
    for name in ("t5", "bert"):
        shutil.copytree(packaged_path("calce_jax/assets/tiny") / name, folder / name)
    write_atomic(folder / "hashes.json", json.dumps(tokenizer_hashes(config_with_tokenizers(folder))))


def config_with_tokenizers(folder: Path) -> RunConfig:
    config = tiny_config(1)
    text = replace(config.text, t5_tokenizer=str(folder / "t5"), bert_tokenizer=str(folder / "bert"))
    return replace(config, text=text, weights=replace(config.weights, base=""))


def read_tokenizers(folder: Path) -> Any:
    """Read tokenizers as a trained run does, whose checkpoints have their hashes."""
    config = config_with_tokenizers(folder)
    tokenizers = open_tokenizers(config)
    check_files(folder, {"tokenizers": json.loads((folder / "hashes.json").read_text())}, config)
    return [sorted(tokenizer.get_vocab().items()) for tokenizer in vars(tokenizers).values()]


def write_cache(folder: Path) -> None:
    DiskCache(folder).write_arrays("features", "key", WEIGHTS)


def read_cache(folder: Path) -> Any:
    """Return None if the entry is made anew."""
    arrays = DiskCache(folder).read_arrays("features", "key")
    return arrays and arrays_of(arrays)


def run_compiled(folder: Path) -> Any:
    """Compile a function, or read it from the folder; JAX warns about an entry that it cannot read, and replaces it."""
    with unchanged_process():
        warnings.filterwarnings("ignore", "Error reading persistent compilation cache")
        enable_compilation_cache(folder)
        reset_cache()
        result = np.asarray(jax.jit(lambda x: jnp.cumsum(jnp.sin(x)))(np.arange(8, dtype=np.float32)))
    reset_cache()
    return result.tobytes()


def write_partial(folder: Path) -> None:
    partial = PartialPredictions(folder / "out.jsonl", QUERIES)
    partial.resume({"seed": 1}, batch_size=2)
    partial.path.write_text("".join(json.dumps(prediction_to_json(row)) + "\n" for row in PREDICTIONS))


def read_partial(folder: Path) -> Any:
    """Return None if the predictions are made anew, from any query on."""
    partial = PartialPredictions(folder / "out.jsonl", QUERIES)
    if partial.resume({"seed": 1}, batch_size=2) < len(ROWS):
        return None
    partial.read()
    partial.finish()
    return read_predictions(folder / "out.jsonl")


KINDS: dict[str, Kind] = {
    "video": Kind(write_video, "*.mp4", lambda d: read_frames(d / "clip.mp4", 4, 28).frames.tobytes(), exact=False),
    "captions": Kind(write_srt, "*.srt", lambda d: read_srt(d / "clip.srt"), exact=False),
    "annotations": Kind(
        lambda d: write_annotations(d / "train.jsonl", ROWS),
        "*.jsonl",
        lambda d: read_annotations(d / "train.jsonl"),
        exact=False,
    ),
    "annotations as a list": Kind(
        write_annotation_list,
        "*.json",
        lambda d: read_annotations(d / "train.json"),
        exact=False,
    ),
    "predictions": Kind(
        lambda d: write_predictions(d / "val.jsonl", PREDICTIONS),
        "*.jsonl",
        lambda d: read_predictions(d / "val.jsonl"),
        exact=False,
    ),
    "prepared video": Kind(write_prepared, "prepared/*.npz", read_prepared),
    "table of videos": Kind(write_tables, "tables/videos/*array_record*", read_tables),
    "table of queries": Kind(write_tables, "tables/queries/*array_record*", read_tables),
    "dataset_info.json": Kind(write_tables, "tables/queries/dataset_info.json", read_tables),
    "features.json of a table": Kind(write_tables, "tables/videos/features.json", read_tables),
    "metadata of a table": Kind(write_tables, "tables/videos/metadata.json", read_tables),
    "features": Kind(write_features, "*.array_record", read_features),
    "features.json": Kind(write_features, "features.json", read_features),
    "arrays of a checkpoint": Kind(write_run, "checkpoints/3/state/**/d/*", read_run),
    "manifest of a checkpoint": Kind(write_run, "checkpoints/3/state/manifest.ocdbt", read_run),
    "array names of a checkpoint": Kind(write_run, "checkpoints/3/state/_METADATA", read_run),
    "array metadata of a checkpoint": Kind(write_run, "checkpoints/3/state/array_metadatas/*", read_run),
    "shardings of a checkpoint": Kind(write_run, "checkpoints/3/state/_sharding", read_run),
    "item names of a checkpoint": Kind(write_run, "checkpoints/3/_CHECKPOINT_METADATA", read_run),
    "metadata of a checkpoint": Kind(write_run, "checkpoints/3/record/metadata", read_run),
    "metrics of a checkpoint": Kind(write_run, "checkpoints/3/metrics/metrics", read_run),
    "iterator of a checkpoint": Kind(write_run, "checkpoints/3/iterator/*.json", read_run),
    "config.json": Kind(write_run, "config.json", read_run),
    "base weights": Kind(
        lambda d: save_params(d / "base.safetensors", WEIGHTS),
        "*.safetensors",
        lambda d: arrays_of(load_params(d / "base.safetensors", WEIGHTS)),
    ),
    "T5's tokenizer": Kind(copy_tokenizers, "t5/*", read_tokenizers),
    "BERT's tokenizer": Kind(copy_tokenizers, "bert/*", read_tokenizers),
    "cache": Kind(
        write_cache, "features/*", lambda d: arrays_of(DiskCache(d).read_arrays("features", "key") or {}) or None
    ),
    "compiled program": Kind(run_compiled, "programs/*-cache", run_compiled),
    "unfinished predictions": Kind(write_partial, "out.jsonl.part", read_partial, exact=False),
    "inputs of unfinished predictions": Kind(write_partial, "out.jsonl.part.json", read_partial),
}
REMADE = ("cache", "unfinished predictions", "inputs of unfinished predictions")


def arrays_of(values: Any) -> Any:
    """Return nested values with arrays as bytes, which can be compared."""
    to_bytes = lambda leaf: np.asarray(leaf).tobytes() if isinstance(leaf, np.ndarray | jax.Array) else leaf  # noqa: E731
    return jax.tree.map(to_bytes, values)


@pytest.fixture(scope="module")
def undamaged(tmp_path_factory):
    """Return the folder of a kind and what is read there, made once."""
    made: dict[str, tuple[Path, Any]] = {}

    def get(name: str) -> tuple[Path, Any]:
        if name not in made:
            folder = tmp_path_factory.mktemp("kind")
            KINDS[name].write(folder)
            copy = tmp_path_factory.mktemp("copy") / "files"
            shutil.copytree(folder, copy)
            made[name] = folder, KINDS[name].read(copy)
        return made[name]

    return get


CASES = [
    pytest.param(kind, damage, marks=() if damage in CHEAP_DAMAGES else pytest.mark.release)
    for kind in KINDS
    for damage in DAMAGES
]


@pytest.fixture(scope="module", autouse=True)
def orbax_reads_that_were_left():
    """Orbax reads arrays at once; those still under way when one fails find its event loop closed, which warns."""
    yield
    with warnings.catch_warnings(action="ignore"), patch("sys.unraisablehook"):
        gc.collect()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("kind", "damage"), CASES)
def test_damage_is_harmless_or_repaired_or_named_in_one_line(undamaged, tmp_path, kind, damage):
    source, expected = undamaged(kind)
    folder = tmp_path / "files"
    shutil.copytree(source, folder)
    path = max((p for p in folder.glob(KINDS[kind].file) if p.is_file()), key=lambda p: p.stat().st_size)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    try:
        content, message = KINDS[kind].read(folder), ""
    except (UserError, VideoError) as error:
        content, message = None, str(error)
    if message:
        line = message.split("\n", 1)[0]  # a list of fields may follow
        # Orbax and TFDS do not tell in which of their files the damage is.
        places = (path, path.parent, folder / "checkpoints/3", folder / "tables")
        assert any(str(place) in line for place in places), line
        assert "; " in message, message
        assert len(line) < 600, line
    elif not (kind in REMADE and content is None):
        assert content == expected or not KINDS[kind].exact
