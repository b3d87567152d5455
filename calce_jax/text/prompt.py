"""Everything textual of a batch row, written on the host: what goes into the prompt, and the answer to learn.

A prompt reads, frames aside,

    0 2 4 ... 148 > 150 <extra_id_0>                            the time of each frame, the duration
    [ 2 welcome back 5 ] [ 7 to my channel 9 ] <extra_id_1>     captions that resemble the query, or [ -1 *None* -1 ]
    Query: ...   ref: [[82, 150]]   Items: a,b   Given ...      the text; "ref" are the stage-1 windows, in stage 2

and the answer "[[82, 150]]". Times are whole seconds. T5's vocabulary has most numbers below 200 as one piece; those it
would split are replaced by the nearest that it does not ("112" by "113"), so that a second is one token. Which ones
these are is computed from the tokenizer.

`behaviour="reference"` writes exactly what the original writes. The default deviates where that is an oversight:

    replacing    The original replaces digits anywhere in an answer, so 1128 becomes 1138 and 112.8 becomes 113.8. Here
                 whole numbers are replaced. It leaves "ref" as it is; here the windows in it are written as all other
                 times are, because they name the same frames.
    answers      The original learns Charades' windows with decimals where the annotation has them; here in whole
                 seconds, which is what the frames are labelled with. A window that would be empty gets its second.
                 An answer too long for its place loses whole windows, not its end.
    stage 2      The original rounds times to two decimals, and then to seconds; here once.
    long text    The original cuts at 200 tokens from the right, so a long query pushes the task out; here the query
                 loses words, then the items, then "ref", and the task stays.
    no windows   Without stage-1 windows the original has no stage-2 prompt; here it is given the whole video.

What did not fit, or had to be mended, is told by the `Note`s of a row.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Literal

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from calce_jax.config import Behaviour
from calce_jax.text.text_row import Caption, Number, RowFlag, TextRow, TextSizes, Windows
from calce_jax.text.tokenizers import unwrap_fast_tokenizer

TASK_PROMPT = "Given the video and the subtitle and the query, find the query relevant windows.\nRelevant windows: "
NO_CAPTION = "*None*"
WORD_BOUNDARY = "\N{LOWER ONE EIGHTH BLOCK}"  # how sentencepiece writes that a word begins
EOS_TOKEN = "</s>"
SINGLE_TOKEN_LIMIT = 200  # the numbers below are made single pieces

_SPEECH_SUBSTRINGS = ("talk", "speak", "say", "describe", "explain", "chat", "shout", "scream")
_SPEECH_PATTERN = re.compile(
    r"\b(?:(?:talk|speak|say|explain|shout|scream)(?:s|ed|ing)?|spoke|spoken|said"
    r"|describ(?:e|es|ed|ing)|chat(?:s|ted|ting)?)\b",
    re.IGNORECASE,
)


def mentions_speech(query: str, behaviour: Behaviour = "default") -> bool:
    """Say whether a query is about somebody talking, in which case the frames with captions are the key frames.

    Args:
      query: the sentence alone.
      behaviour: by default a form of talk, speak, say, describe, explain, chat, shout or scream among its words, in
        capitals or not. "reference" looks for these eight strings anywhere in it, so that an essay is about talking
        ("say") and "Talking" and "describing" are not.
    """
    if behaviour == "reference":
        return any(word in query for word in _SPEECH_SUBSTRINGS)
    return _SPEECH_PATTERN.search(query) is not None


def stage1_windows(
    windows: Windows | None, duration: Number, behaviour: Behaviour = "default"
) -> tuple[list[list[int | float]], RowFlag]:
    """Return what stage 2 takes for the stage-1 windows of a query: by default the whole video where there are none.

    Raises:
      ValueError: stage 1 has not been asked (`None`), under "reference". That it found none is no error there.
    """
    if windows is not None and (len(windows) or behaviour == "reference"):
        return _to_lists(windows), RowFlag(0)
    if behaviour == "reference":
        raise ValueError(
            "no stage-1 windows, which stage 2 reads; run launch/infer.py on stage 1, then launch/merge.py"
        )
    return [[0, float(duration)]], RowFlag.NO_STAGE1_WINDOWS


def find_number_replacements(t5: PreTrainedTokenizerBase, limit: int = SINGLE_TOKEN_LIMIT) -> dict[int, int]:
    """Return, for each number below `limit` that T5 would split, the nearest that it does not; of two, the greater.

    A number is split if it has several pieces and the first is not the lone word border, which is dropped.
    """

    boundary_id = _token_id(t5, WORD_BOUNDARY)
    # One call for all: a call takes a tokenizer longer than a number does.
    token_ids = t5([str(number) for number in range(2 * limit)], add_special_tokens=False)["input_ids"]
    single_token = [number for number, ids in enumerate(token_ids) if len(ids) == 1 or ids[0] == boundary_id]
    return {n: min(single_token, key=lambda w: (abs(w - n), -w)) for n in sorted(set(range(limit)) - set(single_token))}


def decode_answer(t5: PreTrainedTokenizerBase, ids: Sequence[int] | np.ndarray) -> str:
    """Return what T5 wrote, without padding, end and sentinels.

    Ids behind the vocabulary, which T5's padded embedding has, are nothing.
    """
    vocabulary_ids = [int(i) for i in ids if i < len(t5)]
    return str(t5.decode(vocabulary_ids, skip_special_tokens=True, clean_up_tokenization_spaces=True))


def answer_token_limit(t5: PreTrainedTokenizerBase, duration: Number, min_window: int = 2) -> int:
    """Return the tokens of the longest answer a video of `duration` seconds allows, with the end.

    Args:
      t5: the tokenizer answers are written in.
      duration: seconds.
      min_window: seconds that a window takes at least, and that lie between two: 2 in QVHighlights, the finest there is.
    """
    windows = [
        [start, start + min_window] for start in range(0, max(int(duration) + 1 - min_window, 1), 2 * min_window)
    ]
    return len(t5(str(windows), add_special_tokens=False)["input_ids"]) + 1


class PromptWriter:
    """Writes the text of examples.

    Args:
      t5, bert: tokenizers, from `calce_jax.text.tokenizers`.
      sizes: what rows are padded to.
      stage: in stage 2 the prompt names the stage-1 windows.
      behaviour: see the module.
    """

    def __init__(
        self,
        t5: PreTrainedTokenizerBase,
        bert: PreTrainedTokenizerBase,
        sizes: TextSizes,
        *,
        stage: Literal[1, 2],
        behaviour: Behaviour = "default",
    ):
        self.sizes, self.stage = sizes, stage
        self.behaviour: Behaviour = behaviour
        self._t5, self._bert = unwrap_fast_tokenizer(t5), unwrap_fast_tokenizer(bert)
        self._replacements = find_number_replacements(t5)
        self._boundary_id, self._eos_id = _token_id(t5, WORD_BOUNDARY), _token_id(t5, EOS_TOKEN)
        self._second_ids: dict[int, list[int]] = {}  # ids of the seconds written so far
        self._open_bracket, self._close_bracket, self._greater_sign = (
            self._encode_without_boundary(sign) for sign in "[]>"
        )
        self._video_end, self._captions_end = self._encode("<extra_id_0>"), self._encode("<extra_id_1>")
        no_caption = Caption(-1, -1, NO_CAPTION)
        self._encode_seconds(_rounded_times(no_caption))
        self._no_caption = self._caption_ids(no_caption, self._encode(NO_CAPTION))[0]

    def write(
        self,
        query: str,
        items: Sequence[str],
        times: Sequence[Number] | np.ndarray,
        duration: Number,
        captions: Sequence[Caption] = (),
        *,
        true_windows: Windows = (),
        stage1_windows: Windows | None = None,
    ) -> TextRow:
        """Write one row.

        Args:
          query: the sentence.
          items: the things named in it.
          times: of the real frames, in seconds, at most T.
          duration: of the video, in seconds.
          captions: in order of time.
          true_windows: the true windows, in seconds; none where they are not known, and then no label is set.
          stage1_windows: the stage-1 windows, in seconds, as `stage1_windows` returns them; stage 2 only.

        Raises:
          ValueError: more frames than T; true windows that lie outside the video or end before they start; no
            `stage1_windows` in stage 2; or text that exceeds M without any caption.
        """
        sizes, row_flags = self.sizes, RowFlag(0)
        if len(times) > sizes.frames:
            raise ValueError(f"{len(times)} frames, in a batch of {sizes.frames} a video; prepare with --frames=")
        frame_seconds = self._frame_seconds(times)
        caption_seconds = chain.from_iterable(map(_rounded_times, captions[: sizes.captions]))
        self._encode_seconds([*frame_seconds, round(float(duration)), *caption_seconds])
        leading_spans = [self._second_ids[second] for second in frame_seconds]
        leading_spans += [[]] * (sizes.frames - len(leading_spans))
        leading_spans.append([*self._greater_sign, *self._second_ids[round(float(duration))], *self._video_end])
        text_ids, truncated_flags = self._text_ids(query, items, stage1_windows)
        row_flags |= truncated_flags
        trailing_spans = [self._no_caption, self._captions_end, text_ids]

        # A call takes a tokenizer longer than a caption does, so all captions go in one.
        texts = [caption.text for caption in captions[: sizes.captions]]
        query_bert_tokens, *caption_bert_tokens = _encode_batch(self._bert, [query, *texts], special_tokens=True)
        caption_spans, truncated = [], []
        tokens_left = sizes.text_tokens - sum(map(len, [*leading_spans, *trailing_spans]))
        if tokens_left < 0:
            raise ValueError(
                f"a prompt without captions takes {sizes.text_tokens - tokens_left} text tokens of the {sizes.text_tokens} "
                f"a row has; raise text_tokens"
            )
        caption_ids = _encode_batch(self._t5, texts)
        for caption, ids in zip(captions, caption_ids, strict=False):
            span, is_truncated = self._caption_ids(caption, ids)
            tokens_left -= len(span)
            if tokens_left < 0:
                break
            caption_spans.append(span)
            truncated.append(is_truncated)
        row_flags |= RowFlag.CAPTIONS_DROPPED if len(caption_spans) < len(captions) else RowFlag(0)
        caption_bert_tokens = caption_bert_tokens[: len(caption_spans)]
        row_flags |= RowFlag.QUERY_TRUNCATED if len(query_bert_tokens) > sizes.bert_tokens else RowFlag(0)
        row_flags |= (
            RowFlag.CAPTION_TRUNCATED
            if any(truncated) or any(len(w) > sizes.bert_tokens for w in caption_bert_tokens)
            else RowFlag(0)
        )

        labels, truncated_flags = self._label_ids(true_windows, duration)
        tokens, spans = _concatenate(
            [*leading_spans, *caption_spans, *([[]] * (sizes.captions - len(caption_spans))), *trailing_spans]
        )
        caption_rows = [self._pad_bert_tokens(token_ids) for token_ids in caption_bert_tokens]
        caption_rows += [np.zeros(sizes.bert_tokens, np.int32)] * (sizes.captions - len(caption_rows))
        return TextRow(
            tokens=_pad(tokens, sizes.text_tokens),
            spans=spans,
            query_bert_tokens=self._pad_bert_tokens(query_bert_tokens),
            caption_bert_tokens=np.stack(caption_rows),
            labels=_pad(labels, sizes.answer_tokens),
            row_flags=row_flags | truncated_flags,
        )

    def format_text(self, query: str, items: Sequence[str], stage1_windows: Windows | None = None) -> str:
        """Return the text part as it reads before any cut."""
        ref = (
            ""
            if self.stage == 1
            else f"ref: {self._format_windows([] if stage1_windows is None else stage1_windows)}\n"
        )
        return f"Query: {query}\n{ref}Items: {','.join(items)}\n{TASK_PROMPT}"

    def format_answer(self, windows: Windows) -> str:
        """Return the answer that names `windows` (seconds), as it is learnt."""
        if self.behaviour == "default":
            return self._format_windows(windows)
        text = str(_to_lists(windows))
        for number, replacement in self._replacements.items():
            text = text.replace(str(number), str(replacement))
        return text

    def _frame_seconds(self, times: Sequence[Number] | np.ndarray) -> list[int]:
        exact = np.asarray(times, np.float32)
        if self.behaviour == "reference" and self.stage == 2:
            exact = np.round(exact, 2)
        return [round(float(second)) for second in exact]

    def _format_windows(self, windows: Windows) -> str:
        if self.behaviour == "reference":
            return str(_to_lists(windows))
        return str([self._single_token_window(window) for window in windows])

    def _single_token_window(self, window: Sequence[Number]) -> list[int]:
        """Return a window in whole seconds that are single pieces, unless that would leave nothing of it."""
        seconds = _whole_seconds(window)
        single = [self._replacements.get(second, second) for second in seconds]
        return single if single[0] < single[1] else list(seconds)

    def _text_ids(self, query: str, items: Sequence[str], windows: Windows | None) -> tuple[list[int], RowFlag]:
        if self.stage == 2 and windows is None:
            raise ValueError("no stage-1 windows for a prompt of stage 2; see `stage1_windows`")
        max_tokens = self.sizes.max_text
        ids = [*self._encode(self.format_text(query, items, windows)), self._eos_id]
        if len(ids) <= max_tokens:
            return ids, RowFlag(0)
        if self.behaviour == "reference":
            return [*ids[: max_tokens - 1], self._eos_id], RowFlag.QUERY_TRUNCATED

        query_words, items, windows = query.split(), list(items), [] if windows is None else list(windows)

        def encode_shortened(word_count: int, item_count: int, window_count: int) -> list[int]:
            shortened = self.format_text(" ".join(query_words[:word_count]), items[:item_count], windows[:window_count])
            return [*self._encode(shortened), self._eos_id]

        # A word is a token or more, so no more words than `limit` can stay, and a book is not tokenised again.
        max_words = min(len(query_words), max_tokens)
        fitted_ids = _longest_prefix(max_words, max_tokens, lambda n: encode_shortened(n, len(items), len(windows)))
        fitted_ids = fitted_ids or _longest_prefix(
            len(items), max_tokens, lambda n: encode_shortened(0, n, len(windows))
        )
        fitted_ids = fitted_ids or _longest_prefix(len(windows), max_tokens, lambda n: encode_shortened(0, 0, n))
        if fitted_ids is None:
            raise ValueError(
                f"max_text: {max_tokens} tokens do not even hold the task, which takes {len(encode_shortened(0, 0, 0))}"
            )
        return fitted_ids, RowFlag.QUERY_TRUNCATED

    def _caption_ids(self, caption: Caption, text: list[int]) -> tuple[list[int], bool]:
        """Return the ids of "[", start, text, end, "]", and whether the text was cut."""
        start, end = (self._second_ids[second] for second in _rounded_times(caption))
        max_tokens = self.sizes.max_text
        return [*self._open_bracket, *start, *text[:max_tokens], *end, *self._close_bracket], len(text) > max_tokens

    def _label_ids(self, windows: Windows, duration: Number) -> tuple[list[int], RowFlag]:
        if not len(windows):
            return [], RowFlag(0)
        windows, row_flags = _check_windows(_to_lists(windows), duration, self.behaviour)
        ids, max_tokens = [*self._encode(self.format_answer(windows)), self._eos_id], self.sizes.answer_tokens
        if len(ids) <= max_tokens:
            return ids, row_flags
        row_flags |= RowFlag.ANSWER_TRUNCATED
        if self.behaviour == "reference":
            return [*ids[: max_tokens - 1], self._eos_id], row_flags
        fitted_ids = _longest_prefix(
            len(windows), max_tokens, lambda n: [*self._encode(self.format_answer(windows[:n])), self._eos_id]
        )
        if fitted_ids is None or len(fitted_ids) == len([*self._encode("[]"), self._eos_id]):
            raise ValueError(f"answer_tokens: {max_tokens} do not hold one window; raise it")
        return fitted_ids, row_flags

    def _pad_bert_tokens(self, ids: list[int]) -> np.ndarray:
        """Cut to U words, the last of which stays [SEP]; pad."""
        max_tokens = self.sizes.bert_tokens
        return _pad(ids if len(ids) <= max_tokens else [*ids[: max_tokens - 1], ids[-1]], max_tokens)

    def _encode(self, text: str) -> list[int]:
        return _encode_batch(self._t5, [text])[0]

    def _encode_without_boundary(self, text: str) -> list[int]:
        return [i for i in self._encode(text) if i != self._boundary_id]

    def _encode_seconds(self, seconds: Iterable[int]) -> None:
        """See that whole seconds have their ids; like a sign, a second stands without the border of a word."""
        new_seconds = sorted(set(seconds) - self._second_ids.keys())
        if not new_seconds:
            return
        encoded = _encode_batch(self._t5, [str(self._replacements.get(second, second)) for second in new_seconds])
        for second, ids in zip(new_seconds, encoded, strict=True):
            self._second_ids[second] = ids[1:] if ids[0] == self._boundary_id else ids


def _encode_batch(tokenizer: Tokenizer, texts: list[str], *, special_tokens: bool = False) -> list[list[int]]:
    """Tokenize texts; with BERT's [CLS] and [SEP] at the `special_tokens`."""
    return [encoded.ids for encoded in tokenizer.encode_batch_fast(texts, add_special_tokens=special_tokens)]


def _token_id(t5: PreTrainedTokenizerBase, piece: str) -> int:
    token_id = t5.convert_tokens_to_ids(piece)
    assert isinstance(token_id, int), "one piece has one id"
    return token_id


def _rounded_times(caption: Caption) -> tuple[int, int]:
    return round(float(caption.start)), round(float(caption.end))


def _to_lists(windows: Windows) -> list[list[int | float]]:
    """Return windows as the annotation writes them, 82 or 24.3; in the array of a table both are floats."""
    if not isinstance(windows, np.ndarray):
        return [[n if isinstance(n, int | float) else float(n) for n in window] for window in windows]
    all_integers = bool((windows == np.round(windows)).all())
    return windows.astype(np.int64 if all_integers else np.float64).tolist()


def _whole_seconds(window: Sequence[Number]) -> tuple[int, int]:
    """Return a window in whole seconds; one that rounding would empty takes the seconds it touches."""
    start, end = (float(second) for second in window)
    first, last = round(start), round(end)
    return (first, last) if first < last else (int(np.floor(start)), max(int(np.ceil(end)), int(np.floor(start)) + 1))


def _check_windows(
    windows: list[list[int | float]], duration: Number, behaviour: Behaviour
) -> tuple[list[list[int | float]], RowFlag]:
    """Refuse impossible windows, and by default shorten those that reach a little beyond the video."""
    row_flags = RowFlag(0)
    for window in windows:
        if len(window) != 2 or not 0 <= window[0] <= window[1]:
            raise ValueError(f"window {window}: should be [start, end] in seconds, start first; correct the annotation")
        if window[0] >= duration:
            raise ValueError(
                f"window {window}: lies outside the video, which is {duration} s long; correct the annotation, or "
                "prepare the whole video"
            )
        if window[1] > duration and behaviour == "default":
            window[1] = float(duration)
            row_flags |= RowFlag.TRUE_WINDOW_CLIPPED
    return windows, row_flags


def _longest_prefix(max_count: int, max_ids: int, encode: Callable[[int], list[int]]) -> list[int] | None:
    """Return `write(n)` for the greatest n up to `max_count` with at most `max_ids` ids, or None where even 0 has more."""
    n = bisect_right(range(max_count + 1), max_ids, key=lambda n: len(encode(n))) - 1
    return encode(n) if n >= 0 else None


def _concatenate(spans: Iterable[Sequence[int]]) -> tuple[list[int], np.ndarray]:
    """Return all pieces in one list, and where each starts and how long it is."""
    spans = list(spans)
    sizes = np.array([len(piece) for piece in spans], np.int32)
    starts = np.concatenate([np.zeros(1, np.int32), np.cumsum(sizes, dtype=np.int32)[:-1]])
    starts[sizes == 0] = 0
    return [i for piece in spans for i in piece], np.stack([starts, sizes], axis=1)


def _pad(ids: Sequence[int], size: int) -> np.ndarray:
    padded = np.zeros(size, np.int32)
    padded[: len(ids)] = ids
    return padded


# What the original generates at most, whatever the video's length.
REFERENCE_ANSWER_TOKENS = 70


def max_answer_tokens(t5: PreTrainedTokenizerBase, max_duration: float, behaviour: Behaviour = "default") -> int:
    """Return how many tokens an answer may have: what the longest video needs; under "reference" always 70.

    Args:
      t5: the tokenizer.
      max_duration: of the videos, seconds.
      behaviour: the run's.
    """
    return REFERENCE_ANSWER_TOKENS if behaviour == "reference" else answer_token_limit(t5, max_duration)
