"""Words of a transcript with their times: tokens to words, and corrections at the borders of sentences and segments.

Source: `whisper/tokenizer.py` and `whisper/timing.py` of openai-whisper, whose rules are reproduced.
"""

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int

from calce_jax.speech.segments import Segment
from calce_jax.speech.special_tokens import TIME_STEP_S
from calce_jax.text.caption import Word

# Languages that are written without spaces: every character is a word.
UNSPACED_LANGUAGES = frozenset({"zh", "ja", "th", "lo", "my", "yue"})
PREPENDED_PUNCTUATION = "\"'“¿([{-"
APPENDED_PUNCTUATION = "\"'.。,，!！?？:：”)]}、"
SENTENCE_ENDS = ".。!！?？"
# A word is too long if it takes more than so many medians, and the median counts as no more than so many seconds.
MAX_MEDIANS, MAX_MEDIAN_S = 2, 0.7
# Times of a segment and of its words that differ more than this disagree; then the segment's is taken.
MAX_DISAGREEMENT_S = 0.5
REPLACEMENT_CHARACTER = "\N{REPLACEMENT CHARACTER}"

Decode = Callable[[list[int]], str]


@dataclass
class TimedWord:
    """A word while its times are corrected; seconds from the start of its window.

    Attributes:
      tokens: those that it is written with; none where it was merged into its neighbour.
    """

    text: str
    tokens: list[int] = field(default_factory=list)
    start: float = 0.0
    end: float = 0.0
    probability: float = 0.0


def split_words(tokens: Sequence[int], decode: Decode, language: str | None) -> list[TimedWord]:
    """Return the words of text tokens, each with the space before it; their times are 0.

    Args:
      tokens: of text, without special tokens.
      decode: tokens to text; half a character becomes U+FFFD.
      language: a code; in `UNSPACED_LANGUAGES` every character is a word, else words begin at spaces, and punctuation
        is a word of its own.
    """
    words: list[TimedWord] = []
    for character in _split_characters(tokens, decode):
        is_word_start = character.text.startswith(" ") or character.text.strip() in string.punctuation
        if language in UNSPACED_LANGUAGES or is_word_start or not words:
            words.append(character)
        else:
            words[-1].text += character.text
            words[-1].tokens += character.tokens
    return words


def _split_characters(tokens: Sequence[int], decode: Decode) -> list[TimedWord]:
    """Split where the tokens so far decode to whole characters; U+FFFD may be in the text itself."""
    whole = decode(list(tokens))
    pieces: list[TimedWord] = []
    pending: list[int] = []
    offset = 0
    for token in tokens:
        pending.append(token)
        text = decode(pending)
        broken = text.find(REPLACEMENT_CHARACTER)
        if broken < 0 or whole[offset + broken : offset + broken + 1] == REPLACEMENT_CHARACTER:
            pieces.append(TimedWord(text, pending))
            offset += len(text)
            pending = []
    return [*pieces, TimedWord(decode(pending), pending)] if pending else pieces


def time_words(
    words: list[TimedWord], positions: Int[np.ndarray, " L"], probabilities: Float[np.ndarray, " L"]
) -> float:
    """Set times and probabilities of the words, and merge punctuation into the word that it belongs to.

    Args:
      words: from `split_words`.
      positions: first encoder position of each of their tokens and of the end, from
        `calce_jax.speech.alignment.first_positions`.
      probabilities: of each of their tokens.

    Returns:
      The median duration of a word in seconds, at most `MAX_MEDIAN_S`; 0 if none lasts.
    """
    bounds = np.cumsum([0, *(len(word.tokens) for word in words)])
    seconds = positions * TIME_STEP_S
    for word, first, last in zip(words, bounds[:-1], bounds[1:], strict=True):
        word.start, word.end = float(seconds[first]), float(seconds[last])
        word.probability = float(np.mean(probabilities[first:last]))
    durations = [word.end - word.start for word in words if word.end != word.start]
    median = min(MAX_MEDIAN_S, float(np.median(durations))) if durations else 0.0
    max_duration = MAX_MEDIANS * median
    for before, word in pairwise(words):
        if word.end - word.start > max_duration:
            if word.text in SENTENCE_ENDS:
                word.end = word.start + max_duration
            elif before.text in SENTENCE_ENDS:
                word.start = word.end - max_duration
    _merge_punctuation(words)
    return median


def _merge_punctuation(words: list[TimedWord]) -> None:
    """Merge opening marks into the word after them, others into the word before; what is merged is left empty."""

    def merge(word: TimedWord, text: str, tokens: list[int], emptied: TimedWord) -> None:
        word.text, word.tokens = text, tokens
        emptied.text, emptied.tokens = "", []

    following = len(words) - 1
    for index in range(len(words) - 2, -1, -1):
        mark, word = words[index], words[following]
        if mark.text.startswith(" ") and mark.text.strip() in PREPENDED_PUNCTUATION:
            merge(word, mark.text + word.text, mark.tokens + word.tokens, mark)
        else:
            following = index
    preceding = 0
    for index in range(1, len(words)):
        word, mark = words[preceding], words[index]
        if not word.text.endswith(" ") and mark.text in APPENDED_PUNCTUATION:
            merge(word, word.text + mark.text, word.tokens + mark.tokens, mark)
        else:
            preceding = index


def add_words(
    segments: Sequence[Segment],
    words: Sequence[TimedWord],
    median: float,
    *,
    offset: float,
    last_speech_end: float,
    eot: int,
) -> list[Segment]:
    """Return the segments of a window with their words, which decide when a segment begins and ends.

    The first word after a pause, and words that reach far beyond their segment, are shortened.

    Args:
      segments: of one window.
      words: all of them, with times from `time_words`.
      median: from `time_words`.
      offset: second at which the window begins.
      last_speech_end: second at which the last segment of the window before ends; 0 if there is none.
      eot: the tokens below are text.
    """
    remaining = iter(words)
    timed_segments = []
    for segment in segments:
        num_tokens, taken = sum(token < eot for token in segment.tokens), 0
        timed: list[Word] = []
        while taken < num_tokens and (word := next(remaining, None)) is not None:
            taken += len(word.tokens)
            if word.text:
                start, end = (round(offset + second, 2) for second in (word.start, word.end))
                timed.append(Word(word.text, start, end, word.probability))
        fitted = _fit_segment(replace(segment, words=tuple(timed)), median, last_speech_end)
        if timed:
            last_speech_end = fitted.end
            # A last word may be kept beyond its segment; and a caption lasts, also if its words have no duration.
            if fitted.words[0].start < fitted.words[-1].end:
                fitted = replace(fitted, start=fitted.words[0].start, end=fitted.words[-1].end)
            else:
                fitted = replace(fitted, start=segment.start, end=segment.end)
        timed_segments.append(fitted)
    return timed_segments


def _fit_segment(segment: Segment, median: float, last_speech_end: float) -> Segment:
    """Return a segment with plausible first and last words; its own times follow them where these are plausible."""
    words = list(segment.words)
    if not words:
        return segment
    first, max_duration = words[0], MAX_MEDIANS * median
    is_long = first.end - first.start > max_duration
    if first.end - last_speech_end > 4 * median and (
        is_long or (len(words) > 1 and words[1].end - first.start > 2 * max_duration)
    ):
        if len(words) > 1 and words[1].end - words[1].start > max_duration:
            border = max(words[1].end / 2, words[1].end - max_duration)
            words[0], words[1] = replace(words[0], end=border), replace(words[1], start=border)
        words[0] = replace(words[0], start=max(0.0, words[0].end - max_duration))
    start, end = segment.start, segment.end
    if start < words[0].end and start - MAX_DISAGREEMENT_S > words[0].start:
        words[0] = replace(words[0], start=max(0.0, min(words[0].end - median, start)))
    else:
        start = words[0].start
    if end > words[-1].start and end + MAX_DISAGREEMENT_S < words[-1].end:
        words[-1] = replace(words[-1], end=max(words[-1].start + median, end))
    else:
        end = words[-1].end
    return replace(segment, start=start, end=end, words=tuple(words))
