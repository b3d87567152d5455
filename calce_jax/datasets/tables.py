"""Building the tables of a dataset from annotations and prepared videos, and the queries alone after merging."""

import errno
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from calce_jax.datasets.builder import RowIterator, TableBuilder, windows_array
from calce_jax.datasets.charades_sta import CharadesSta
from calce_jax.datasets.qvhighlights import QVHighlights
from calce_jax.datasets.shapes import Shapes
from calce_jax.input_pipeline.dataset import TableName, TablesError, open_table
from calce_jax.moments.annotations import Annotation
from calce_jax.storage.failures import Failure

# By the names configs give them.
BUILDERS: dict[str, type[TableBuilder]] = {"qvhighlights": QVHighlights, "charades_sta": CharadesSta, "shapes": Shapes}

# TFDS keeps a shard in memory while it writes it; 100 videos of 150 key frames are about 300 MB.
VIDEOS_PER_SHARD = 100
QUERIES_PER_SHARD = 20_000


@dataclass(frozen=True)
class VideoRecord:
    """A prepared video.

    Fields:
      video: id.
      total_frames: frames in the file.
      fps: frames a second.
      duration: seconds.
      indices: of the key frames in the file, int32 (T,).
      times: of the key frames in seconds, float32 (T,).
      jpegs: the key frames, T of them.
      captions: (start, end, text), in seconds.
    """

    video: str
    total_frames: int
    fps: float
    duration: float
    indices: np.ndarray
    times: np.ndarray
    jpegs: Sequence[bytes]
    captions: Sequence[tuple[float, float, str]]


@dataclass(frozen=True)
class SkippedQuery:
    """An annotated query that is not in the tables, because its video is not."""

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
    """Write both tables of a dataset into a folder, in place of those that are there.

    Args:
      folder: where `tables` is made.
      dataset: "qvhighlights", "charades_sta" or "shapes".
      split_rows: the annotated queries of each split; the tables keep their order.
      load_video: returns a prepared video by its id; called once for each video of a split. Where it raises OSError or
        ValueError, the video's queries are left out.

    Returns:
      The queries that were left out.

    Raises:
      TablesError: the dataset is unknown, or a split has no query, or no video that can be read.
      OSError: the tables cannot be written. Those that were there are untouched.
    """
    builder = _get_builder(dataset)
    for split, rows in split_rows.items():
        if not rows:
            raise TablesError(f"split {split} has no annotated query", "check its annotations, or leave the split out")
    failures: dict[str, dict[str, Failure]] = {split: {} for split in split_rows}
    shards = {}
    for split, rows in split_rows.items():
        videos = list(dict.fromkeys(row.video for row in rows))
        loaded = _video_rows(split, videos, load_video, failures[split])
        shards[split] = _shards(loaded, len(videos), VIDEOS_PER_SHARD)
    with _atomic_replace_dir(Path(folder) / "tables") as new:
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
    """Return whether the videos table is what `build_tables` would make it, so that `rebuild_queries` is enough.

    Args:
      folder: a prepared folder, or one to be.
      dataset: "qvhighlights", "charades_sta" or "shapes".
      split_rows: the annotated queries of each split.
      latest_mtime: when the last of their videos was prepared; a table that is not younger may hold it as it was before.
    """
    path = Path(folder) / "tables" / "videos"
    try:
        same = open_table(folder, "videos").name == _get_builder(dataset).name
        stored_videos = {split: set(videos) for split, videos in _read_video_durations(path).items()}
        written_at = (path / "metadata.json").stat().st_mtime
    except (OSError, ValueError):
        return False  # none, or damaged
    wanted = {split: {row.video for row in rows} for split, rows in split_rows.items()}
    return same and stored_videos == wanted and written_at > latest_mtime


def rebuild_queries(
    folder: str | Path, dataset: str, split_rows: Mapping[str, Sequence[Annotation]]
) -> list[SkippedQuery]:
    """Write the queries table anew, for other queries about the same videos or after merging; the videos stay.

    Args:
      folder: a prepared folder.
      dataset: as when the tables were built.
      split_rows: the annotated queries of each split; a split that is not among them leaves the table.

    Returns:
      The queries whose video is not in the tables.

    Raises:
      TablesError: there are no tables, or of another dataset, or not of these splits; or no query of a split is about
        a stored video.
      OSError: the table cannot be written. The one that was there is untouched.
    """
    builder, tables = _get_builder(dataset), Path(folder) / "tables"
    name = open_table(folder, "videos").name
    if name != builder.name:
        raise TablesError(f"{tables} holds {name}, not {builder.name}", "give the folder of this dataset")
    stored_durations = _read_video_durations(tables / "videos")
    if missing := set(split_rows) - set(stored_durations):
        raise TablesError(
            f"{tables} has videos of {', '.join(stored_durations)} only, not of {', '.join(sorted(missing))}",
            "prepare them first",
        )
    for split, rows in split_rows.items():
        if not any(row.video in stored_durations[split] for row in rows):
            raise TablesError(
                f"no query of split {split} is about a video in {tables}", "give annotations of this split"
            )
    with _atomic_replace_dir(tables / "queries") as new:
        _write_table(builder, "queries", _query_shards(split_rows, stored_durations), new)
    return [
        SkippedQuery(split, row.qid, row.video, "not among the prepared videos", "prepare it")
        for split, rows in split_rows.items()
        for row in rows
        if row.video not in stored_durations[split]
    ]


def _get_builder(dataset: str) -> type[TableBuilder]:
    if dataset not in BUILDERS:
        raise TablesError(f"there is no dataset {dataset!r}", f"there are {', '.join(BUILDERS)}")
    return BUILDERS[dataset]


def _video_rows(
    split: str, videos: Sequence[str], load_video: Callable[[str], VideoRecord], failures: dict[str, Failure]
) -> RowIterator:
    """Load the videos of a split; why some cannot be goes into `failures`."""
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
        raise TablesError(
            f"none of the {len(videos)} videos of split {split} can be used", f"first: {failures[videos[0]].reason}"
        )


def _read_video_durations(path: Path) -> dict[str, dict[str, float]]:
    """Return {split: {video: duration}} of a videos table; videos are in the order of its rows."""
    return json.loads((path / "metadata.json").read_text())


def _query_shards(
    split_rows: Mapping[str, Sequence[Annotation]], stored_durations: Mapping[str, Mapping[str, float]]
) -> dict[str, list[RowIterator]]:
    return {
        split: _shards(_query_rows(rows, stored_durations[split]), len(rows), QUERIES_PER_SHARD)
        for split, rows in split_rows.items()
    }


def _query_rows(rows: Sequence[Annotation], stored_durations: Mapping[str, float]) -> RowIterator:
    video_rows = {video: place for place, video in enumerate(stored_durations)}
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
            }


def _shards(rows: RowIterator, max_rows: int, shard_size: int) -> list[RowIterator]:
    """Cut at most `max_rows` rows into shards; where there turn out to be fewer, the last shards stay empty."""
    return [islice(rows, shard_size) for _ in range(math.ceil(max_rows / shard_size))]


def _write_table(
    builder: type[TableBuilder], table: TableName, shards: Mapping[str, Sequence[RowIterator]], path: Path
) -> None:
    """Write one table to `path`, which does not exist or is an empty folder."""
    # TFDS tells of a download that does not happen, and shows bars with the names of temporary files.
    tfds.display_progress_bar(enable=False)
    with (
        tempfile.TemporaryDirectory(dir=path.parent, prefix="build_") as work_dir,
        redirect_stdout(io.StringIO()),
    ):
        build = builder(table=table, shards=shards, data_dir=work_dir)
        try:
            build.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
        except RuntimeError as error:
            # ArrayRecord's way to say that the disk is full.
            if os.strerror(errno.ENOSPC) in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise
        os.rename(build.data_dir, path)


@contextmanager
def _atomic_replace_dir(path: Path) -> Iterator[Path]:
    """Give an empty folder beside `path`, and put it there when what it is to hold has been written."""
    new, old = path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.old")
    try:
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
        new.mkdir(parents=True)
        yield new
        if path.exists():
            path.rename(old)
        new.rename(path)
    except OSError as error:
        if old.exists() and not path.exists():
            old.rename(path)
        raise OSError(
            error.errno, f"cannot write {path} ({error.strerror or error}); make room, or choose another place"
        ) from error
    finally:
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
