"""A library: the videos of some folders in one SQLite file, with what is said in them, to be searched at once.

A video is known by its content: one that was moved or renamed is read once, to hash it, and not decoded. The file has
the tables of `calce_jax.search.speech_index`, where a video's name is its SHA-256, and one of files.
"""

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from calce_jax.errors import UserError
from calce_jax.search.inputs import list_videos, load_captions
from calce_jax.search.segments import searchable_duration
from calce_jax.search.speech_index import SpeechIndex
from calce_jax.search.video_result import VideoResult
from calce_jax.search.words import words_result
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


@dataclass
class IndexResult:
    """What `Library.index` has done, in numbers of videos, and the videos that could not be read."""

    added: int = 0
    changed: int = 0
    moved: int = 0
    unchanged: int = 0
    removed: int = 0
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
            self._database.executescript(_SCHEMA)

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
        removed, unless they are elsewhere in them under another name.

        Args:
          folders: folders and files.
          progress: wraps the list of videos, for a progress bar.

        Raises:
          SearchError: there is no video.
          LibraryError, SpeechIndexError, OSError: the library cannot be written.
          LockError: another process is writing it.
        """
        with FileLock(self.path.with_name(f"{self.path.name}.lock")):
            found = [video.absolute() for video in list_videos(folders)]
            known = {video.path: video for video in self.videos()}
            result = IndexResult()
            for video in progress(found):
                try:
                    self._index_one(video, known, result)
                except (UserError, OSError) as error:
                    if isinstance(error, LibraryError):
                        raise
                    result.failures.append(Failure.of(str(video), error))
            self._remove_missing([Path(folder).absolute() for folder in folders], set(found), result)
        return result

    def _index_one(self, path: Path, known: dict[Path, LibraryVideo], result: IndexResult) -> None:
        status, state, old = path.stat(), _captions_state(path), known.get(path)
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
            self._index.add(content, captions)
        new = LibraryVideo(path, content, status.st_size, status.st_mtime_ns, duration, state, num_captions)
        with self._errors(), self._database as database:
            if origin is not None:
                database.execute("DELETE FROM files WHERE path = ?", (str(origin.path),))
                del known[origin.path]
            values = (str(path), *list(vars(new).values())[1:])
            database.execute(f"INSERT OR REPLACE INTO files ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        known[path] = new
        if old is not None and old.content != content:
            self._forget_content(old.content)
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
            is_below = any(folder == video.path or folder in video.path.parents for folder in folders)
            if is_below and video.path not in found and not video.path.exists():
                with self._errors(), self._database as database:
                    database.execute("DELETE FROM files WHERE path = ?", (str(video.path),))
                self._forget_content(video.content)
                result.removed += 1

    def _forget_content(self, content: str) -> None:
        with self._errors():
            is_used = self._database.execute("SELECT 1 FROM files WHERE content = ?", (content,)).fetchone()
        if not is_used:
            self._index.remove(content)

    def search(self, queries: Sequence[str], top: int) -> list[VideoResult]:
        """Return where words of the queries are said, in the form of `calce_jax.search.words.search_words`.

        Args:
          queries: words; those in double quotes must be said one after the other.
          top: maximum number of moments of a query in the whole library.

        Returns:
          The videos with a moment, and which are where they were when they were indexed.
        """
        by_content = {video.content: video for video in self.videos() if video.path.is_file()}
        hits = [[hit for hit in self._index.search(query, top) if str(hit.video) in by_content] for query in queries]
        contents = dict.fromkeys(str(hit.video) for found in hits for hit in found)
        return [
            words_result(
                by_content[content].path,
                by_content[content].duration,
                {
                    query: [hit for hit in found if str(hit.video) == content]
                    for query, found in zip(queries, hits, strict=True)
                },
            )
            for content in contents
        ]

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            remedy = "wait if it is in use; if it is damaged, remove it, and index anew"
            raise LibraryError(f"{self.path}: {error}", remedy) from error


def _captions_state(video: Path) -> str:
    captions = find_captions(video.parent, video.stem)
    if captions is None:
        return ""
    status = captions.stat()
    return f"{captions.name} {status.st_size} {status.st_mtime_ns}"
