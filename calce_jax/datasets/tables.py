"""Write the tables of a dataset: both from annotations and prepared videos, or only `queries` after merging."""

import errno
import io
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.example_serializer import ExampleSerializer
from tqdm import tqdm

from calce_jax.datasets.activitynet import ActivityNet
from calce_jax.datasets.builder import RowIterator, TableBuilder, windows_array
from calce_jax.datasets.charades_sta import CharadesSta
from calce_jax.datasets.qvhighlights import QVHighlights
from calce_jax.datasets.shapes import Shapes
from calce_jax.input_pipeline.dataset import TableName, TablesError, open_table, table_dir
from calce_jax.moments.annotations import Annotation
from calce_jax.moments.windows import Seconds
from calce_jax.presets.runs import SHORT_NAMES
from calce_jax.storage.atomic_files import atomic_replace_dir
from calce_jax.storage.failures import Failure

# By `data.dataset` of a config.
BUILDERS: dict[str, type[TableBuilder]] = {
    "qvhighlights": QVHighlights,
    "charades_sta": CharadesSta,
    "activitynet": ActivityNet,
    "shapes": Shapes,
}

# TFDS holds a shard in memory while writing it; 100 videos of 150 key frames are about 300 MB.
VIDEOS_PER_SHARD = 100
QUERIES_PER_SHARD = 20_000


@dataclass(frozen=True)
class VideoRecord:
    """A prepared video.

    Fields:
      video: id.
      total_frames: number of frames in the file.
      fps: frames per second.
      duration: seconds.
      indices: frame number of each key frame in the file, int32 (T,).
      times: of the key frames, seconds, float32 (T,).
      jpegs: the T key frames.
      captions: (start, end, text), in seconds.
    """

    video: str
    total_frames: int
    fps: float
    duration: float
    indices: np.ndarray
    times: np.ndarray
    jpegs: Sequence[bytes]
    captions: Sequence[tuple[Seconds, Seconds, str]]


@dataclass(frozen=True)
class SkippedQuery:
    """An annotated query that is not in the tables because its video is not."""

    split: str
    qid: str | int
    video: str
    reason: str
    remedy: str


def build_tables(
    folder: str | Path,
    dataset: str,
    split_rows: Mapping[str, Sequence[Annotation]],
    load_video: Callable[[str], VideoRecord],
) -> list[SkippedQuery]:
    """Write both tables of a dataset to `folder`/tables, replacing existing ones.

    Args:
      folder: the prepared folder.
      dataset: "qvhighlights", "charades_sta", "activitynet" or "shapes".
      split_rows: annotated queries of each split; the tables keep their order.
      load_video: returns a prepared video by its id; called once for each video of a split. If it raises OSError or
        ValueError, the queries of the video are skipped.

    Returns:
      The skipped queries.

    Raises:
      TablesError: the dataset is unknown, or a split has no query or no readable video.
      OSError: the tables cannot be written. Existing ones are untouched.
    """
    builder = _get_builder(dataset)
    for split, rows in split_rows.items():
        if not rows:
            raise TablesError(f"split {split} has no annotated query", "check its annotations, or omit the split")
    failures: dict[str, dict[str, Failure]] = {split: {} for split in split_rows}
    shards = {}
    for split, rows in split_rows.items():
        videos = list(dict.fromkeys(row.video for row in rows))
        loaded = _video_rows(split, videos, load_video, failures[split])
        shards[split] = _shards(loaded, len(videos), VIDEOS_PER_SHARD)
    with atomic_replace_dir(Path(folder) / "tables") as new:
        _write_table(builder, "videos", shards, new / "videos")
        _write_table(
            builder, "queries", _query_shards(split_rows, _read_video_durations(new / "videos")), new / "queries"
        )
    return [
        SkippedQuery(split, row.qid, row.video, failures[split][row.video].reason, failures[split][row.video].remedy)
        for split, rows in split_rows.items()
        for row in rows
        if row.video in failures[split]
    ]


def videos_table_matches(
    folder: str | Path, dataset: str, split_rows: Mapping[str, Sequence[Annotation]], latest_mtime: float
) -> bool:
    """Return whether the videos table is what `build_tables` would write, so that `rebuild_queries` is enough.

    Args:
      folder: the prepared folder; it need not exist.
      dataset: "qvhighlights", "charades_sta", "activitynet" or "shapes".
      split_rows: annotated queries of each split.
      latest_mtime: when the last of their videos was prepared, in seconds of the file system's clock. A table that is
        not newer may hold an earlier version of that video.
    """
    path = table_dir(folder, "videos")
    try:
        same_dataset = open_table(folder, "videos").name == _get_builder(dataset).name
        stored_videos = {split: set(videos) for split, videos in _read_video_durations(path).items()}
        written_at = (path / "metadata.json").stat().st_mtime
    except (OSError, ValueError):
        return False  # missing or damaged
    wanted = {split: {row.video for row in rows} for split, rows in split_rows.items()}
    return same_dataset and stored_videos == wanted and written_at > latest_mtime


def rebuild_queries(
    folder: str | Path, dataset: str, split_rows: Mapping[str, Sequence[Annotation]]
) -> list[SkippedQuery]:
    """Replace the queries table: other queries about the same videos, or windows of stage 1. Videos are untouched.

    Args:
      folder: the prepared folder.
      dataset: that of the tables.
      split_rows: annotated queries of each split; other splits are removed from the table.

    Returns:
      The queries whose video is not in the tables.

    Raises:
      TablesError: there are no tables, or those of another dataset or of other splits, or no query of a split is about
        a stored video.
      OSError: the table cannot be written. The existing one is untouched.
    """
    builder, tables = _get_builder(dataset), table_dir(folder, "videos").parent
    name = open_table(folder, "videos").name
    if name != builder.name:
        raise TablesError(f"{tables} holds {name}, not {builder.name}", "give the folder of this dataset")
    stored_durations = _read_video_durations(tables / "videos")
    if missing := set(split_rows) - set(stored_durations):
        raise TablesError(
            f"{tables} has the splits {', '.join(stored_durations)}, not {', '.join(sorted(missing))}",
            "run `calce prepare` with the annotations of all splits",
        )
    for split, rows in split_rows.items():
        if not any(row.video in stored_durations[split] for row in rows):
            raise TablesError(
                f"no query of split {split} is about a video in {tables}", "check which split the annotations are of"
            )
    with atomic_replace_dir(tables / "queries") as new:
        _write_table(builder, "queries", _query_shards(split_rows, stored_durations), new)
    return [
        SkippedQuery(split, row.qid, row.video, "its video is not prepared", "run `calce prepare` with its video")
        for split, rows in split_rows.items()
        for row in rows
        if row.video not in stored_durations[split]
    ]


def _get_builder(dataset: str) -> type[TableBuilder]:
    if dataset in SHORT_NAMES:
        raise TablesError(f"there is no dataset {dataset!r}", f"it is now called {SHORT_NAMES[dataset]!r}")
    if dataset not in BUILDERS:
        raise TablesError(f"there is no dataset {dataset!r}", f"there are {', '.join(BUILDERS)}")
    return BUILDERS[dataset]


def _video_rows(
    split: str, videos: Sequence[str], load_video: Callable[[str], VideoRecord], failures: dict[str, Failure]
) -> RowIterator:
    """Yield the rows of the videos of a split; videos that cannot be loaded are added to `failures`."""
    for video in tqdm(videos, desc=f"write {split}", unit="video"):
        try:
            record = load_video(video)
        except (OSError, ValueError) as error:
            failures[video] = Failure.of(video, error)
            continue
        yield {
            "video": video,
            "total": np.int64(record.total_frames),
            "rate": np.float64(record.fps),
            "duration": np.float64(record.duration),
            "indices": np.asarray(record.indices, np.int32),
            "times": np.asarray(record.times, np.float32),
            "keyframes": list(record.jpegs),
            "caption_times": windows_array([(start, end) for start, end, _ in record.captions]),
            "caption_texts": [text for _, _, text in record.captions],
        }
    if len(failures) == len(videos):
        first = failures[videos[0]]
        raise TablesError(
            f"none of the {len(videos)} videos of split {split} can be used; the first: {first.reason}", first.remedy
        )


def _read_video_durations(path: Path) -> dict[str, dict[str, float]]:
    """Return {split: {video: duration in seconds}} of a videos table, in row order."""
    return json.loads((path / "metadata.json").read_text())


def _query_shards(
    split_rows: Mapping[str, Sequence[Annotation]], stored_durations: Mapping[str, Mapping[str, float]]
) -> dict[str, list[RowIterator]]:
    return {
        split: _shards(_query_rows(rows, stored_durations[split]), len(rows), QUERIES_PER_SHARD)
        for split, rows in split_rows.items()
    }


def _query_rows(rows: Sequence[Annotation], stored_durations: Mapping[str, float]) -> RowIterator:
    video_rows = {video: row for row, video in enumerate(stored_durations)}
    for row in rows:
        if row.video in video_rows:
            yield {
                "qid": json.dumps(row.qid),
                "video": row.video,
                "row": np.int64(video_rows[row.video]),
                "query": row.query,
                "items": list(row.items),
                "duration": np.float64(stored_durations[row.video] if row.duration is None else row.duration),
                "windows": windows_array(row.windows or ()),
                "stage1_windows": windows_array(row.stage1_windows or ()),
                "stage1_known": np.bool_(row.stage1_windows is not None),
                "kind": row.kind or "",
                "is_absent": np.bool_(row.is_absent),
                "fact": row.fact or "",
                "facts": list(row.facts or ()),
            }


def _shards(rows: RowIterator, max_rows: int, shard_size: int) -> list[RowIterator]:
    """Cut at most `max_rows` rows into shards; the last ones are empty if there are fewer rows."""
    return [islice(rows, shard_size) for _ in range(math.ceil(max_rows / shard_size))]


def _write_table(
    builder: type[TableBuilder], table: TableName, shards: Mapping[str, Sequence[RowIterator]], path: Path
) -> None:
    """Write one table to `path`, which does not exist or is an empty folder."""
    # TFDS prints that it downloads, which it does not, and shows progress bars of temporary files.
    tfds.display_progress_bar(enable=False)
    with (
        tempfile.TemporaryDirectory(dir=path.parent, prefix="build_") as work_dir,
        redirect_stdout(io.StringIO()),
        _sorted_features(),
    ):
        build = builder(table=table, shards=shards, data_dir=work_dir)
        try:
            build.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
        except RuntimeError as error:
            # ArrayRecord raises this when the disk is full.
            if os.strerror(errno.ENOSPC) in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise
        os.rename(build.data_dir, path)


@contextmanager
def _sorted_features() -> Iterator[None]:
    """Let TFDS write the features of an example in the order of their names.

    Protocol buffers write a map in an order that differs from process to process, unless asked not to, and TFDS does
    not ask. The same rows would give other bytes each time.
    """

    def serialize_example(self: ExampleSerializer, example: Mapping[str, Any]) -> bytes:
        return self.get_tf_example(example).SerializeToString(deterministic=True)

    original = ExampleSerializer.serialize_example
    ExampleSerializer.serialize_example = serialize_example
    try:
        yield
    finally:
        ExampleSerializer.serialize_example = original
