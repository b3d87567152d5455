"""Random access to the queries of a prepared folder, each joined with its video.

A prepared folder holds the tables `tables/videos` and `tables/queries`, which `calce_jax.datasets.tables` writes.
Frames stay JPEG.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, overload

import tensorflow_datasets as tfds

from calce_jax.errors import UserError
from calce_jax.input_pipeline.example import Example, Query
from calce_jax.storage.atomic_files import find_dir
from calce_jax.storage.provenance import installed_version

TableName = Literal["videos", "queries"]
VERSION = "1.0.0"


class TablesError(UserError):
    """Tables cannot be built or read; the message names the folder or split and the remedy."""


class MomentDataset(Sequence[Example]):
    """The queries of a split, each with its video, by random access.

    It may be pickled for worker processes; each process opens the files when it first reads.

    Args:
      folder: what `calce prepare --out` wrote.
      split: name of the split.

    Raises:
      TablesError: the folder has no tables, tables of another version, or no such split.
    """

    def __init__(self, folder: Path, split: str):
        self.folder = folder
        self.split = split
        self._length = _split_length(folder, split)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        """Read a query and its video, or those of a slice; a negative index counts from the end.

        Raises:
          IndexError: `index` is out of range.
          TablesError: the tables are damaged.
        """
        if isinstance(index, slice):
            return [self[row] for row in range(self._length)[index]]
        index = range(self._length)[index]
        with damage_errors(self.folder):
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
        """Iterate over all queries without reading videos."""
        with damage_errors(self.folder):
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
      TablesError: as for `MomentDataset`.
    """
    return MomentDataset(Path(folder), split)


def _split_length(folder: Path, split: str) -> int:
    open_table(folder, "videos")
    splits = open_table(folder, "queries").info.splits
    if split not in splits:
        raise TablesError(
            f"{folder} has the splits {' and '.join(splits)}, but not {split}",
            "choose one of these, or prepare this one too",
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
        # Tables of earlier versions do not have these.
        is_absent=bool(row.get("is_absent", False)),
        fact=row.get("fact", b"").decode(),
        facts=tuple(fact.decode() for fact in row.get("facts", ())),
    )


def table_dir(folder: str | Path, table: TableName) -> Path:
    """Return the folder of a table; also of one whose replacement was killed half done."""
    return find_dir(find_dir(Path(folder) / "tables") / table)


def open_table(folder: str | Path, table: TableName) -> tfds.core.DatasetBuilder:
    """Open a table of a prepared folder.

    Raises:
      TablesError: it is missing, damaged or of another version.
    """
    path = table_dir(folder, table)
    if not (path / "dataset_info.json").is_file():
        raise TablesError(
            f"there are no tables in {folder}: {path} is missing", f"run `calce prepare` with --out={folder}"
        )
    try:
        builder = tfds.builder_from_directory(path)
    except Exception as error:  # JSON, protobuf and TFDS have errors of their own for a damaged file
        reason = f"{path}: its JSON files are damaged ({' '.join(str(error).split()):.200})"
        raise TablesError(reason, f"run `calce prepare` again with --out={folder}") from error
    if str(builder.version) != VERSION:
        raise TablesError(
            f"{path} holds tables of version {builder.version}, calce_jax {installed_version()} reads {VERSION}",
            "run `calce prepare` again with another --out, or use the calce_jax that wrote them",
        )
    return builder


@contextmanager
def damage_errors(folder: str | Path) -> Iterator[None]:
    """Turn what ArrayRecord and TFDS raise for missing and damaged files into a TablesError.

    A file that is cut has no records for TFDS, which fails where it decodes them.
    """
    try:
        yield
    except UserError:
        raise
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        reason = f"{Path(folder) / 'tables'}: a file of records is damaged ({' '.join(str(error).split()):.200})"
        raise TablesError(reason, f"remove the tables and run `calce prepare` again with --out={folder}") from error
