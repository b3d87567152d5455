"""The two tables of a dataset as TensorFlow Datasets sees them: features, the builder all datasets share, opening.

A video is stored once, however many queries it has. `videos` has a row a video; `queries` has a row a query, which says
in which row of `videos` the video of its split stands. Both are ArrayRecord files, written and read without TensorFlow.

Numbers are stored as raw bytes, because the records know no float wider than 32 bits and windows must come back as they
were annotated.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from calce_jax.input_pipeline.dataset import VERSION, TableName

RowIterator = Iterator[dict[str, Any]]


def _number_feature(shape: tuple[int | None, ...], dtype: type[np.generic], doc: str) -> tfds.features.Tensor:
    return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes", doc=doc)


def _table_features(table: TableName) -> tfds.features.FeaturesDict:
    text, texts = tfds.features.Text, tfds.features.Sequence(tfds.features.Text())
    if table == "videos":
        return tfds.features.FeaturesDict(
            {
                "video": text(doc="Id of the video."),
                "total": _number_feature((), np.int64, "Frames in the file."),
                "rate": _number_feature((), np.float64, "Frames a second."),
                "duration": _number_feature((), np.float64, "Seconds."),
                "indices": _number_feature((None,), np.int32, "Place of each key frame in the file."),
                "times": _number_feature((None,), np.float32, "Second of each key frame."),
                "keyframes": texts,  # JPEG
                "caption_times": _number_feature((None, 2), np.float64, "Seconds from which and to which it is said."),
                "caption_texts": texts,
            }
        )
    return tfds.features.FeaturesDict(
        {
            "qid": text(doc="Id of the query, as JSON: a number stays one."),
            "video": text(doc="Id of the video."),
            "row": _number_feature((), np.int64, "Row of the video in the videos table of the same split."),
            "query": text(doc="The sentence."),
            "items": texts,  # the things named in the query
            "duration": _number_feature((), np.float64, "Seconds, as annotated."),
            "windows": _number_feature((None, 2), np.float64, "Seconds from which and to which it happens."),
            "stage1_windows": _number_feature((None, 2), np.float64, "The windows stage 1 found, in seconds."),
            "stage1_known": _number_feature((), np.bool_, "Whether stage 1's windows have been merged in."),
            "kind": text(doc="What kind of query it is; empty where unknown."),
        }
    )


class TableBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Writes one table of a dataset; the datasets only add what they are.

    The rows are given, since reading annotations and decoding videos is not TFDS's work. They are given shard by shard:
    TFDS keeps the rows of one in memory, and to order those of a whole split it would ask for TensorFlow as soon as
    they exceed a gigabyte. The metadata of the videos table is {split: {video id: duration}}, in the order of the rows.
    """

    VERSION = tfds.core.Version(VERSION)
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        tfds.core.BuilderConfig(name="videos", description="One row a video."),
        tfds.core.BuilderConfig(name="queries", description="One row a query."),
    ]
    dataset_description: ClassVar[str]
    homepage: ClassVar[str]
    licence: ClassVar[str]
    citation: ClassVar[str]

    def __init__(self, *, table: TableName, shards: Mapping[str, Sequence[RowIterator]], data_dir: str | Path):
        """Prepare to write the rows of each split's shards into a folder below `data_dir`."""
        self._table: TableName = table
        self._shards = shards
        self._durations = tfds.core.MetadataDict()
        super().__init__(data_dir=data_dir, config=table, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.dataset_description,
            features=_table_features(self._table),
            homepage=self.homepage,
            license=self.licence,
            citation=self.citation,
            disable_shuffling=True,
            metadata=self._durations,
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, list[Callable[[], Iterator[tuple[int, dict[str, Any]]]]]]:
        del dl_manager
        return {
            split: [partial(self._enumerate_rows, split, rows) for rows in shards]
            for split, shards in self._shards.items()
        }

    def _enumerate_rows(self, split: str, rows: RowIterator) -> Iterator[tuple[int, dict[str, Any]]]:
        durations = self._durations.setdefault(split, {})
        for index, row in enumerate(rows):
            if self._table == "videos":
                durations[row["video"]] = float(row["duration"])
            yield index, row


def windows_array(windows: Sequence[Sequence[int | float]]) -> np.ndarray:
    """Return windows as float64 (n, 2), also where there are none."""
    return np.asarray(windows, np.float64).reshape(-1, 2)
