"""How videos are searched: by the model, by the words that are said in them, or by both."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from calce_jax.search.paths import SearchError
from calce_jax.search.reporter import Reporter
from calce_jax.search.video_result import VideoResult
from calce_jax.storage.file_names import single_line
from calce_jax.text.caption import Caption

if TYPE_CHECKING:  # imports jax, which a search of speech does not need
    from calce_jax.search.searcher import Searcher

Mode = Literal["picture", "speech", "both"]


class ModeResult(NamedTuple):
    """What a search has found.

    Attributes:
      results: of the videos that could be searched.
      notice: why those of the model may be meaningless.
      threshold: of the model, see `calce_jax.search.calibration`.
      num_searched: videos, if there are more of them than results.
    """

    results: list[VideoResult]
    notice: str = ""
    threshold: float = 0.0
    num_searched: int | None = None


def search_videos(
    captions: Mapping[Path, Sequence[Caption]],
    durations: Mapping[Path, float],
    queries: Sequence[str],
    max_moments: int,
    *,
    mode: Mode,
    open_searcher: "Callable[[], Searcher]",
    reporter: Reporter,
) -> ModeResult:
    """Search some videos; one that cannot be searched is reported and left out.

    Args:
      captions: of each video.
      durations: of the same videos, seconds.
      queries: sentences, or words that are said.
      max_moments: of a query in each video.
      mode: "picture": by the model; "speech": by words, without a model; "both": the words after the model.
      open_searcher: returns the model; not called in the mode "speech".
      reporter: gets errors and notices.

    Raises:
      SearchError: no video could be searched.
    """
    if mode != "picture":
        from calce_jax.search.words import add_words, search_words  # noqa: PLC0415 - SQLite, which most do not need

    if mode == "speech":
        for video, spoken in captions.items():
            if not spoken:
                reporter.notice(f"{single_line(str(video))}: it has no captions; --whisper=small.en makes them")
        found = ModeResult(search_words(captions, durations, queries, max_moments))
    else:
        searcher = open_searcher()
        if searcher.notice:
            hint = "" if mode == "both" else " Words that are said are found in any video with --mode=speech."
            reporter.notice(searcher.notice + hint)
        found = ModeResult(
            _search_pictures(captions, queries, max_moments, searcher, reporter), searcher.notice, searcher.threshold
        )
    if mode == "both" and found.results:
        searched = {result.video: captions[result.video] for result in found.results}
        found = found._replace(
            results=add_words(found.results, search_words(searched, durations, queries, max_moments))
        )
    if not found.results:
        raise SearchError("no video could be searched", "see the errors above")
    return found


def _search_pictures(
    captions: Mapping[Path, Sequence[Caption]],
    queries: Sequence[str],
    max_moments: int,
    searcher: "Searcher",
    reporter: Reporter,
) -> list[VideoResult]:
    def search_one(video: Path) -> VideoResult:
        return searcher.search(video, queries, captions[video], max_moments=max_moments)

    return [result for video in captions if (result := reporter.attempt(search_one, video))]
