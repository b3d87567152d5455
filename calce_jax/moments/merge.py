"""From stage 1 to stage 2: annotations that also hold the windows stage 1 found."""

import dataclasses
from collections.abc import Sequence

from calce_jax.moments.annotations import Annotation, AnnotationError
from calce_jax.moments.predictions import Prediction, same_query
from calce_jax.moments.windows import Seconds


@dataclasses.dataclass(frozen=True)
class Merged:
    """What stage 2 reads.

    Attributes:
      annotations: all of them, in their order, with `stage1_windows`.
      without_result: ids of queries that stage 1 has no window for; their window is the whole video.
      unknown: ids of predictions for queries that are not annotated; they are left out.
    """

    annotations: list[Annotation]
    without_result: list[str | int]
    unknown: list[str | int]


def merge(annotations: Sequence[Annotation], predictions: Sequence[Prediction]) -> Merged:
    """Put stage 1's windows into the annotations: in order of time, without scores, in seconds.

    They become words of stage 2's prompt, so whole seconds are whole numbers, as the model writes them.

    Raises:
      AnnotationError: a query has neither a window nor a duration, so that its whole video has no end.
    """
    found = {same_query(prediction.qid): prediction.windows for prediction in predictions}
    merged, without_result, endless = [], [], []
    for annotation in annotations:
        windows = sorted(window[:2] for window in found.pop(same_query(annotation.qid), []))
        if not windows:
            without_result.append(annotation.qid)
            if annotation.duration is None:
                endless.append(annotation.qid)
            windows = [[0, annotation.duration or 0]]
        stage1_windows = [[_whole(second) for second in window] for window in windows]
        merged.append(dataclasses.replace(annotation, stage1_windows=stage1_windows))
    if endless:
        raise AnnotationError(
            f"duration: {len(endless)} queries have no window of stage 1 and no duration, such as {endless[0]}",
            "give annotations with durations, or the durations",
        )
    unknown = [prediction.qid for prediction in predictions if same_query(prediction.qid) in found]
    return Merged(merged, without_result, unknown)


def _whole(second: Seconds) -> Seconds:
    return int(second) if second == int(second) else second
