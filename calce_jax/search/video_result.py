"""The results of a search in one video: moments, and the captions and frames that they were found with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from calce_jax.models.keyframes.treatment import Treatment
from calce_jax.search.ranking import ScoredWindow
from calce_jax.search.segments import Segment

WORDS_STAGE = "words"  # in `QueryResult.stages`, of a search without a model


@dataclass(frozen=True)
class UsedCaption:
    """A caption in the prompt: start and end in seconds, its text, its cosine similarity to the query."""

    start: float
    end: float
    text: str
    similarity: float


@dataclass(frozen=True)
class QueryResult:
    """The moments of one query in one video.

    Attributes:
      query: the sentence.
      stages: the moments by stage ("stage 1", "stage 2"), best first; those of the last stage are the result.
      captions: captions in the prompts of `segments_with_moments`, in order of time.
      frames: (second, treatment in the last stage) of the key frames of all segments, in order of time.
      segments_with_moments: the segments that overlap a moment.
      absence_score: the best score, if it is too low for the query to happen in this video; there are no moments then.
      saliency: of each clip of two seconds, from the beams of the last stage; empty without a model.
    """

    query: str
    stages: dict[str, list[ScoredWindow]]
    captions: list[UsedCaption]
    frames: list[tuple[float, Treatment]]
    segments_with_moments: list[Segment]
    absence_score: float | None = None
    saliency: Sequence[float] = ()

    @property
    def moments(self) -> list[ScoredWindow]:
        """The moments of the last stage, best first."""
        return list(self.stages.values())[-1]


@dataclass(frozen=True)
class VideoResult:
    """The results for one video of `duration` seconds, one for each query in order.

    `content` is the hash of the file from `calce_jax.storage.provenance.file_hash`; empty if it is not known.
    """

    video: Path
    duration: float
    query_results: list[QueryResult]
    content: str = ""
