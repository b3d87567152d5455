"""Scores of queries that happen in a video, and of others, for `calce_jax.search.calibration`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from calce_jax.input_pipeline.dataset import MomentDataset
from calce_jax.input_pipeline.example import Example
from calce_jax.moments.windows import iou
from calce_jax.search.ranking import ScoredWindow
from calce_jax.search.searcher import EncodedSegment, EncodedVideo, Searcher
from calce_jax.search.segments import Segment, SegmentFrames
from calce_jax.text.caption import Caption

RIGHT_IOU = 0.5


@dataclass
class MeasuredScores:
    """The best scores of queries.

    Attributes:
      present: about their own videos; 0 where nothing was found.
      is_right: whether the best moment of each of these overlaps a true window by half or more (IoU).
      absent: about other videos.
    """

    present: list[float] = field(default_factory=list)
    is_right: list[bool] = field(default_factory=list)
    absent: list[float] = field(default_factory=list)


def measure_scores(searcher: Searcher, dataset: MomentDataset, *, max_queries: int, seed: int) -> MeasuredScores:
    """Return the best scores of queries about their own videos, and of as many about other videos.

    A query about another video shares no item with the queries of that video, and none of its items is said there. It
    may still happen there, where annotations are incomplete: then fewer seem to be rejected than are.

    Args:
      searcher: whose scores they are.
      dataset: with windows.
      max_queries: of each kind, drawn.
      seed: of the draws.

    Raises:
      TablesError: the tables are damaged.
    """
    rng = np.random.default_rng(seed)
    queries = [query for query in dataset.queries() if len(query.windows)]
    rows = {query.qid: row for row, query in enumerate(dataset.queries())}
    drawn = [queries[i] for i in rng.permutation(len(queries))[:max_queries]]
    items_of = {
        video: {item for q in queries if q.video == video for item in q.items} for video in {q.video for q in drawn}
    }
    measured = MeasuredScores()
    for query in tqdm(drawn, desc="calibrate", unit="query", dynamic_ncols=True):
        example = dataset[rows[query.qid]]
        said = " ".join(text for _, _, text in example.captions).lower()
        others = [
            other.query
            for other in (queries[i] for i in rng.permutation(len(queries))[:50])
            if other.video != query.video
            and not items_of[query.video] & set(other.items)
            and not any(item.lower() in said for item in other.items)
        ]
        sentences = [query.query, *others[:1]]
        captions = [Caption(*caption) for caption in example.captions]
        own, *of_others = _best_moments(searcher, example, sentences, captions)
        measured.present.append(_score(own))
        measured.is_right.append(own is not None and _best_iou(own, example) >= RIGHT_IOU)
        measured.absent += [_score(moment) for moment in of_others]
    return measured


def _score(moment: ScoredWindow | None) -> float:
    return moment.score if moment else 0.0


def _best_iou(moment: ScoredWindow, example: Example) -> float:
    return max(iou([moment.start, moment.end], window) for window in example.windows.tolist())


def _best_moments(
    searcher: Searcher, example: Example, queries: Sequence[str], captions: Sequence[Caption]
) -> list[ScoredWindow | None]:
    """Return the best moment of each query in the video of an example; None if there is none."""
    frames = SegmentFrames(
        Segment(0.0, example.duration),
        example.keyframes,
        example.indices,
        example.times,
        example.total_frames,
        example.fps,
    )
    features = {name: predictor.encode_video(example) for name, predictor in searcher.predictors.items()}
    video = EncodedVideo(Path(example.video), example.duration, 1, [EncodedSegment(frames, features)])
    found = searcher.search(video, queries, captions).query_results
    return [result.moments[0] if result.moments else None for result in found]
