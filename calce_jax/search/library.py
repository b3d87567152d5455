"""A library: the videos of some folders in one SQLite file, with what is said in them, to be searched at once.

A video is known by its content: one that was moved or renamed is read once, to hash it, and not decoded. The file has
the tables of `calce_jax.search.speech_index`, where a video's name is a hash of its content and of the state of the
captions beside it, and one of files.
"""

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
from absl import logging
from jaxtyping import Float

from calce_jax.errors import UserError
from calce_jax.search import segment_index
from calce_jax.search.inputs import list_videos, load_captions
from calce_jax.search.paths import SearchError
from calce_jax.search.segment_index import SegmentVectors
from calce_jax.search.segments import ChosenSegments, check_file, searchable_duration
from calce_jax.search.speech_index import SpeechHit, SpeechIndex, SpeechIndexError, database_remedy
from calce_jax.search.video_result import VideoResult
from calce_jax.search.words import words_result
from calce_jax.storage.disk_cache import make_cache_key
from calce_jax.storage.failures import Failure
from calce_jax.storage.locks import FileLock
from calce_jax.storage.provenance import file_hash
from calce_jax.text.caption_files import find_captions

_SCHEMA = """
    CREATE TABLE IF NOT EXISTS files (
        path TEXT PRIMARY KEY, content TEXT NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
        duration REAL NOT NULL, captions_state TEXT NOT NULL, num_captions INTEGER NOT NULL
    );
    CREATE INDEX IF NOT EXISTS files_by_content ON files (content);
"""
_RANK_CONSTANT = 60  # of reciprocal rank fusion, as in Cormack, Clarke and Buettcher 2009
_COLUMNS = "path, content, size, mtime_ns, duration, captions_state, num_captions"


class LibraryError(UserError):
    """A library that cannot be opened; the message names the file."""


@dataclass(frozen=True)
class LibraryVideo:
    """A file of the library.

    Attributes:
      path: absolute.
      content: SHA-256 of the file.
      size: bytes.
      mtime_ns: time of its last change.
      duration: seconds.
      captions_state: name, size and time of the captions beside it; "" if there are none.
      num_captions: of these, or of those inside it.
    """

    path: Path
    content: str
    size: int
    mtime_ns: int
    duration: float
    captions_state: str
    num_captions: int

    @property
    def index_name(self) -> str:
        """Its name in the index of speech: copies with other captions are other videos there."""
        return make_cache_key(content=self.content, captions=self.captions_state)

    def is_unchanged(self) -> bool:
        """Return whether the file is there, with the size and the time of change that it was indexed with."""
        try:
            status = self.path.stat()
        except OSError:
            return False
        return (status.st_size, status.st_mtime_ns) == (self.size, self.mtime_ns)


@dataclass
class IndexResult:
    """What `Library.index` has done, in numbers of videos, and the videos that could not be read."""

    added: int = 0
    changed: int = 0
    moved: int = 0
    unchanged: int = 0
    removed: int = 0
    failures: list[Failure] = field(default_factory=list)


@dataclass
class PictureResult:
    """What `Library.index_pictures` has done: the number of videos added, and those that could not be read."""

    added: int = 0
    failures: list[Failure] = field(default_factory=list)


def default_library() -> Path:
    """Return the default file: `$CALCE_LIBRARY`, or `calce/library.sqlite` in `$XDG_DATA_HOME` or ~/.local/share."""
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share"
    return Path(os.environ.get("CALCE_LIBRARY") or Path(data) / "calce/library.sqlite")


class Library:
    """An open library, of one thread.

    Args:
      path: the file.
      create: make it if there is none.

    Raises:
      LibraryError: there is no such file, or it is damaged.
      SpeechIndexError: it is of another version.
      OSError: its folder cannot be created.
    """

    def __init__(self, path: str | Path, *, create: bool = False) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            if not create:
                raise LibraryError(f"{self.path}: there is no library yet", "make one with `calce index FOLDER`")
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self._index = SpeechIndex(self.path)
        with self._errors():
            self._database = sqlite3.connect(self.path)
            self._database.executescript(_SCHEMA + segment_index.SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._database.close()
        self._index.close()

    def __enter__(self) -> "Library":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def videos(self) -> list[LibraryVideo]:
        """Return the files of the library, in order of their paths."""
        with self._errors():
            rows = self._database.execute(f"SELECT {_COLUMNS} FROM files ORDER BY path").fetchall()
        return [LibraryVideo(Path(path), *rest) for path, *rest in rows]

    def index(
        self, folders: Sequence[str | Path], progress: Callable[[Sequence[Path]], Iterable[Path]] = iter
    ) -> IndexResult:
        """Bring the library up to date with the videos in some folders; each one is committed by itself.

        Only videos that are new, or have changed since, are read. Those that are no longer in these folders are
        removed, unless they are elsewhere in them under another name; so are those that have become unreadable.

        Args:
          folders: folders and files.
          progress: wraps the list of videos, for a progress bar.

        Raises:
          SearchError: one of the folders is missing, or there is no video.
          LibraryError, SpeechIndexError, OSError: the library cannot be written.
          LockError: another process is writing it.
        """
        with FileLock(self.path.with_name(f"{self.path.name}.lock")):
            known = {video.path: video for video in self.videos()}
            # A folder that is gone or empty may be a disk that is not connected: its videos must not be removed.
            for folder in folders:
                if not os.path.exists(folder):
                    raise SearchError(f"{folder}: there is no such folder", self._absent_remedy(known, [folder]))
            try:
                listed = list_videos(folders)
            except SearchError as error:
                raise SearchError(error.reason, self._absent_remedy(known, folders) or error.remedy) from None
            found = list(dict.fromkeys(video.resolve() for video in listed))
            result = IndexResult()
            for video in progress(found):
                try:
                    self._index_one(video, known, result)
                except (LibraryError, SpeechIndexError):
                    raise
                except (UserError, OSError, ValueError) as error:
                    result.failures.append(Failure.of(str(video), error))
                    if video in known and not known[video].is_unchanged():
                        self._remove(known.pop(video))
            self._remove_missing([Path(folder).resolve() for folder in folders], set(found), result)
            self._remove_unlisted()
        return result

    def forget(self, folders: Sequence[str | Path]) -> int:
        """Remove the videos below some folders, which may be gone, and return how many there were.

        Raises:
          LibraryError, SpeechIndexError: the library cannot be written.
          LockError: another process is writing it.
        """
        with FileLock(self.path.with_name(f"{self.path.name}.lock")):
            videos = [video for video in self.videos() if _is_below(video.path, folders)]
            for video in videos:
                self._remove(video)
            self._remove_unlisted()
        return len(videos)

    def _absent_remedy(self, known: Mapping[Path, LibraryVideo], folders: Sequence[str | Path]) -> str:
        count = sum(_is_below(path, folders) for path in known)
        if not count:
            return "connect its disk, or correct the name" if not os.path.exists(folders[0]) else ""
        return f"connect its disk; or `calce index --forget` removes its {count} videos from the library"

    def _index_one(self, path: Path, known: dict[Path, LibraryVideo], result: IndexResult) -> None:
        status, state, old = path.stat(), _captions_state(path), known.get(path)
        check_file(path)
        is_same_file = old is not None and (old.size, old.mtime_ns) == (status.st_size, status.st_mtime_ns)
        if old is not None and is_same_file and old.captions_state == state:
            result.unchanged += 1
            return
        content = old.content if old is not None and is_same_file else file_hash(path)
        origin = self._moved_from(content) if old is None else None
        if origin is not None and origin.captions_state == state:
            duration, num_captions = origin.duration, origin.num_captions
        else:
            duration, captions = searchable_duration(path), load_captions(path, "auto")
            num_captions = len(captions)
            self._index.add(make_cache_key(content=content, captions=state), captions)
        new = LibraryVideo(path, content, status.st_size, status.st_mtime_ns, duration, state, num_captions)
        with self._errors(), self._database as database:
            if origin is not None:
                database.execute("DELETE FROM files WHERE path = ?", (str(origin.path),))
                del known[origin.path]
            values = (str(path), *list(vars(new).values())[1:])
            database.execute(f"INSERT OR REPLACE INTO files ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        known[path] = new
        if old is not None:
            self._forget(old)
        if origin is not None:
            result.moved += 1
        elif old is not None:
            result.changed += 1
        else:
            result.added += 1

    def _moved_from(self, content: str) -> LibraryVideo | None:
        """Return a file of the library that had this content and is gone."""
        with self._errors():
            rows = self._database.execute(f"SELECT {_COLUMNS} FROM files WHERE content = ?", (content,)).fetchall()
        return next((LibraryVideo(Path(row[0]), *row[1:]) for row in rows if not os.path.exists(row[0])), None)

    def _remove_missing(self, folders: Sequence[Path], found: set[Path], result: IndexResult) -> None:
        for video in self.videos():
            if _is_below(video.path, folders) and video.path not in found and not video.path.exists():
                self._remove(video)
                result.removed += 1

    def _remove(self, video: LibraryVideo) -> None:
        with self._errors(), self._database as database:
            database.execute("DELETE FROM files WHERE path = ?", (str(video.path),))
        self._forget(video)

    def _forget(self, video: LibraryVideo) -> None:
        """Remove the captions of a file that has changed or gone, unless another file has the same."""
        with self._errors():
            used = self._database.execute(
                "SELECT 1 FROM files WHERE content = ? AND captions_state = ?", (video.content, video.captions_state)
            ).fetchone()
        if not used:
            self._index.remove(video.index_name)

    def _remove_unlisted(self) -> None:
        """Remove captions whose file is not listed, as after a kill between the two."""
        listed = {video.index_name for video in self.videos()}
        for name in self._index.names():
            if name not in listed:
                self._index.remove(name)
        with self._errors(), self._database as database:
            database.execute("DELETE FROM segments WHERE content NOT IN (SELECT content FROM files)")

    def search(self, queries: str | Sequence[str], top: int = 5) -> list[VideoResult]:
        """Return where words of the queries are said, in the form of `calce_jax.search.words.search_words`.

        Args:
          queries: words, of one query or of several; those in double quotes must be said one after the other.
          top: maximum number of moments of a query in the whole library.

        Returns:
          The videos with a moment. Files that have moved or changed since they were indexed are left out, and a warning
          says how many there are.

        Raises:
          SearchError: there is no video to search.
        """
        queries = [queries] if isinstance(queries, str) else queries
        videos = self.videos()
        by_name = {video.index_name: video for video in videos if video.is_unchanged()}
        self.check_any_unchanged(videos)
        if changed := [video for video in videos if video.index_name not in by_name]:
            logging.warning(
                "%s: %d of %d videos have moved or changed since; run `calce index` on their folders",
                *(self.path, len(changed), len(videos)),
            )
        hits = [self._search_one(query, top, by_name) for query in queries]
        names = dict.fromkeys(str(hit.video) for found in hits for hit in found)
        return [
            words_result(
                by_name[name].path,
                by_name[name].duration,
                {
                    query: [hit for hit in found if str(hit.video) == name]
                    for query, found in zip(queries, hits, strict=True)
                },
            )
            for name in names
        ]

    def check_any_unchanged(self, videos: Sequence[LibraryVideo]) -> None:
        """Check that there is something to search.

        Raises:
          SearchError: the library has no video, or none that is there as it was indexed.
        """
        if not videos:
            raise SearchError(f"{self.path}: the library has no video", "index some with `calce index FOLDER`")
        if not any(video.is_unchanged() for video in videos):
            raise SearchError(
                f"{self.path}: none of its {len(videos)} videos is there as it was indexed, such as {videos[0].path}",
                "connect their disk, or run `calce index` on the folders that have them",
            )

    def _search_one(self, query: str, top: int, by_name: Mapping[str, LibraryVideo]) -> list[SpeechHit]:
        """Return the best hits in some of the videos."""
        count = top
        while True:
            hits = self._index.search(query, count)
            found = [hit for hit in hits if str(hit.video) in by_name]
            if len(found) >= top or len(hits) < count:
                return found[:top]
            count *= 4

    def index_pictures(
        self, ranker: str, embed: Callable[[Mapping[Path, str]], Iterable[tuple[Path, list[SegmentVectors] | Failure]]]
    ) -> PictureResult:
        """Add the vectors of the segments of every video that has none of this ranker; each is committed by itself.

        Args:
          ranker: hash of all that the vectors depend on.
          embed: takes videos with the hashes of their contents, and yields each with its vectors or why there are none;
            see `calce_jax.search.picture_ranker.PictureRanker.embed_videos`.

        Raises:
          LibraryError: the library cannot be written.
          LockError: another process is writing it.
        """
        with FileLock(self.path.with_name(f"{self.path.name}.lock")):
            with self._errors():
                known = segment_index.contents(self._database, ranker)
            missing = {video.path: video.content for video in self._by_content().values() if video.content not in known}
            result = PictureResult()
            for path, segments in embed(missing):
                if isinstance(segments, Failure):
                    result.failures.append(segments)
                    continue
                with self._errors():
                    segment_index.add_segments(self._database, missing[path], ranker, segments)
                result.added += 1
        return result

    def choose_segments(
        self, queries: Sequence[str], vectors: Float[np.ndarray, "N D"], ranker: str, count: int
    ) -> list[ChosenSegments]:
        """Return the segments that a model is to be asked about, by video in order of paths.

        Two rankings, by picture and by words that are said, are fused by reciprocal rank.

        Args:
          queries: N sentences.
          vectors: of each, float32.
          ranker: hash of the ranker that made them.
          count: maximum number of segments of a query.
        """
        by_content = self._by_content()
        with self._errors():
            by_picture = segment_index.best_segments(self._database, ranker, vectors, count)
        chosen: dict[str, list[set[float]]] = {}
        for number, (query, pictures) in enumerate(zip(queries, by_picture, strict=True)):
            scores: dict[tuple[str, float], float] = {}
            for ranking in (
                [(best.content, best.start) for best in pictures],
                self._segments_said(query, ranker, count),
            ):
                for rank, segment in enumerate(ranking):
                    scores[segment] = scores.get(segment, 0.0) + 1 / (_RANK_CONSTANT + rank)
            available = [segment for segment in scores if segment[0] in by_content]
            for content, start in sorted(available, key=lambda segment: -scores[segment])[:count]:
                chosen.setdefault(content, [set() for _ in queries])[number].add(start)
        videos = sorted((by_content[content] for content in chosen), key=lambda video: video.path)
        return [
            ChosenSegments(video.path, video.content, self._index.captions(video.index_name), chosen[video.content])
            for video in videos
        ]

    def has_pictures(self) -> bool:
        """Return whether a video has vectors of any ranker."""
        with self._errors():
            return self._database.execute("SELECT 1 FROM segments LIMIT 1").fetchone() is not None

    def num_with_pictures(self, ranker: str) -> int:
        """Return how many of the videos that are there as indexed have vectors of a ranker."""
        with self._errors():
            known = segment_index.contents(self._database, ranker)
        return sum(video.content in known for video in self.videos() if video.is_unchanged())

    def _by_content(self) -> dict[str, LibraryVideo]:
        """Return a file of each content, of those that have not changed since they were indexed."""
        return {video.content: video for video in reversed(self.videos()) if video.is_unchanged()}

    def _segments_said(self, query: str, ranker: str, count: int) -> list[tuple[str, float]]:
        """Return content and start of the segments in which words of a query are said, the best first."""
        by_name = {video.index_name: video for video in self.videos()}
        found: dict[tuple[str, float], None] = {}
        for hit in self._index.search(query, count):
            if video := by_name.get(str(hit.video)):
                with self._errors():
                    times = segment_index.segment_times(self._database, video.content, ranker)
                found |= {(video.content, start): None for start, end in times if start < hit.end and end > hit.start}
        return list(found)[:count]

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError) as error:
            raise LibraryError(f"{self.path}: {error}", database_remedy(str(error))) from error


def _captions_state(video: Path) -> str:
    captions = find_captions(video.parent, video.stem)
    if captions is None:
        return ""
    status = captions.stat()
    return f"{captions.name} {status.st_size} {status.st_mtime_ns}"


def _is_below(video: Path, folders: Sequence[str | Path]) -> bool:
    resolved = [Path(folder).resolve() for folder in folders]
    return any(folder == video or folder in video.parents for folder in resolved)
