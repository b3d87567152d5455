"""Run both stages on any video: file and sentences in, ranked moments out.

A long video is split into segments (`calce_jax.search.segments`). The Q-Former features of a segment do not depend on
the query: they are computed once and cached on disk (`calce_jax.storage.disk_cache`). The predictions for all segments
are merged into one ranked list (`calce_jax.search.ranking`).
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from calce_jax.config import DatasetName, packaged_path
from calce_jax.errors import UserError
from calce_jax.inference.answers import Answer
from calce_jax.inference.predictor import Predictor
from calce_jax.inference.trained_run import (
    TrainedModel,
)
from calce_jax.input_pipeline.example import Example
from calce_jax.models.vision_features import QFormerFeatures
from calce_jax.search.calibration import Calibration
from calce_jax.search.inputs import check_queries
from calce_jax.search.segment_answers import SegmentAnswer, merge_answers, warn_of_dropped_captions
from calce_jax.search.segments import (
    ChosenSegments,
    SegmentFrames,
    SegmentSampling,
    read_segments,
    segment_captions,
)
from calce_jax.search.video_result import QueryResult, VideoResult
from calce_jax.storage.disk_cache import DiskCache, make_cache_key
from calce_jax.storage.failures import Failure
from calce_jax.storage.program_cache import ProgramCache
from calce_jax.storage.provenance import file_hash
from calce_jax.text.caption import Caption
from calce_jax.text.captions import clean_captions
from calce_jax.text.nouns import PHRASE_DATASETS, extract_items

# Seconds. The longest video of QVHighlights and of shapes; 99 % of Charades-STA's videos are shorter than 60 s.
TRAINED_DURATION: dict[DatasetName, float] = {
    "qvhighlights": 150.0,
    "charades_sta": 60.0,
    "activitynet": 180.0,
    "shapes": 40.0,
}
MAX_MOMENTS = 5


@dataclass(frozen=True)
class EncodedSegment:
    """The key frames of a segment, and their features for each stage."""

    frames: SegmentFrames
    features: dict[str, QFormerFeatures]


@dataclass(frozen=True)
class EncodedVideo:
    """What all queries about a video share.

    Attributes:
      video: the file.
      duration: seconds.
      num_segments: number of segments.
      segments: the segments in order of time.
      content: hash of the file; empty if it is not known.
    """

    video: Path
    duration: float
    num_segments: int
    segments: Iterable[EncodedSegment]
    content: str = ""


class Searcher:
    """Searches videos with the models of both stages.

    Args:
      stages: the model of each stage, in order; see `open_stages`.
      cache: holds key frames and features of the segments.
      max_seconds: length of a segment; by default that of the videos the models were trained on (`TRAINED_DURATION`).
      notice: why the answers may be meaningless, for people.
      calibration: has the score below which a query probably does not happen, and the probabilities of moments.
      programs: has the compiled programs, if they ran in an earlier process.

    Attributes:
      threshold: a query whose best moment has a lower score probably does not happen.
      sampling: of segments and their frames.
      predictors: "stage 1" and "stage 2".
      weight_keys: hashes of the weights that the features of each stage depend on.
      max_batch_size: pairs of a segment and a query that are predicted at once.
    """

    def __init__(
        self,
        stages: Sequence[TrainedModel],
        cache: DiskCache,
        max_seconds: float | None = None,
        notice: str = "",
        calibration: Calibration | None = None,
        *,
        programs: ProgramCache | None = None,
    ):
        self.notice, self._calibration = notice, calibration
        self.threshold = calibration.threshold if calibration else 0.0
        last = stages[-1].config
        frames = max(trained.config.data.frames for trained in stages)
        self.sampling = SegmentSampling(
            max_seconds or TRAINED_DURATION[last.data.dataset], frames, stages[0].model_config.vit.image_size
        )
        self.cache = cache
        self._t5 = stages[0].tokenizers.t5
        self._noun_phrases = last.data.dataset in PHRASE_DATASETS
        self.predictors = {
            f"stage {run.config.stage}": Predictor(run, self.sampling.max_seconds, programs) for run in stages
        }
        self.max_batch_size = min(predictor.max_batch_size for predictor in self.predictors.values())
        self.weight_keys = {name: _weights_key(predictor.model) for name, predictor in self.predictors.items()}

    def search(
        self,
        video: "str | Path | EncodedVideo",
        queries: Sequence[str],
        captions: Sequence[Caption] = (),
        *,
        max_moments: int = MAX_MOMENTS,
    ) -> VideoResult:
        """Find the moments of each sentence in one video.

        Args:
          video: the video file, or what `encode` returned.
          queries: sentences, see `check_queries`.
          captions: of the video, in order of time.
          max_moments: maximum number of moments of a query.

        Raises:
          SearchError: `check_queries` refuses a query.
          VideoError: the video cannot be read, or is too long.
        """
        check_queries(queries, self._t5)
        source = video if isinstance(video, EncodedVideo) else self.open(video)
        answers: list[SegmentAnswer] = []
        group_size = max(self.max_batch_size // len(queries), 1)
        segments = iter(source.segments)
        with tqdm(
            desc=source.video.name, total=source.num_segments, unit="segment", dynamic_ncols=True, leave=False
        ) as progress:
            while batch := list(islice(segments, group_size)):
                answers += self._predict([(encoded, query, captions) for encoded in batch for query in queries])
                progress.update(len(batch))
        warn_of_dropped_captions(source.video, answers)
        results = [
            self._merge(query, answers[number :: len(queries)], max_moments, source.duration)
            for number, query in enumerate(queries)
        ]
        return VideoResult(source.video, source.duration, results, source.content)

    def search_segments(
        self, chosen: Sequence[ChosenSegments], queries: Sequence[str], *, max_moments: int = MAX_MOMENTS
    ) -> tuple[list[VideoResult], list[Failure]]:
        """Find the moments of each sentence in some segments of many videos, which share batches.

        Args:
          chosen: of each video.
          queries: sentences, see `check_queries`.
          max_moments: maximum number of moments of a query in a video.

        Returns:
          The results of the videos that can be read, in order, and the others.

        Raises:
          SearchError: `check_queries` refuses a query.
        """
        check_queries(queries, self._t5)
        failures: list[Failure] = []
        sources: dict[int, EncodedVideo] = {}

        def asked() -> Iterator[tuple[int, int, EncodedSegment]]:
            for number, video in enumerate(chosen):
                try:
                    starts = {start for of_query in video.starts for start in of_query}
                    sources[number] = self.open(video.video, video.content, starts)
                    for encoded in sources[number].segments:
                        for query_number, of_query in enumerate(video.starts):
                            if encoded.frames.segment.start in of_query:
                                yield number, query_number, encoded
                except (UserError, OSError) as error:
                    sources.pop(number, None)
                    failures.append(Failure.of(str(video.video), error))
                progress.update()

        answers: dict[tuple[int, int], list[SegmentAnswer]] = {}
        with tqdm(desc="search", total=len(chosen), unit="video", dynamic_ncols=True, leave=False) as progress:
            pairs = asked()
            while batch := list(islice(pairs, self.max_batch_size)):
                predicted = self._predict(
                    [(encoded, queries[query], chosen[number].captions) for number, query, encoded in batch]
                )
                for (number, query, _), answer in zip(batch, predicted, strict=True):
                    answers.setdefault((number, query), []).append(answer)
        for number, source in sources.items():
            of_video = [answer for (video, _), asked in answers.items() if video == number for answer in asked]
            warn_of_dropped_captions(source.video, of_video)
        results = [
            VideoResult(
                source.video,
                source.duration,
                [
                    self._merge(query, answers.get((number, q), []), max_moments, source.duration)
                    for q, query in enumerate(queries)
                ],
                source.content,
            )
            for number, source in sources.items()
        ]
        return results, failures

    def encode(self, video: str | Path) -> "EncodedVideo":
        """Return what all queries about a video share, in memory: the features of its segments for each stage.

        Raises:
          VideoError: the video cannot be read, or is too long.
        """
        source = self.open(video)
        return replace(source, segments=list(source.segments))

    def open(
        self, video: str | Path, content: str | None = None, starts: Collection[float] | None = None
    ) -> "EncodedVideo":
        """Return a video whose segments are decoded and encoded while they are iterated over, once.

        Args:
          video: the file.
          content: its hash, if that is known.
          starts: in seconds, of the segments that are wanted; by default all.

        Raises:
          VideoError: the video cannot be read, or is too long; also while iterating.
        """
        if content is None:
            content = file_hash(video) if Path(video).is_file() else ""
        duration, segments, segment_frames = read_segments(video, content, self.sampling, self.cache, starts)
        encoded = (self._encode_segment(frames, content) for frames in segment_frames)
        return EncodedVideo(Path(video), duration, len(segments), encoded, content)

    def _encode_segment(self, segment_frames: SegmentFrames, content: str) -> "EncodedSegment":
        example = encoding_example(segment_frames)
        features = {
            name: self._load_features(name, predictor, example, segment_frames, content)
            for name, predictor in self.predictors.items()
        }
        return EncodedSegment(segment_frames, features)

    def _predict(self, pairs: Sequence[tuple["EncodedSegment", str, Sequence[Caption]]]) -> list[SegmentAnswer]:
        """Return the answers of both stages to queries about segments of videos with captions, one for each pair.

        Stage 2 gets the windows of stage 1.
        """
        clipped = [segment_captions(captions, encoded.frames.segment) for encoded, _, captions in pairs]
        items = {query: extract_items(query, phrases=self._noun_phrases) for query in {query for _, query, _ in pairs}}
        examples = [
            _example(number, query, items[query], encoded.frames, clipped[number])
            for number, (encoded, query, _) in enumerate(pairs)
        ]
        answers: dict[str, list[Answer]] = {}
        for name, predictor in self.predictors.items():
            asked = examples if predictor.model.trained_with_items else [replace(row, items=[]) for row in examples]
            answers[name] = predictor.predict(asked, [encoded.features[name] for encoded, _, _ in pairs])
            examples = [
                replace(example, stage1_windows=_stage1_windows(answer))
                for example, answer in zip(examples, answers[name], strict=True)
            ]
        return [
            SegmentAnswer(
                encoded.frames.segment,
                encoded.frames.times,
                clean_captions(clipped[number]),
                {name: of_stage[number] for name, of_stage in answers.items()},
            )
            for number, (encoded, _, _) in enumerate(pairs)
        ]

    def _merge(self, query: str, answers: Sequence[SegmentAnswer], max_moments: int, duration: float) -> QueryResult:
        """Merge the answers to a query for segments of a video of `duration` seconds; with none, nothing was found."""
        if not answers:
            return QueryResult(query.strip(), {name: [] for name in self.predictors}, [], [], [])
        found = merge_answers(query.strip(), answers, max_moments, duration)
        if self._calibration is None:
            return found
        moments = [replace(moment, probability=self._calibration.probability(moment.score)) for moment in found.moments]
        return replace(found, stages={**found.stages, list(found.stages)[-1]: moments})

    def _load_features(
        self, name: str, predictor: Predictor, example: Example, segment_frames: SegmentFrames, content: str
    ) -> QFormerFeatures:
        """Return the features of a segment from the cache, or compute and cache them."""
        segment = segment_frames.segment
        cache_key = make_cache_key(
            content=content,
            piece=[segment.start, segment.end, len(segment_frames.keyframes)],
            frames=predictor.num_frames,
            weights=self.weight_keys[name],
        )
        cached = self.cache.read_arrays("features", cache_key)
        if cached is not None:
            try:
                return predictor.features_from_arrays(cached)
            except ValueError as error:
                self.cache.refuse("features", cache_key, error)
        features = predictor.encode_video(example)
        self.cache.write_arrays("features", cache_key, {"means": features.means, "queries": features.queries})
        return features


def _weights_key(trained: TrainedModel) -> str:
    """Return a hash of the weights that Q-Former features depend on: the frozen ones and the trained `ln_vision`."""
    config, base = trained.config, trained.config.weights.base
    ln_vision = [np.asarray(leaf).tobytes().hex() for leaf in jax.tree.leaves(trained.trainable["ln_vision"])]
    base_stat = packaged_path(base).stat() if base else None
    return make_cache_key(
        model=[config.model.size, config.model.frozen_dtype, config.model.compute_dtype],
        base=[base_stat.st_size, base_stat.st_mtime_ns] if base_stat else config.seed,
        norm=ln_vision,
    )


def encoding_example(segment_frames: SegmentFrames) -> Example:
    """Return a segment as an example without a query, for `Predictor.encode_video`."""
    return _example(0, "", [], segment_frames, [])


def _example(
    number: int, query: str, items: list[str], segment_frames: SegmentFrames, captions: Sequence[Caption]
) -> Example:
    return Example(
        qid=number,
        video="",
        video_row=0,
        query=query.strip(),
        items=items,
        duration=segment_frames.segment.duration,
        windows=np.zeros((0, 2)),
        stage1_windows=None,
        kind=None,
        keyframes=segment_frames.keyframes,
        indices=segment_frames.indices,
        times=segment_frames.times,
        total_frames=segment_frames.total_frames,
        fps=segment_frames.fps,
        captions=[(float(caption.start), float(caption.end), caption.text) for caption in captions],
    )


def _stage1_windows(answer: Answer) -> np.ndarray | None:
    """Return the windows of stage 1 for the prompt of stage 2: (W, 2), seconds, in order of time, or None."""
    windows = sorted(window[:2] for window in answer.moments.windows)
    return np.array(windows, np.float64) if windows else None
