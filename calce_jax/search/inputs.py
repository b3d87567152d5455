"""The inputs of a search: check the queries, list the videos, load the captions."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from absl import logging

from calce_jax.errors import UsageError
from calce_jax.search.paths import SearchError
from calce_jax.text.caption import Caption
from calce_jax.text.caption_files import SRT_SUFFIX, caption_languages, find_captions, read_captions
from calce_jax.text.embedded_captions import read_embedded_captions
from calce_jax.video.container import MediaError
from calce_jax.video.files import VIDEO_SUFFIXES, is_video_name

MAX_QUERY_WORDS = 60  # a longer query does not fit into the prompt
MAX_QUERY_CHARACTERS = 1000  # bounds the time of tagging and tokenizing, since a word may have any length

# What a search writes (`calce_jax.search.results`): the files by which its folder is known, and the folders of videos.
RESULT_FILES = ("moments.json", "index.html")
RESULT_FOLDERS = ("videos", "clips")

# Sentencepiece's mark, as in `calce_jax.text.prompt`, which imports jax: a search of speech has no model.
_WORD_BOUNDARY = "\N{LOWER ONE EIGHTH BLOCK}"


@runtime_checkable
class Tokenizer(Protocol):
    """What `check_queries` calls of a `calce_jax.text.text_tokenizer.TextTokenizer`."""

    def __call__(self, text: str, /, *, add_special_tokens: bool) -> Any:
        """Return the ids of a text, as "input_ids"."""
        ...

    def token(self, token_id: int, /) -> Any:
        """Return the token of an id."""
        ...


class QueryError(SearchError, UsageError):
    """A query is empty, too long, or unknown to the model."""


def check_queries(queries: Sequence[str], t5: Tokenizer | None = None) -> None:
    """Check the queries of a search.

    Args:
      queries: sentences.
      t5: the model's tokenizer; without it, queries of unknown words pass.

    Raises:
      QueryError: there is no query; or one is empty, has more than `MAX_QUERY_WORDS` words or
        `MAX_QUERY_CHARACTERS` characters, or consists of words that are unknown tokens to `t5`.
    """
    if not queries:
        raise QueryError("no query", "describe in a sentence what to look for")
    for number, query in enumerate(queries, 1):
        if not query.strip():
            raise QueryError(f"query {number} is empty", "describe in a sentence what to look for")
        if (words := len(query.split())) > MAX_QUERY_WORDS:
            raise QueryError(f"query {number} has {words:,} words", f"use at most {MAX_QUERY_WORDS}")
        if len(query) > MAX_QUERY_CHARACTERS:
            raise QueryError(f"query {number} has {len(query):,} characters", f"use at most {MAX_QUERY_CHARACTERS:,}")
        if t5 and not any(token.strip(_WORD_BOUNDARY).isalnum() for token in _known_tokens(query, t5)):
            raise QueryError(
                f"query {number} ({query.strip()[:40]}) has no word that the model knows", "write it in English"
            )


def _known_tokens(text: str, t5: Any) -> list[str]:
    """Return the tokens of a text without the unknown ones."""
    ids = [int(i) for i in t5(text, add_special_tokens=False)["input_ids"]]
    return [str(t5.token(i)) for i in ids if i != t5.unk_token_id]


def load_captions(video: str | Path, srt: str | Path, language: str | None = None) -> list[Caption]:
    """Return the captions of a video, in seconds, in order of time.

    Args:
      video: the video file.
      srt: "none": no captions; "auto": those of `<stem>.srt` or else `<stem>.vtt` beside the video, else the text
        subtitles inside it, else none; otherwise an .srt or .vtt file, or a folder that holds `<stem>.srt` or .vtt.
        `<stem>.en.srt` is taken for `<stem>.srt` if it is the only one with a language; of several a warning says which
        there are.
      language: a code or an English name: only captions that say that they are in it, in their name or as a stream; of
        "auto" and of a folder.

    Raises:
      CaptionError, FileNotFoundError: the captions cannot be read.
    """
    if srt == "none":
        return []
    if srt != "auto" and not Path(srt).is_dir():
        return read_captions(srt)
    video = Path(video)
    folder = video.parent if srt == "auto" else Path(srt)
    if found := find_captions(folder, video.stem, language):
        return read_captions(found)
    languages = caption_languages(folder, video.stem)
    if languages and language is None:
        logging.warning(
            "%s: no captions are used, since there are some in several languages: %s; choose with --language",
            video,
            ", ".join(path.name for path in languages.values()),
        )
        return []
    if srt == "auto":
        captions = _load_embedded_captions(video, language)
        if language is not None and not captions:
            logging.warning("%s: it has no captions that say that they are in %r", video, language)
        return captions
    suffix = SRT_SUFFIX if language is None else f".{language}{SRT_SUFFIX}"
    return read_captions(folder / f"{video.stem}{suffix}")


def _load_embedded_captions(video: Path, language: str | None) -> list[Caption]:
    """Return the captions inside a video, none if there is no such file, or none that can be read."""
    if not video.is_file():
        return []
    try:
        return read_embedded_captions(video, language)
    except MediaError as error:
        logging.warning("subtitles inside a video are not used: %s", error)
        return []


def list_videos(paths: Iterable[str | Path], out: str | Path | None = None) -> list[Path]:
    """Return the given files, and the video files below the given folders, without duplicates.

    Videos and clips that a search has written are left out of folders: those of `out`, and of every folder with a
    `moments.json` and an `index.html`.

    Args:
      paths: files and folders.
      out: the output folder of this search.

    Raises:
      SearchError: there is no video.
    """
    videos: list[Path] = []
    for path in map(Path, paths):
        candidates = sorted(_videos_below(path, out)) if path.is_dir() else [path]
        videos += [video for video in candidates if video not in videos]
    if not videos:
        raise SearchError(
            f"no video among {', '.join(map(str, paths))}", f"file names of videos end in {', '.join(VIDEO_SUFFIXES)}"
        )
    return videos


def _videos_below(folder: Path, out: str | Path | None) -> Iterator[Path]:
    """Yield the files with names of videos, without those in the folders that a search writes."""
    for root, folders, files in os.walk(folder):
        parent = Path(root)
        if all((parent / name).is_file() for name in RESULT_FILES) or (out is not None and _is_same(parent, out)):
            folders[:] = [name for name in folders if name not in RESULT_FOLDERS]
        yield from (parent / name for name in files if is_video_name(parent / name))


def _is_same(folder: Path, out: str | Path) -> bool:
    return Path(out).exists() and folder.samefile(out)
