"""Pictures of a library by an Apache Beam pipeline: workers look at the videos, the starting machine writes them down.

All workers see the videos and the checkpoint under the same paths, and each has a cache of its own.
"""

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions

from calce_jax.datasets.beam import DONE_TAG, FAILED_TAG, make_shards, run_pipeline, with_retries
from calce_jax.search.load_searcher import load_searcher
from calce_jax.search.picture_ranker import PictureRanker, open_ranker
from calce_jax.search.segment_index import VECTOR_DTYPE, SegmentVectors
from calce_jax.search.segments import Segment
from calce_jax.storage.disk_cache import DiskCache
from calce_jax.storage.failures import Failure

VIDEOS_PER_SHARD = 64


def make_embed_fn(
    options: PipelineOptions, checkpoint: Path | None, cache: DiskCache, folder: Path
) -> Callable[[Mapping[Path, str]], Iterator[tuple[Path, list[SegmentVectors] | Failure]]]:
    """Return the argument `embed` of `Library.index_pictures`: embed by a pipeline.

    Args:
      options: from `calce_jax.datasets.beam.beam_options`.
      checkpoint: of both stages and their ranker; None for the tiny model.
      cache: its folder and bound, on every worker.
      folder: one that all workers see; while the pipeline runs, it holds a folder of its outputs.
    """

    def embed(videos: Mapping[Path, str]) -> Iterator[tuple[Path, list[SegmentVectors] | Failure]]:
        shards = make_shards([(str(path), content) for path, content in videos.items()], VIDEOS_PER_SHARD)
        rows = run_pipeline(options, folder, shards, EmbedFn(checkpoint, str(cache.folder), cache.max_bytes))
        for row in rows[FAILED_TAG]:
            yield Path(row["video"]), Failure(**row)
        for row in rows[DONE_TAG]:
            yield Path(row["video"]), [_from_json(part) for part in row["segments"]]

    return embed


class EmbedFn(beam.DoFn):
    """Embeds a shard of videos; a worker opens the model once."""

    def __init__(self, checkpoint: Path | None, cache_folder: str, cache_bytes: int):
        super().__init__()
        self._checkpoint, self._cache_folder, self._cache_bytes = checkpoint, cache_folder, cache_bytes
        self._ranker: PictureRanker | None = None

    def process(self, element: list[tuple[str, str]]) -> Iterator[Any]:
        """Yield each video with its vectors as JSON, and failures to the side output."""
        videos = {Path(path): content for path, content in element}
        for path, segments in with_retries(lambda: list(self._get_ranker().embed_videos(videos))):
            if isinstance(segments, Failure):
                yield beam.pvalue.TaggedOutput(FAILED_TAG, json.dumps(asdict(segments)))
            else:
                yield json.dumps({"video": str(path), "segments": [_to_json(part) for part in segments]})

    def _get_ranker(self) -> PictureRanker:
        if self._ranker is None:
            searcher = load_searcher(self._checkpoint, cache=DiskCache(self._cache_folder, self._cache_bytes))
            self._ranker = open_ranker(searcher, self._checkpoint)
        return self._ranker


def _to_json(part: SegmentVectors) -> dict[str, Any]:
    vectors = base64.b64encode(part.vectors.astype(VECTOR_DTYPE).tobytes()).decode()
    return {
        "start": float(part.segment.start),
        "end": float(part.segment.end),
        "width": part.vectors.shape[1],
        "vectors": vectors,
    }


def _from_json(part: dict[str, Any]) -> SegmentVectors:
    vectors = np.frombuffer(base64.b64decode(part["vectors"]), VECTOR_DTYPE).reshape(-1, part["width"])
    return SegmentVectors(Segment(part["start"], part["end"]), vectors)
