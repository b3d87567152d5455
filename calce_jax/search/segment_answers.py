"""The answers to one query for the segments of a video, merged into one result."""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import numpy as np
from absl import logging

from calce_jax.inference.answers import Answer
from calce_jax.models.keyframes.treatment import Treatment
from calce_jax.moments.player_time import format_time
from calce_jax.moments.scoring import BeamHypothesis
from calce_jax.search.ranking import select_moments
from calce_jax.search.saliency import segment_saliency
from calce_jax.search.segments import Segment
from calce_jax.search.video_result import QueryResult, UsedCaption
from calce_jax.text.caption import Caption
from calce_jax.text.text_row import RowFlag

# A frame in two overlapping segments is shown with its highest treatment.
TREATMENT_ORDER: dict[Treatment, int] = {"dropped": 0, "compressed": 1, "full": 2}


def _beams(answer: Answer) -> Sequence[BeamHypothesis]:
    """Return the hypotheses of an answer. If the best one is that the query does not happen, it is the only one.

    Otherwise improbable windows of other beams would be found in every segment where the answer is "[]".
    """
    return [BeamHypothesis([], 1.0)] if answer.moments.is_absent else answer.moments.hypotheses


@dataclass(frozen=True)
class SegmentAnswer:
    """The answers of each stage to a query about a segment, whose captions are clipped to it."""

    segment: Segment
    times: np.ndarray  # (T,), of its key frames, in seconds from its start
    captions: list[Caption]
    answers: dict[str, Answer]


def warn_of_dropped_captions(video: Path, segment_answers: Sequence[SegmentAnswer]) -> None:
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


def merge_answers(
    query: str, segment_answers: Sequence[SegmentAnswer], max_moments: int, duration: float
) -> QueryResult:
    """Merge the answers to one query for segments of a video of `duration` seconds, which count from its start."""
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
        saliency=segment_saliency(segments, [_beams(found.answers[name]) for found in segment_answers], duration),
    )
