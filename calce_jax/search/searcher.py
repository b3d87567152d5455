"""Run both stages on any video: file and sentences in, ranked moments out.

A long video is split into segments (`calce_jax.search.segments`). The Q-Former features of a segment do not depend on
the query: they are computed once and cached on disk (`calce_jax.storage.disk_cache`). The predictions for all segments
are merged into one ranked list (`calce_jax.search.ranking`).
"""

import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from operator import itemgetter
from pathlib import Path

import jax
import numpy as np
from absl import logging
from tqdm import tqdm

from calce_jax.config import DatasetName, packaged_path
from calce_jax.errors import UserError
from calce_jax.inference.answers import Answer
from calce_jax.inference.predictor import Predictor
from calce_jax.inference.trained_run import (
    TrainedModel,
    load_base_model,
    load_trained_model,
    with_eval_batch,
)
from calce_jax.input_pipeline.example import Example
from calce_jax.models.keyframes.treatment import Treatment
from calce_jax.models.vision_features import QFormerFeatures
from calce_jax.moments.player_time import format_time
from calce_jax.moments.scoring import BeamHypothesis
from calce_jax.presets.tiny import tiny_config
from calce_jax.search.calibration import Calibration, calibration_path, read_calibration
from calce_jax.search.inputs import check_queries
from calce_jax.search.paths import find_stages
from calce_jax.search.ranking import select_moments
from calce_jax.search.saliency import segment_saliency
from calce_jax.search.segments import (
    ChosenSegments,
    Segment,
    SegmentFrames,
    SegmentSampling,
    read_segments,
    segment_captions,
)
from calce_jax.search.video_result import QueryResult, UsedCaption, VideoResult
from calce_jax.storage.disk_cache import DiskCache, default_cache_dir, make_cache_key
from calce_jax.storage.failures import Failure
from calce_jax.storage.program_cache import ProgramCache
from calce_jax.storage.provenance import file_hash
from calce_jax.text.caption import Caption
from calce_jax.text.captions import clean_captions
from calce_jax.text.nouns import PHRASE_DATASETS, extract_items
from calce_jax.text.text_row import RowFlag

# Seconds. The longest video of QVHighlights and of shapes; 99 % of Charades-STA's videos are shorter than 60 s.
TRAINED_DURATION: dict[DatasetName, float] = {
    "qvhighlights": 150.0,
    "charades_sta": 60.0,
    "activitynet": 180.0,
    "shapes": 40.0,
}
MAX_MOMENTS = 5
TINY_MODEL_NOTICE = (
    "The tiny model was made for videos of coloured shapes, such as its samples; for other videos its answers mean "
    "nothing."
)
# A frame in two overlapping segments is shown with its highest treatment.
TREATMENT_ORDER: dict[Treatment, int] = {"dropped": 0, "compressed": 1, "full": 2}


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
    """

    video: Path
    duration: float
    num_segments: int
    segments: Iterable[EncodedSegment]


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
        answers: list[_SegmentAnswer] = []
        group_size = max(self.max_batch_size // len(queries), 1)
        segments = iter(source.segments)
        with tqdm(
            desc=source.video.name, total=source.num_segments, unit="segment", dynamic_ncols=True, leave=False
        ) as progress:
            while batch := list(islice(segments, group_size)):
                answers += self._predict([(encoded, query, captions) for encoded in batch for query in queries])
                progress.update(len(batch))
        _warn_of_dropped_captions(source.video, answers)
        results = [
            self._merge(query, answers[number :: len(queries)], max_moments) for number, query in enumerate(queries)
        ]
        return VideoResult(source.video, source.duration, results)

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

        answers: dict[tuple[int, int], list[_SegmentAnswer]] = {}
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
            _warn_of_dropped_captions(source.video, of_video)
        results = [
            VideoResult(
                source.video,
                source.duration,
                [self._merge(query, answers.get((number, q), []), max_moments) for q, query in enumerate(queries)],
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
        return EncodedVideo(source.video, source.duration, source.num_segments, list(source.segments))

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
        return EncodedVideo(Path(video), duration, len(segments), encoded)

    def _encode_segment(self, segment_frames: SegmentFrames, content: str) -> "EncodedSegment":
        example = encoding_example(segment_frames)
        features = {
            name: self._load_features(name, predictor, example, segment_frames, content)
            for name, predictor in self.predictors.items()
        }
        return EncodedSegment(segment_frames, features)

    def _predict(self, pairs: Sequence[tuple["EncodedSegment", str, Sequence[Caption]]]) -> list["_SegmentAnswer"]:
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
            _SegmentAnswer(
                encoded.frames.segment,
                encoded.frames.times,
                clean_captions(clipped[number]),
                {name: of_stage[number] for name, of_stage in answers.items()},
            )
            for number, (encoded, _, _) in enumerate(pairs)
        ]

    def _merge(self, query: str, answers: Sequence["_SegmentAnswer"], max_moments: int) -> QueryResult:
        """Merge the answers to a query for segments of a video; with none, nothing was found."""
        if not answers:
            return QueryResult(query.strip(), {name: [] for name in self.predictors}, [], [], [])
        found = _merge_answers(query.strip(), answers, max_moments)
        if self._calibration is None:
            return found
        *others, last = found.stages
        moments = [replace(moment, probability=self._calibration.probability(moment.score)) for moment in found.moments]
        return replace(found, stages={**{name: found.stages[name] for name in others}, last: moments})

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


def load_searcher(
    checkpoint: str | Path | None = None,
    *,
    cache: DiskCache | None = None,
    max_seconds: float | None = None,
    batch: int | None = None,
    keep_programs: bool = False,
) -> Searcher:
    """Load the models of both stages for searching videos.

    Args:
      checkpoint, batch: see `open_stages`.
      cache: of key frames and features; by default of 10 GB at `default_cache_dir()`.
      max_seconds: see `Searcher`.
      keep_programs: also keep the compiled programs in the cache, for later processes.

    Raises:
      SearchError, ConfigError, CheckpointError, TokenizerError: see `open_stages`.
      UserError: its calibration is damaged.
    """
    notice = TINY_MODEL_NOTICE if checkpoint is None else ""
    calibration = read_calibration(calibration_path(checkpoint))
    cache = cache or DiskCache(default_cache_dir())
    programs = ProgramCache(cache) if keep_programs else None
    return Searcher(
        open_stages(checkpoint, batch, programs), cache, max_seconds, notice, calibration, programs=programs
    )


def open_stages(
    checkpoint: str | Path | None = None, batch: int | None = None, programs: ProgramCache | None = None
) -> list[TrainedModel]:
    """Load the models of both stages on one device; they share one copy of equal frozen weights.

    Args:
      checkpoint: a folder with the workdirs `stage1` and `stage2`; by default the tiny model of the package, which was
        trained on the shapes dataset alone.
      batch: queries of a batch; by default `config.data.eval_batch` of each stage.
      programs: has the structure of the model, if it was opened before.

    Raises:
      SearchError: the folder has no such workdirs.
      ConfigError, CheckpointError, TokenizerError: a run cannot be loaded.
    """
    if checkpoint is None:
        stages = [load_base_model(with_eval_batch(tiny_config(stage), batch), programs) for stage in (1, 2)]
    else:
        stages = [
            load_trained_model(folder, mesh="single", batch=batch, programs=programs)
            for folder in find_stages(checkpoint)
        ]
    first, second = stages
    if (first.config.model, first.config.weights.base) == (second.config.model, second.config.weights.base):
        second = replace(second, frozen=first.frozen)
    return [first, second]


def enable_compilation_cache(folder: str | Path, max_bytes: int = 10**9) -> bool:
    """Let JAX cache compiled programs in `folder`/programs; above `max_bytes` the least recently used are deleted.

    A program that cannot be read or written is compiled again, without a warning for each. The programs that
    `calce_jax.storage.program_cache` keeps are not among them.

    Returns:
      Whether programs of either kind are there, of an earlier process.
    """
    programs = Path(folder).absolute() / "programs"
    # JAX writes a program, then its time of use. Where a full disk or a kill came in between, it would read the cut
    # program for ever, and write no other.
    for program in programs.glob("*-cache"):
        if not program.with_name(program.name.removesuffix("-cache") + "-atime").is_file():
            with suppress(OSError):
                program.unlink()
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
    jax.config.update("jax_compilation_cache_dir", str(programs))
    jax.config.update("jax_compilation_cache_max_size", max_bytes)
    return any(programs.glob("*-cache")) or any(Path(folder).glob("executables/*"))


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


def _beams(answer: Answer) -> Sequence[BeamHypothesis]:
    """Return the hypotheses of an answer. If the best one is that the query does not happen, it is the only one.

    Otherwise improbable windows of other beams would be found in every segment where the answer is "[]".
    """
    return [BeamHypothesis([], 1.0)] if answer.moments.is_absent else answer.moments.hypotheses


@dataclass(frozen=True)
class _SegmentAnswer:
    """The answers of each stage to a query about a segment, whose captions are clipped to it."""

    segment: Segment
    times: np.ndarray  # (T,), of its key frames, in seconds from its start
    captions: list[Caption]
    answers: dict[str, Answer]


def _warn_of_dropped_captions(video: Path, segment_answers: Sequence[_SegmentAnswer]) -> None:
    """Warn if a segment of a video has more captions than the model compares with a query."""
    dropped = [
        (len(segment_answer.captions), segment_answer.segment)
        for segment_answer in segment_answers
        if any(RowFlag.CAPTIONS_DROPPED in answer.row_flags for answer in segment_answer.answers.values())
    ]
    if dropped:
        count, segment = max(dropped, key=itemgetter(0))
        logging.warning(
            "%s: of its %d captions from %s to %s those that share least with the query were left out, as too many",
            video,
            count,
            format_time(segment.start),
            format_time(segment.end),
        )


def _merge_answers(query: str, segment_answers: Sequence[_SegmentAnswer], max_moments: int) -> QueryResult:
    """Merge the answers to one query for segments of a video; seconds count from the start of the video."""
    segments = [segment_answer.segment for segment_answer in segment_answers]
    stages = {
        name: select_moments(
            segments,
            [_beams(segment_answer.answers[name]) for segment_answer in segment_answers],
            max_moments,
        )
        for name in segment_answers[0].answers
    }
    name, moments = list(stages.items())[-1]
    captions: dict[tuple[float, float, str], float] = {}
    frames: dict[float, Treatment] = {}
    segments_with_moments: list[Segment] = []
    for segment_answer in segment_answers:
        segment, answer = segment_answer.segment, segment_answer.answers[name]
        for second, treatment in zip(segment_answer.times.tolist(), answer.treatments, strict=True):
            time = round(segment.start + second, 2)
            frames[time] = max(frames.get(time, treatment), treatment, key=TREATMENT_ORDER.__getitem__)
        if any(moment.start < segment.end and moment.end > segment.start for moment in moments):
            segments_with_moments.append(segment)
            for n in answer.used_captions:
                caption = segment_answer.captions[n]
                span = segment.start + float(caption.start), segment.start + float(caption.end)
                captions[*span, caption.text] = answer.caption_similarity[n]
    return QueryResult(
        query=query,
        stages=stages,
        captions=[UsedCaption(*caption, round(similarity, 3)) for caption, similarity in sorted(captions.items())],
        frames=sorted(frames.items()),
        segments_with_moments=segments_with_moments,
        saliency=segment_saliency(segments, [_beams(found.answers[name]) for found in segment_answers]),
    )
