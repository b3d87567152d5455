"""The inputs of a search: check the queries, list the videos, load the captions."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from calce_jax.errors import UserError
from calce_jax.text.captions import read_srt
from calce_jax.text.prompt import WORD_BOUNDARY, Caption
from calce_jax.video.files import VIDEO_SUFFIXES, is_video_name

MAX_QUERY_WORDS = 60  # a longer query does not fit into the prompt
MAX_QUERY_CHARACTERS = 1000  # bounds the time of tagging and tokenizing, since a word may have any length


class SearchError(UserError):
    """A query, a video or a checkpoint cannot be searched."""


def check_queries(queries: Sequence[str], t5: PreTrainedTokenizerBase | None = None) -> None:
    """Check the queries of a search.

    Args:
      queries: sentences.
      t5: the model's tokenizer; without it, queries of unknown words pass.

    Raises:
      SearchError: there is no query; or one is empty, has more than `MAX_QUERY_WORDS` words or
        `MAX_QUERY_CHARACTERS` characters, or consists of words that are unknown tokens to `t5`.
    """
    if not queries:
        raise SearchError("no query", "describe in a sentence what to look for")
    for number, query in enumerate(queries, 1):
        if not query.strip():
            raise SearchError(f"query {number} is empty", "describe in a sentence what to look for")
        if (words := len(query.split())) > MAX_QUERY_WORDS:
            raise SearchError(f"query {number} has {words:,} words", f"use at most {MAX_QUERY_WORDS}")
        if len(query) > MAX_QUERY_CHARACTERS:
            raise SearchError(f"query {number} has {len(query):,} characters", f"use at most {MAX_QUERY_CHARACTERS:,}")
        if t5 and not any(token.strip(WORD_BOUNDARY).isalnum() for token in _known_tokens(query, t5)):
            raise SearchError(
                f"query {number} ({query.strip()[:40]}) has no word that the model knows", "write it in English"
            )


def _known_tokens(text: str, t5: PreTrainedTokenizerBase) -> list[str]:
    """Return the tokens of a text without the unknown ones."""
    ids = [int(i) for i in t5(text, add_special_tokens=False)["input_ids"]]
    return [str(t5.convert_ids_to_tokens(i)) for i in ids if i != t5.unk_token_id]


def load_captions(video: str | Path, srt: str | Path) -> list[Caption]:
    """Return the captions of a video, in seconds, in order of time.

    Args:
      video: the video file.
      srt: "none": no captions; "auto": those of `<stem>.srt` beside the video, none if there is no such file;
        otherwise an .srt file, or a folder that holds `<stem>.srt`.

    Raises:
      CaptionError, FileNotFoundError: the captions cannot be read.
    """
    default_srt = Path(video).with_suffix(".srt")
    if srt == "none" or (srt == "auto" and not default_srt.is_file()):
        return []
    if srt == "auto":
        return read_srt(default_srt)
    return read_srt(Path(srt) / default_srt.name if Path(srt).is_dir() else srt)


def list_videos(paths: Iterable[str | Path]) -> list[Path]:
    """Return the given files, and the video files below the given folders, without duplicates.

    Raises:
      SearchError: there is no video.
    """
    videos: list[Path] = []
    for path in map(Path, paths):
        candidates = sorted(p for p in path.rglob("*") if is_video_name(p)) if path.is_dir() else [path]
        videos += [video for video in candidates if video not in videos]
    if not videos:
        raise SearchError(
            f"no video among {', '.join(map(str, paths))}", f"file names of videos end in {', '.join(VIDEO_SUFFIXES)}"
        )
    return videos
