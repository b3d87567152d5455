"""From stage 1 to stage 2: annotations with the windows that stage 1 predicted."""

import dataclasses
from collections.abc import Sequence

from calce_jax.moments.annotations import Annotation, AnnotationError
from calce_jax.moments.json_rows import normalise_qid
from calce_jax.moments.metrics.pairing import check_any_pair, check_same_queries
from calce_jax.moments.predictions import Prediction
from calce_jax.moments.windows import Seconds


@dataclasses.dataclass(frozen=True)
class MergeResult:
    """Result of a merge.

    Attributes:
      annotations: all annotations, in their order, with `stage1_windows`.
      missing_stage1: ids of queries without a stage-1 window, also those of which stage 1 says that they do not happen;
        the whole video replaces it, so that stage 2 decides.
      unknown_predictions: ids of predictions for queries that are not annotated; they are left out.
    """

    annotations: list[Annotation]
    missing_stage1: list[str | int]
    unknown_predictions: list[str | int]


def merge_stage1(annotations: Sequence[Annotation], predictions: Sequence[Prediction]) -> MergeResult:
    """Put the windows of stage-1 predictions into the annotations: in order of time, without scores, in seconds.

    Of a prediction with the windows of all beams, those of the answer count, as in a prediction without the others.
    Whole seconds become ints, because the windows are text of stage 2's prompt and the model writes ints.

    Raises:
      PredictionError: no prediction has the id of an annotation; or one is about another video or
        sentence than the annotation with its id.
      AnnotationError: a query has neither a window nor a duration, so the whole video cannot replace it.
    """
    check_any_pair(predictions, annotations)
    check_same_queries(predictions, annotations)
    windows_by_qid = {
        normalise_qid(prediction.qid): prediction.windows[: prediction.answer_windows] for prediction in predictions
    }
    merged, missing_stage1, missing_duration = [], [], []
    for annotation in annotations:
        windows = sorted(window[:2] for window in windows_by_qid.pop(normalise_qid(annotation.qid), []))
        if not windows:
            missing_stage1.append(annotation.qid)
            if annotation.duration is None:
                missing_duration.append(annotation.qid)
            windows = [[0, annotation.duration or 0]]
        stage1_windows = [[_integer_if_whole(second) for second in window] for window in windows]
        merged.append(dataclasses.replace(annotation, stage1_windows=stage1_windows))
    if missing_duration:
        raise AnnotationError(
            f"duration: {len(missing_duration)} queries have no window of stage 1 and no duration, "
            f"such as {missing_duration[0]}",
            "give annotations with durations, or the durations",
        )
    unknown_predictions = [
        prediction.qid for prediction in predictions if normalise_qid(prediction.qid) in windows_by_qid
    ]
    return MergeResult(merged, missing_stage1, unknown_predictions)


def _integer_if_whole(second: Seconds) -> Seconds:
    return int(second) if second == int(second) else second
