"""`calce_jax.load`: a model that searches videos, in three lines of Python."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import jax
from absl import logging

from calce_jax.errors import UserError
from calce_jax.search.inputs import load_captions
from calce_jax.search.library import IndexResult, Library, PictureResult
from calce_jax.search.library_search import CANDIDATES, search_library
from calce_jax.search.load_searcher import load_searcher
from calce_jax.search.merging import merge_results
from calce_jax.search.moment_list import MomentList
from calce_jax.search.paths import SearchError
from calce_jax.search.picture_ranker import open_ranker
from calce_jax.search.published.install import resolve_model
from calce_jax.search.searcher import MAX_MOMENTS, EncodedVideo, Searcher
from calce_jax.search.video_result import VideoResult
from calce_jax.storage.disk_cache import DiskCache, default_cache_dir
from calce_jax.storage.failures import Failure
from calce_jax.storage.program_cache import ProgramCache
from calce_jax.text.caption import Caption
from calce_jax.text.languages import check_language

Captions = Literal["auto"] | str | Path | Sequence[Caption] | None


class Model:
    """Both stages of a trained model.

    Args:
      searcher: finds the moments in one video.
      checkpoint: its folder, which may have a ranker of segments; None for the tiny model.
    """

    def __init__(self, searcher: Searcher, checkpoint: str | Path | None = None) -> None:
        self._searcher, self._checkpoint = searcher, checkpoint

    def encode(self, video: str | Path) -> EncodedVideo:
        """Return what all queries about a video share; `search` takes it in place of the file.

        Raises:
          VideoError: the video cannot be read, or is too long.
        """
        return self._searcher.encode(video)

    def search(
        self,
        videos: str | Path | EncodedVideo | Sequence[str | Path | EncodedVideo],
        queries: str | Sequence[str],
        captions: Captions = "auto",
        *,
        top: int = MAX_MOMENTS,
        min_score: int | float | None = None,
        language: str | None = None,
    ) -> MomentList:
        """Return the moments that sentences describe, those of each sentence best first.

        Args:
          videos: a file or several; each may also be the result of `encode`.
          queries: a sentence or several.
          captions: what is said. "auto": from a file of captions beside the video; None: no captions; a file of
            captions or a folder of them; or a list of `Caption`, for a single video.
          top: maximum number of moments of a sentence.
          min_score: moments with a lower score are left out. Without one, a sentence whose best moment in a video has
            less than the threshold of `calce calibrate` has none there; 0 shows them.
          language: a code or an English name: only captions that say that they are in it are read, of "auto" and of a
            folder.

        Returns:
          The moments of all videos together. A video that cannot be searched is logged and listed in `failures`.

        Raises:
          SearchError: a sentence is refused (`calce_jax.search.inputs.check_queries`), there is no video, or a list of
            captions is given for several.
          UsageError: there is no such language.
          UserError: a single video, or every one of several, cannot be searched; of several it is the first's error.
        """
        sources = [videos] if isinstance(videos, (str, Path, EncodedVideo)) else list(videos)
        sentences = [queries] if isinstance(queries, str) else list(queries)
        if not sources:
            raise SearchError("no video", "give a file, or a list of files")
        if language is not None:
            check_language(language)
        source = "none" if captions is None else captions
        is_for_one = not isinstance(source, (str, Path)) or (source not in ("auto", "none") and Path(source).is_file())
        if is_for_one and len(sources) > 1:
            raise SearchError(f"captions of one video for {len(sources)} videos", "give a folder, or search one by one")
        results: list[VideoResult] = []
        failures: list[Failure] = []
        first_error: UserError | OSError | None = None
        for video in sources:
            path = video.video if isinstance(video, EncodedVideo) else Path(video)
            try:
                spoken = load_captions(path, source, language) if isinstance(source, (str, Path)) else source
                results.append(self._searcher.search(video, sentences, spoken, max_moments=top))
            except SearchError:
                raise
            except (UserError, OSError) as error:
                first_error = first_error or error
                failures.append(Failure.of(str(path), error))
                if len(sources) > 1:
                    logging.warning("%s", error)
        if first_error and not results:
            raise first_error
        found = merge_results(results, sentences, top, min_score, self._searcher.threshold)
        found.queries = [sentence.strip() for sentence in sentences]
        found.failures, found.notice = failures, self._searcher.notice
        return found

    def index(self, library: Library, folders: Sequence[str | Path]) -> tuple[IndexResult, PictureResult]:
        """Bring a library up to date with the videos in some folders, and look at those that are new to this model.

        Args:
          library: open, see `calce_jax.Library`.
          folders: folders and files.

        Returns:
          What has changed, and how many videos were looked at; each lists the videos that failed.

        Raises:
          SearchError: a folder is missing, there is no video, or the model has no ranker (`calce fit_ranker`).
          LibraryError, SpeechIndexError, LockError, OSError: the library cannot be written.
        """
        ranker = open_ranker(self._searcher, self._checkpoint)
        return library.index(folders), library.index_pictures(ranker.key, ranker.embed_videos)

    def search_library(
        self,
        library: Library,
        queries: str | Sequence[str],
        *,
        top: int = MAX_MOMENTS,
        min_score: int | float | None = None,
        candidates: int = CANDIDATES,
    ) -> MomentList:
        """Return the moments that sentences describe in all videos of a library; the best segments are asked alone.

        Args:
          library: that `index` has brought up to date.
          queries: a sentence or several.
          top, min_score: as for `search`.
          candidates: maximum number of segments that a sentence asks the model about.

        Raises:
          SearchError: a sentence is refused, the library has no video that this model has looked at, or the model has
            no ranker.
          LibraryError: the library is damaged.
        """
        sentences = [queries] if isinstance(queries, str) else list(queries)
        ranker = open_ranker(self._searcher, self._checkpoint)
        found = search_library(library, self._searcher, ranker, sentences, top=top, candidates=candidates)
        moments = merge_results(found.results, sentences, top, min_score, self._searcher.threshold)
        moments.failures, moments.notice = found.failures, self._searcher.notice
        return moments


def load(
    checkpoint: str | Path | None = None,
    *,
    yes: bool = False,
    models_dir: str | Path | None = None,
    keep_downloads: bool = False,
    cache: DiskCache | None = None,
    max_seconds: float | None = None,
) -> Model:
    """Load a trained model; also `calce_jax.load`.

    Args:
      checkpoint: a folder with the workdirs `stage1` and `stage2`; the name of a published model, "calce-qvh" or
        "calce-charades", which is downloaded and converted once; or "hf:owner/name", one that `calce push` published.
        By default the tiny model of the package, which was trained on the shapes dataset alone.
      yes: agree to the download and to the terms of a published model. Without it, one that is not here is an error
        that states size, sources and terms.
      models_dir: where published models are kept; by default `$CALCE_MODELS`, or `calce/models` in `$XDG_DATA_HOME` or
        in ~/.local/share.
      keep_downloads: keep what a published model was converted from.
      cache: of key frames, features and compiled programs; by default of 10 GB at
        `calce_jax.storage.disk_cache.default_cache_dir()`.
      max_seconds: length of the segments that longer videos are split into; by default that of the training videos.

    Raises:
      SearchError, ConfigError, CheckpointError, TokenizerError: see `calce_jax.search.load_searcher.open_stages`.
      ModelNotHereError, InstallError, FetchError, NoNetworkError, LockError: see
        `calce_jax.search.published.install.resolve_model`.
    """
    if checkpoint is not None:
        checkpoint = resolve_model(
            checkpoint, models_dir, confirm=(lambda _: True) if yes else None, keep_downloads=keep_downloads
        )
    # JAX's own cache is enough where somebody has set it; it cannot keep the same programs.
    has_own_cache = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    cache = cache or DiskCache(default_cache_dir())
    programs = None if has_own_cache else ProgramCache(cache)
    searcher = load_searcher(checkpoint, cache=cache, max_seconds=max_seconds, programs=programs)
    return Model(searcher, checkpoint)
