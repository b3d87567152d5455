"""Vectors of segments and of sentences, by which the segments of a library are chosen that a model is asked about.

Dimensions: N sentences, V vectors of a segment, D width of a vector, W width of the Q-Former, E width of T5.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float

from calce_jax.checkpoints.params_file import load_params
from calce_jax.errors import UserError
from calce_jax.models.calce_sizes import CalceConfig
from calce_jax.models.segment_ranker import SegmentRanker, init_segment_ranker
from calce_jax.search.paths import check_ranker, ranker_path
from calce_jax.search.searcher import Searcher, encoding_example
from calce_jax.search.segment_index import SegmentVectors
from calce_jax.storage.disk_cache import make_cache_key
from calce_jax.storage.failures import Failure
from calce_jax.storage.provenance import file_hash

STAGE = "stage 2"  # has more frames, of which `pooled_frames` uses at most 20


class PictureRanker:
    """Ranks segments with the features of a searcher's second stage.

    Args:
      searcher: has the models of both stages.
      layers: were fitted to stage 2 of the same checkpoint.
      content: hash of the layers.

    Attributes:
      key: hash of all that the vectors depend on.
    """

    def __init__(self, searcher: Searcher, layers: SegmentRanker, content: str):
        self._searcher, self._layers = searcher, layers
        self._predictor = searcher.predictors[STAGE]
        sampling = searcher.sampling
        self.key = make_cache_key(
            layers=content,
            weights=searcher.weight_keys[STAGE],
            frames=self._predictor.num_frames,
            sampling=[sampling.max_seconds, sampling.num_frames, sampling.image_size],
        )

    def embed_video(self, video: Path, content: str) -> Iterator[SegmentVectors]:
        """Yield the vectors of each segment of a video; its key frames and features are cached.

        Args:
          video: the file.
          content: its hash.

        Raises:
          VideoError: the video cannot be read.
        """
        for encoded in self._searcher.open(video, content).segments:
            pooled = self._predictor.pool_features(encoding_example(encoded.frames), encoded.features[STAGE])
            vectors = np.asarray(self._layers.embed_images(pooled)).astype(np.float16)
            yield SegmentVectors(encoded.frames.segment, vectors.reshape(-1, vectors.shape[-1]))

    def embed_videos(
        self, videos: Mapping[Path, str], progress: Callable[[Iterable[Path]], Iterable[Path]] = iter
    ) -> Iterator[tuple[Path, list[SegmentVectors] | Failure]]:
        """Yield each video with the vectors of its segments, or why it has none.

        Args:
          videos: files, with the hashes of their contents.
          progress: wraps the files, for a progress bar.
        """
        for path in progress(list(videos)):
            try:
                yield path, list(self.embed_video(path, videos[path]))
            except (UserError, OSError, ValueError) as error:
                yield path, Failure.of(str(path), error)

    def embed_queries(self, queries: Sequence[str]) -> Float[np.ndarray, "N D"]:
        """Return the vectors of N sentences, float32."""
        return np.asarray(self._layers.embed_texts(self._predictor.mean_word_embeddings(queries)))


def open_ranker(searcher: Searcher, checkpoint: str | Path | None) -> PictureRanker:
    """Return the ranker of a checkpoint folder.

    Raises:
      SearchError: it has none.
      CheckpointError: the file is damaged, or of a model of another size.
    """
    check_ranker(checkpoint)
    path, config = ranker_path(checkpoint), searcher.predictors[STAGE].model.model_config
    return PictureRanker(searcher, load_params(path, _abstract(config)), file_hash(path))


def _abstract(config: CalceConfig) -> SegmentRanker:
    widths = config.qformer.width, config.t5.width
    return jax.eval_shape(lambda key: init_segment_ranker(*widths, key), jax.random.key(0))
