"""Search of what is said in videos: the captions of many videos in an SQLite index of full text, without any model.

A hit is a caption, or several that lie close together, in which words of the query are said, in any order and in any
inflection ("walk" finds "walked"; of English). Its score is the share of the query that is said in it:

    score = sum over words of idf(word) * best(word) / sum over words of idf(word)

where `idf` is that of BM25, over captions, and `best` the highest BM25 of the word among the hit's captions, relative
to the highest of all captions. So a rare word counts more than a frequent one, and the score is 1 where every word of
the query is said as well as anywhere. Words are separated by spaces and punctuation; Chinese and Japanese have neither,
so only a whole run of their characters is found.
"""

import os
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import nsmallest
from math import log1p
from pathlib import Path
from types import TracebackType

from calce_jax.errors import UserError
from calce_jax.text.caption import Caption

MAX_GAP_SECONDS = 2.0  # captions with words of the query are one hit if they are closer than this
MAX_HIT_SECONDS = 30.0
MAX_QUERY_CHARACTERS, MAX_TERMS = 2000, 60  # of a query; further ones are ignored
# A word with less than this part of the idf of the query's rarest adds to the score of a hit, and makes none.
MIN_RELATIVE_IDF = 0.25
VERSION = 1

# These do not count, unless they are quoted, or the query has no others.
_STOP_WORDS = """
    a about an and are as at be been but by can do does did for from had has have he her his i if in into is it its me
    my no not of on or our she so that the their them then there these they this to us was we were what when where
    which who will with would you your
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())

_TOKENIZER = "porter unicode61 remove_diacritics 2"
_SCHEMA = f"""
    CREATE TABLE videos (id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE);
    -- The captions of a video have consecutive ids, in order of start.
    CREATE TABLE captions (
        id INTEGER PRIMARY KEY, video_id INTEGER NOT NULL REFERENCES videos, start REAL NOT NULL, "end" REAL NOT NULL,
        text TEXT NOT NULL
    );
    CREATE INDEX captions_by_video ON captions (video_id);
    CREATE VIRTUAL TABLE captions_text USING fts5 (text, content=captions, content_rowid=id, tokenize='{_TOKENIZER}');
    PRAGMA user_version = {VERSION};
"""
_TEMPORARY_SCHEMA = f"CREATE VIRTUAL TABLE temp.pairs USING fts5 (text, tokenize='{_TOKENIZER}')"
_MATCHES = """
    SELECT captions.id, video_id, start, "end", bm25(captions_text)
    FROM captions_text JOIN captions ON captions.id = captions_text.rowid WHERE captions_text MATCH ?
"""
# Neighbours of which the first has the first word of a phrase, and the second its last.
_PAIRS = """
    INSERT INTO pairs (rowid, text)
    SELECT a.id, a.text || ' ' || b.text FROM captions AS a JOIN captions AS b ON b.id = a.id + 1
    WHERE b.video_id = a.video_id AND b.start - a."end" < ?
        AND a.id IN (SELECT rowid FROM captions_text WHERE captions_text MATCH ?)
        AND b.id IN (SELECT rowid FROM captions_text WHERE captions_text MATCH ?)
"""
_QUOTES = re.compile("[\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}\N{DOUBLE LOW-9 QUOTATION MARK}«»]")
_POSSESSIVE = re.compile(r"(?<=\w)['\u2019]s$", re.IGNORECASE)  # either apostrophe
_SEPARATORS = re.compile(r"[\s\0,;:!?/|()\[\]{}…—–]+")


class SpeechIndexError(UserError):
    """An index that cannot be used; the message names the file."""


@dataclass(frozen=True)
class SpeechHit:
    """Where words of a query are said.

    Attributes:
      video: as given to the index.
      start: second at which the first of its captions begins.
      end: second at which the last one ends, at most 30 s later.
      score: share of the query that is said, above 0 and at most 1.
      text: of the captions from the first to the last.
    """

    video: Path
    start: float
    end: float
    score: float
    text: str


@dataclass(frozen=True)
class _Term:
    """A word of a query, or a quoted phrase, which a hit must have."""

    words: tuple[str, ...]
    is_quoted: bool

    @property
    def is_stop_word(self) -> bool:
        return not self.is_quoted and self.words[0].lower() in STOP_WORDS


@dataclass(frozen=True)
class _Match:
    """The captions that have a term: relative BM25 by id, and the term's inverse document frequency."""

    term: _Term
    relevance: dict[int, float]
    idf: float


@dataclass
class _Window:
    """Captions of one video that are one hit, by their ids."""

    video_id: int
    start: float
    end: float
    ids: list[int]


def search_speech(captions_by_video: Mapping[Path, Sequence[Caption]], query: str, top: int = 10) -> list[SpeechHit]:
    """Return the best hits of a query among the captions of some videos; see `SpeechIndex.search`.

    For several queries make one `SpeechIndex`.

    Args:
      captions_by_video: captions as read, not cleaned.
      query: words; those in double quotes must be said one after the other.
      top: maximum number of hits.
    """
    with SpeechIndex() as index:
        for video, captions in captions_by_video.items():
            index.add(video, captions)
        return index.search(query, top)


class SpeechIndex:
    """Captions of many videos, in memory or in a file; of one thread.

    Args:
      path: the file, which is made if there is none; by default the index is in memory.

    Raises:
      SpeechIndexError: the file is no index of this version, or cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._path = None if path is None else os.path.abspath(path)
        with self._errors():
            self._database = sqlite3.connect(self._path or ":memory:")
            try:
                self._open()
            except BaseException:
                self._database.close()
                raise

    def _open(self) -> None:
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        (num_tables,) = self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if version == 0 and num_tables == 0:
            self._database.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
        elif version != VERSION:
            tables = {name for (name,) in self._database.execute("SELECT name FROM sqlite_master")}
            if {"videos", "captions", "captions_text"} <= tables:
                raise SpeechIndexError(
                    f"{self._path}: made by another version of calce_jax",
                    "use that version, or index anew into another file",
                )
            raise SpeechIndexError(f"{self._path}: the database of another program", "give another file")
        self._database.execute(_TEMPORARY_SCHEMA)

    def close(self) -> None:
        """Close the file; an index in memory is lost."""
        self._database.close()

    def __enter__(self) -> "SpeechIndex":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def add(self, video: str | os.PathLike[str], captions: Iterable[Caption]) -> None:
        """Add the captions of a video, in place of those it has: all of them or, after an error, none.

        Args:
          video: its path, which is its name in hits.
          captions: as read, in any order, in seconds.

        Raises:
          SpeechIndexError: the file cannot be written.
        """
        rows = [
            (float(caption.start), float(caption.end), caption.text.replace("\0", " "))
            for caption in sorted(captions, key=lambda caption: caption.start)
        ]
        with self._errors(), self._database as database:
            self._delete(video)
            video_id = database.execute("INSERT INTO videos (path) VALUES (?)", (os.fspath(video),)).lastrowid
            database.executemany(
                'INSERT INTO captions (video_id, start, "end", text) VALUES (?, ?, ?, ?)',
                ((video_id, *row) for row in rows),
            )
            database.execute(
                "INSERT INTO captions_text (rowid, text) SELECT id, text FROM captions WHERE video_id = ?", (video_id,)
            )

    def names(self) -> list[str]:
        """Return the names of the videos that have been added."""
        with self._errors():
            return [path for (path,) in self._database.execute("SELECT path FROM videos")]

    def captions(self, video: str | os.PathLike[str]) -> list[Caption]:
        """Return the captions of a video in order of time, none if it is not in the index."""
        with self._errors():
            rows = self._database.execute(
                'SELECT start, "end", text FROM captions WHERE video_id = (SELECT id FROM videos WHERE path = ?) '
                "ORDER BY id",
                (os.fspath(video),),
            )
            return [Caption(*row) for row in rows]

    def remove(self, video: str | os.PathLike[str]) -> None:
        """Remove the captions of a video, if it has any.

        Raises:
          SpeechIndexError: the file cannot be written.
        """
        with self._errors(), self._database:
            self._delete(video)

    def _delete(self, video: str | os.PathLike[str]) -> None:
        row = self._database.execute("SELECT id FROM videos WHERE path = ?", (os.fspath(video),)).fetchone()
        if row is None:
            return
        # A table of full text whose content is in another has to be told what it indexed.
        self._database.execute(
            "INSERT INTO captions_text (captions_text, rowid, text) "
            "SELECT 'delete', id, text FROM captions WHERE video_id = ?",
            row,
        )
        self._database.execute("DELETE FROM captions WHERE video_id = ?", row)
        self._database.execute("DELETE FROM videos WHERE id = ?", row)

    def search(self, query: str, top: int = 10) -> list[SpeechHit]:
        """Return the best hits of a query, best first; of equal ones first those of the video added first.

        Any text is a query: it has no operators but double quotes. A hit has every quoted phrase, which may go from one
        caption to the next, and a word that is not frequent, see `STOP_WORDS` and `MIN_RELATIVE_IDF`. There is no hit
        if the query has no word, or none that is said. The time is linear in the number of captions that have a word
        of the query.

        Args:
          query: words, of which the first 60 in its first 2000 characters count.
          top: maximum number of hits.

        Raises:
          SpeechIndexError: the file is damaged.
        """
        with self._errors():
            (num_captions,) = self._database.execute("SELECT count(*) FROM captions").fetchone()
            spans: dict[int, tuple[int, float, float]] = {}
            matches = [self._match(term, num_captions, spans) for term in _parse_query(query)]
            required = [match for match in matches if match.term.is_quoted]
            windows = [
                window
                for window in _merge_captions(_anchor_ids(matches), spans)
                if all(any(id in match.relevance for id in window.ids) for match in required)
            ]
            total = sum(match.idf for match in matches)
            scored = [(-_score(window, matches) / total, window.ids[0], window) for window in windows]
            return [self._hit(window, min(-score, 1.0)) for score, _, window in nsmallest(max(top, 0), scored)]

    def _match(self, term: _Term, num_captions: int, spans: dict[int, tuple[int, float, float]]) -> _Match:
        """Look a term up; the video, start and end of its captions are added to `spans`."""
        relevance: dict[int, float] = {}
        for id, *span, bm25 in self._database.execute(_MATCHES, (_quote(" ".join(term.words)),)):
            spans[id], relevance[id] = tuple(span), -bm25  # SQLite's is negative, the best first
        best = max(relevance.values(), default=1.0)
        relevance = {id: bm25 / best for id, bm25 in relevance.items()}
        if len(term.words) > 1:
            relevance.update(self._match_across_captions(term, relevance, spans))
        count = len(relevance)
        return _Match(term, relevance, log1p((num_captions - count + 0.5) / (count + 0.5)))

    def _match_across_captions(
        self, term: _Term, relevance: Mapping[int, float], spans: dict[int, tuple[int, float, float]]
    ) -> dict[int, float]:
        """Return relevances of pairs of neighbours that have a phrase only together."""
        first, last = _quote(term.words[0]), _quote(term.words[-1])
        self._database.execute("DELETE FROM pairs")
        self._database.execute(_PAIRS, (MAX_GAP_SECONDS, first, last))
        phrase = _quote(" ".join(term.words))
        pairs = [id for (id,) in self._database.execute("SELECT rowid FROM pairs WHERE pairs MATCH ?", (phrase,))]
        self._database.commit()
        found: dict[int, float] = {}
        for id in pairs:
            if id not in relevance and id + 1 not in relevance:
                for caption in (id, id + 1):
                    found[caption] = 1.0
                    spans[caption] = self._database.execute(
                        'SELECT video_id, start, "end" FROM captions WHERE id = ?', (caption,)
                    ).fetchone()
        return found

    def _hit(self, window: _Window, score: float) -> SpeechHit:
        (video,) = self._database.execute("SELECT path FROM videos WHERE id = ?", (window.video_id,)).fetchone()
        texts = self._database.execute(
            "SELECT text FROM captions WHERE id BETWEEN ? AND ? ORDER BY id", (window.ids[0], window.ids[-1])
        )
        return SpeechHit(Path(video), window.start, window.end, score, " ".join(text for (text,) in texts))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError, TypeError) as error:
            # Not a number where there must be one, or no text: the file is damaged.
            reason = str(error) if isinstance(error, sqlite3.Error) else "it is damaged"
            raise SpeechIndexError(f"{self._path or 'speech index'}: {reason}", database_remedy(reason)) from error


def database_remedy(reason: str) -> str:
    """Return what to do about an error of SQLite."""
    remedies = {
        "full": "make room, and run the same command again",
        "readonly": "make the file and its folder writable",
        "locked": "wait until the other program is done",
        "not a database": "give another file; or, if it was a library, remove it and index anew",
        "unable to open": "give a file in a folder that can be written",
    }
    return next((remedy for word, remedy in remedies.items() if word in reason), "remove the file, and index anew")


def _quote(text: str) -> str:
    """Return a text as a string of FTS5, of which nothing is an operator."""
    return '"' + text.replace('"', '""') + '"'


def _parse_query(query: str) -> list[_Term]:
    """Return the different terms of a query that count, quoted ones first."""
    # Surrogates are no UTF-8, and SQLite refuses them.
    query = _QUOTES.sub('"', query[:MAX_QUERY_CHARACTERS].encode("utf-8", "replace").decode("utf-8"))
    # Every second piece is quoted, but the last, after a quote that is not closed.
    *closed, rest = query.split('"')
    terms = [_Term(words[:MAX_TERMS], True) for phrase in closed[1::2] if (words := _words(phrase))]
    terms += [_Term((_POSSESSIVE.sub("", word),), False) for text in (*closed[::2], rest) for word in _words(text)]
    distinct = {tuple(word.lower() for word in term.words): term for term in reversed(terms)}
    terms = list(reversed(distinct.values()))
    return [term for term in terms if not term.is_stop_word][:MAX_TERMS] or terms[:MAX_TERMS]


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in _SEPARATORS.split(text) if any(map(str.isalnum, word)))


def _anchor_ids(matches: Sequence[_Match]) -> list[int]:
    """Return the captions that make hits, in order."""
    said = [match for match in matches if match.relevance]
    min_idf = MIN_RELATIVE_IDF * max((match.idf for match in said), default=0.0)
    anchors = [match for match in said if match.term.is_quoted or match.idf >= min_idf]
    return sorted({id for match in anchors for id in match.relevance})


def _merge_captions(ids: Iterable[int], spans: Mapping[int, tuple[int, float, float]]) -> Iterator[_Window]:
    """Merge captions of one video that are closer than 2 s, up to 30 s.

    Args:
      ids: of the captions, in order, so in order of start within a video.
      spans: video, start and end of each.
    """
    window: _Window | None = None
    for id in ids:
        video_id, start, end = spans[id]
        if (
            window is not None
            and video_id == window.video_id
            and start - window.end < MAX_GAP_SECONDS
            and max(end, window.end) - window.start <= MAX_HIT_SECONDS
        ):
            window.end = max(end, window.end)
            window.ids.append(id)
        else:
            if window is not None:
                yield window
            window = _Window(video_id, start, min(end, start + MAX_HIT_SECONDS), [id])
    if window is not None:
        yield window


def _score(window: _Window, matches: Sequence[_Match]) -> float:
    """Return the sum of the terms' idf, each times its best relevance in the window."""
    return sum(match.idf * max(match.relevance.get(id, 0.0) for id in window.ids) for match in matches)
