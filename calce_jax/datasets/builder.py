"""The TFDS builder of the two tables of a dataset, `videos` and `queries`, and their features.

A video is stored once, however many queries it has: `videos` has one row for each video of a split, `queries` one row
for each query, with the number of its video's row. Both are ArrayRecord files, written and read without TensorFlow.

Numbers are stored as raw bytes: TFDS's records have no float wider than 32 bits, and windows are kept as annotated.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from calce_jax.input_pipeline.dataset import VERSION, TableName
from calce_jax.moments.windows import Seconds

RowIterator = Iterator[dict[str, Any]]


def _number_feature(shape: tuple[int | None, ...], dtype: type[np.generic], doc: str) -> tfds.features.Tensor:
    return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes", doc=doc)


def _table_features(table: TableName) -> tfds.features.FeaturesDict:
    text, texts = tfds.features.Text, tfds.features.Sequence(tfds.features.Text())
    if table == "videos":
        return tfds.features.FeaturesDict(
            {
                "video": text(doc="Id of the video."),
                "total": _number_feature((), np.int64, "Number of frames in the file."),
                "rate": _number_feature((), np.float64, "Frames a second."),
                "duration": _number_feature((), np.float64, "Seconds."),
                "indices": _number_feature((None,), np.int32, "Frame number of each key frame in the file."),
                "times": _number_feature((None,), np.float32, "Time of each key frame, seconds."),
                "keyframes": texts,  # JPEG
                "caption_times": _number_feature((None, 2), np.float64, "Start and end of each caption, seconds."),
                "caption_texts": texts,
            }
        )
    return tfds.features.FeaturesDict(
        {
            "qid": text(doc="Id of the query as JSON, so that a number stays a number."),
            "video": text(doc="Id of the video."),
            "row": _number_feature((), np.int64, "Row of the video in the videos table of the same split."),
            "query": text(doc="The sentence."),
            "items": texts,  # nouns of the query
            "duration": _number_feature((), np.float64, "Duration of the video as annotated, seconds."),
            "windows": _number_feature((None, 2), np.float64, "Start and end of each annotated moment, seconds."),
            "stage1_windows": _number_feature(
                (None, 2), np.float64, "Start and end of each window that stage 1 predicted, seconds."
            ),
            "stage1_known": _number_feature((), np.bool_, "Whether the predictions of stage 1 have been merged in."),
            "kind": text(doc="Kind of query, such as visual or caption; empty if unknown."),
            "is_absent": _number_feature((), np.bool_, "Whether the query is annotated as not happening in the video."),
            "fact": text(doc="What the query asks for, equal for queries of the same meaning; empty if unknown."),
            "facts": texts,  # all that happens in the video; none if unknown
        }
    )


class TableBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Writes one table of a dataset; a subclass adds name, description, homepage, licence and citation.

    Rows are passed in, shard by shard: TFDS holds the rows of a shard in memory, and sorting a whole split would import
    TensorFlow above one gigabyte. The metadata of the videos table is {split: {video id: duration}}, in row order.

    Args:
      table: "videos" or "queries".
      shards: the rows of each shard of each split; a row is a dict of the table's features.
      data_dir: TFDS writes into a folder below it.
    """

    VERSION = tfds.core.Version(VERSION)
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        tfds.core.BuilderConfig(name="videos", description="One row for each video."),
        tfds.core.BuilderConfig(name="queries", description="One row for each query."),
    ]
    dataset_description: ClassVar[str]
    homepage: ClassVar[str]
    licence: ClassVar[str]
    citation: ClassVar[str]

    def __init__(self, *, table: TableName, shards: Mapping[str, Sequence[RowIterator]], data_dir: str | Path):
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


def windows_array(windows: Sequence[Sequence[Seconds]]) -> np.ndarray:
    """Return [start, end] pairs as float64 (N, 2); (0, 2) if there are none."""
    return np.asarray(windows, np.float64).reshape(-1, 2)
