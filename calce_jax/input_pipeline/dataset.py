"""Moments on disk, read query by query.

A prepared folder holds `tables/videos` and `tables/queries` (written by `calce_jax.datasets.tables`). Whatever reads them gets an
`Example`, a query joined with its video; key frames stay JPEG.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow_datasets as tfds

from calce_jax.errors import UserError
from calce_jax.storage.provenance import installed_version

TableName = Literal["videos", "queries"]
VERSION = "1.0.0"


class TablesError(UserError):
    """Tables that cannot be built or read; the message names the folder or split and the remedy."""


@dataclass(frozen=True)
class Query:
    """A query without its video.

    Fields:
      qid: id, a number or a string as annotated.
      video: id.
      video_row: of the video in the videos table of the split.
      query: the sentence.
      items: the things named in it.
      duration: of the video in seconds, as annotated; where it is not, as found in the file.
      windows: float64 (n, 2), seconds; (0, 2) where the truth is not known.
      stage1_windows: float64 (n, 2), seconds, or None before merging.
      kind: of query, where known.
    """

    qid: str | int
    video: str
    video_row: int
    query: str
    items: list[str]
    duration: float
    windows: np.ndarray
    stage1_windows: np.ndarray | None
    kind: str | None


@dataclass(frozen=True)
class Example(Query):
    """A query and its video.

    Fields beside those of `Query`:
      keyframes: T JPEG images.
      indices: of the key frames in the file, int32 (T,).
      times: of the key frames in seconds, float32 (T,).
      total_frames: frames in the file.
      fps: frames a second.
      captions: (start, end, text), in seconds.
    """

    keyframes: list[bytes]
    indices: np.ndarray
    times: np.ndarray
    total_frames: int
    fps: float
    captions: list[tuple[float, float, str]]


class MomentDataset(Sequence[Example]):
    """The queries of one split, each with its video, by random access.

    It may be pickled, into worker processes for instance; each process opens the files when it first reads.
    """

    def __init__(self, folder: Path, split: str):
        self.folder = folder
        self.split = split
        self._length = _split_length(folder, split)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        """Read query number `index`, from the end where negative.

        Raises:
          IndexError: there are not that many.
          TablesError: the tables are damaged.
        """
        index = range(self._length)[index]
        with _damage_errors(self.folder):
            query = _to_query(self._queries[index])
            video = self._videos[query.video_row]
        return Example(
            **{field.name: getattr(query, field.name) for field in fields(Query)},
            keyframes=list(video["keyframes"]),
            indices=video["indices"],
            times=video["times"],
            total_frames=int(video["total"]),
            fps=float(video["rate"]),
            captions=[
                (start, end, text.decode())
                for (start, end), text in zip(video["caption_times"].tolist(), video["caption_texts"], strict=True)
            ],
        )

    def queries(self) -> Iterator[Query]:
        """Go through all queries without reading a video."""
        with _damage_errors(self.folder):
            yield from map(_to_query, self._queries)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "split": self.split, "_length": self._length}

    @cached_property
    def _videos(self) -> Any:
        return _open_table_source(self.folder, "videos", self.split)

    @cached_property
    def _queries(self) -> Any:
        return _open_table_source(self.folder, "queries", self.split)


def open_dataset(folder: str | Path, split: str) -> MomentDataset:
    """Open a split of a prepared folder.

    Raises:
      TablesError: the folder holds no tables, or tables of another version, or not this split.
    """
    return MomentDataset(Path(folder), split)


def _split_length(folder: Path, split: str) -> int:
    open_table(folder, "videos")
    splits = open_table(folder, "queries").info.splits
    if split not in splits:
        raise TablesError(
            f"{folder} has no split {split!r}, but {', '.join(splits)}", "choose one, or prepare this one too"
        )
    return splits[split].num_examples


def _open_table_source(folder: Path, table: TableName, split: str) -> Any:
    # TFDS's decorators hide the arguments of its methods from type checkers.
    builder: Any = open_table(folder, table)
    return builder.as_data_source(split)


def _to_query(row: dict[str, Any]) -> Query:
    return Query(
        qid=json.loads(row["qid"]),
        video=row["video"].decode(),
        video_row=int(row["row"]),
        query=row["query"].decode(),
        items=[item.decode() for item in row["items"]],
        duration=float(row["duration"]),
        windows=row["windows"],
        stage1_windows=row["stage1_windows"] if row["stage1_known"] else None,
        kind=row["kind"].decode() or None,
    )


def open_table(folder: str | Path, table: TableName) -> tfds.core.DatasetBuilder:
    """Open a table of a prepared folder.

    Raises:
      TablesError: it is missing, damaged or of another version.
    """
    path = Path(folder) / "tables" / table
    if not (path / "dataset_info.json").is_file():
        raise TablesError(
            f"there are no tables in {folder}: {path} is missing", f"run `calce prepare` with --out={folder}"
        )
    try:
        builder = tfds.builder_from_directory(path)
    except Exception as error:  # JSON, protobuf and TFDS have errors of their own for a damaged file
        reason = f"{path}: its JSON files are damaged ({str(error).splitlines()[0]})"
        raise TablesError(reason, f"run `calce prepare` again with --out={folder}") from error
    if str(builder.version) != VERSION:
        raise TablesError(
            f"{path} holds tables of version {builder.version}, calce_jax {installed_version()} reads {VERSION}",
            "run `calce prepare` again with another --out, or use the calce_jax that wrote them",
        )
    return builder


@contextmanager
def _damage_errors(folder: Path) -> Iterator[None]:
    """Turn what ArrayRecord raises for missing and damaged files into a TablesError."""
    try:
        yield
    except RuntimeError as error:
        reason = f"{folder / 'tables'}: a file of records is damaged ({error})"
        raise TablesError(reason, f"remove the tables and run `calce prepare` again with --out={folder}") from error
