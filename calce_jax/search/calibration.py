"""From which score on a query is taken to happen in a video: measured on queries of which it is known.

The model was never asked about something that does not happen, and always answers. Its best score still tells much: a
threshold that 5 % of the queries that do happen fall below rejects a share of those that do not, which is measured too.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from calce_jax.config import ASSETS, packaged_path
from calce_jax.errors import UserError
from calce_jax.input_pipeline.dataset import Example, MomentDataset
from calce_jax.search.paths import SearchError
from calce_jax.search.searcher import EncodedSegment, EncodedVideo, Searcher
from calce_jax.search.segments import Segment, SegmentFrames
from calce_jax.storage.atomic_files import write_atomic
from calce_jax.text.caption import Caption

CALIBRATION_FILE = "calibration.json"
TINY_CALIBRATION = f"{ASSETS}tiny/{CALIBRATION_FILE}"
KEPT = 0.95  # share of the queries that happen which shall be found


@dataclass(frozen=True)
class Calibration:
    """A threshold, and what it does to the queries that it was measured on.

    Attributes:
      threshold: a query whose best moment has a lower score probably does not happen in the video.
      kept: share of the queries that happen with at least this score.
      rejected: share of those that do not happen with a lower one.
      auroc: probability that one that happens has a higher score than one that does not.
      num_queries: of both kinds together.
    """

    threshold: float
    kept: float
    rejected: float
    auroc: float
    num_queries: int


def fit_calibration(present: Sequence[float], absent: Sequence[float]) -> Calibration:
    """Return the threshold that keeps 95 % of the queries that happen.

    Args:
      present: best scores of queries that happen; 0 where nothing was found.
      absent: best scores of queries that do not.

    Raises:
      SearchError: one of the lists is empty.
    """
    if not present or not absent:
        raise SearchError("no queries to calibrate with", "give a split with windows in two videos or more")
    happens, other = np.sort(np.asarray(present, float)), np.asarray(absent, float)
    threshold = float(happens[int((1 - KEPT) * len(happens))])
    above = (happens[:, None] > other[None]).mean() + (happens[:, None] == other[None]).mean() / 2
    return Calibration(
        threshold=round(threshold, 6),
        kept=float((happens >= threshold).mean()),
        rejected=float((other < threshold).mean()),
        auroc=float(above),
        num_queries=len(happens) + len(other),
    )


def measure_scores(
    searcher: Searcher, dataset: MomentDataset, *, max_queries: int, seed: int
) -> tuple[list[float], list[float]]:
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
    present, absent = list[float](), list[float]()
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
        scores = _best_scores(searcher, example, sentences, captions)
        present.append(scores[0])
        absent += scores[1:]
    return present, absent


def _best_scores(
    searcher: Searcher, example: Example, queries: Sequence[str], captions: Sequence[Caption]
) -> list[float]:
    """Return the score of the best moment of each query in the video of an example; 0 if there is none."""
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
    return [result.moments[0].score if result.moments else 0.0 for result in found]


def calibration_path(checkpoint: str | Path | None) -> Path:
    """Return the file of the calibration of a checkpoint folder, or that of the tiny model; there may be none."""
    return packaged_path(TINY_CALIBRATION) if checkpoint is None else Path(checkpoint) / CALIBRATION_FILE


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write a calibration as JSON."""
    write_atomic(path, json.dumps(asdict(calibration), indent=2) + "\n")


def read_calibration(path: Path) -> Calibration | None:
    """Return what `write_calibration` wrote, or None if there is no file.

    Raises:
      UserError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        calibration = Calibration(**fields)
        if not 0 <= calibration.threshold <= 1:
            raise ValueError(f"threshold {calibration.threshold}")
    except (ValueError, TypeError, OSError) as error:
        raise UserError(f"{path}: no calibration ({error})", "remove it, or run `calce calibrate` again") from error
    return calibration
