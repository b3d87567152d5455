"""Check what a search is given: videos, captions, queries."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from calce_jax.errors import UserError
from calce_jax.text.captions import read_srt
from calce_jax.text.prompt import WORD_BOUNDARY, Caption
from calce_jax.video.files import VIDEO_SUFFIXES, is_video_name

MAX_QUERY_WORDS = 60  # of a query; more would push each other out of the prompt
MOST_LETTERS = 1000  # of a query; its 60 words may have any length, and all of them are tagged and tokenized


class SearchError(UserError):
    """A search cannot be made; the message says what is missing and the remedy."""


def check_queries(queries: Sequence[str], t5: PreTrainedTokenizerBase | None = None) -> None:
    """Refuse what no model here can be asked.

    Args:
      queries: sentences.
      t5: the model's tokenizer; without it, whether the words are known is not looked at.

    Raises:
      SearchError: there is no query; one is empty, longer than 60 words or 1000 characters, or has no word that the
        tokenizer can write.
    """
    if not queries:
        raise SearchError("no query", "say in a sentence what to look for")
    for number, query in enumerate(queries, 1):
        if not query.strip():
            raise SearchError(f"query {number} is empty", "say in a sentence what to look for")
        if (words := len(query.split())) > MAX_QUERY_WORDS:
            raise SearchError(f"query {number} has {words:,} words", f"say it in {MAX_QUERY_WORDS} or fewer")
        if len(query) > MOST_LETTERS:
            raise SearchError(f"query {number} has {len(query):,} characters", f"say it in {MOST_LETTERS:,} or fewer")
        if t5 and not any(token.strip(WORD_BOUNDARY).isalnum() for token in _known_tokens(query, t5)):
            raise SearchError(
                f"query {number} ({query.strip()[:40]}) has no word that the model knows", "ask in English"
            )


def _known_tokens(text: str, t5: PreTrainedTokenizerBase) -> list[str]:
    """Return what the tokenizer makes of a text, without what it does not know."""
    ids = [int(i) for i in t5(text, add_special_tokens=False)["input_ids"]]
    return [str(t5.convert_ids_to_tokens(i)) for i in ids if i != t5.unk_token_id]


def load_captions(video: str | Path, srt: str | Path) -> list[Caption]:
    """Return what is said in a video.

    Args:
      video: the file.
      srt: "none" for nothing; "auto" for the .srt file beside the video, where there is one; otherwise a file, or a
        folder of files called like their videos.

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
    """Return the files, and those in the folders that are called like videos, each once.

    Raises:
      SearchError: there is none.
    """
    videos: list[Path] = []
    for path in map(Path, paths):
        candidates = sorted(p for p in path.rglob("*") if is_video_name(p)) if path.is_dir() else [path]
        videos += [video for video in candidates if video not in videos]
    if not videos:
        raise SearchError(f"no video among {', '.join(map(str, paths))}", f"they end in {', '.join(VIDEO_SUFFIXES)}")
    return videos
