"""The saliency of a video, from the beams of its segments."""

from collections.abc import Sequence

import numpy as np

from calce_jax.moments.saliency import CLIP_SECONDS, DECIMALS, clip_saliency
from calce_jax.moments.scoring import BeamHypothesis
from calce_jax.moments.windows import Seconds
from calce_jax.search.segments import Segment


def segment_saliency(
    segments: Sequence[Segment], beams: Sequence[Sequence[BeamHypothesis]], duration: Seconds
) -> list[float]:
    """Return a number for each clip of two seconds of a video: the mean over the segments that have the whole clip.

    A clip that no segment has, of a video of which only some were asked about, has 0.

    Args:
      segments: of the video.
      beams: the hypotheses for each segment; windows in seconds from the segment's start.
      duration: of the video, in seconds.
    """
    starts = CLIP_SECONDS * np.arange(int(duration / CLIP_SECONDS))
    total, count = np.zeros(len(starts)), np.zeros(len(starts))
    for segment, hypotheses in zip(segments, beams, strict=True):
        shifted = [
            BeamHypothesis([[segment.start + a, segment.start + b] for a, b in found.windows], found.probability)
            for found in hypotheses
        ]
        within = (segment.start <= starts) & (starts + CLIP_SECONDS <= segment.end)
        total += np.where(within, clip_saliency(shifted, duration), 0)
        count += within
    return [round(value, DECIMALS) for value in (total / np.maximum(count, 1)).tolist()]
