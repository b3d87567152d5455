"""Writing the text of a batch row on the host: the pieces of the prompt, and the labels.

A prompt has these texts between its frames:

    0 2 4 ... 148 > 150 <extra_id_0>                            the time of each frame, the duration
    [ 2 welcome back 5 ] [ 7 to my channel 9 ] <extra_id_1>     captions similar to the query, or [ -1 *None* -1 ]
    Query: ...   ref: [[82, 150]]   Items: a,b   Given ...      the text; "ref" has the stage-1 windows, in stage 2

and the answer is "[[82, 150]]", or "[]" where the query does not happen. Times are whole seconds. T5's vocabulary has
most numbers below 200 as one token; a number that it would split is replaced by the nearest that it does not ("112" by
"113"), so that a second is one token. The replacements are computed from the tokenizer.

`behaviour="reference"` writes exactly the original's text. The default deviates where that is an oversight:

    replacement  The original replaces digits anywhere in an answer, so 1128 becomes 1138 and 112.8 becomes 113.8. Here
                 whole numbers are replaced. The original does not replace numbers in "ref"; here they are written like
                 all other times, because they refer to the same frames.
    answers      The original's labels of Charades have decimals where the annotation has them; here whole seconds, like
                 the times of frames. A window that rounding would empty becomes the enclosing seconds. An answer
                 longer than the labels loses whole windows, not its last tokens.
    stage 2      The original rounds times to two decimals, and then to seconds; here once.
    long text    The original truncates the text at 200 tokens on the right, so a long query cuts off the task; here
                 the query loses words, then the items, then "ref", and the task stays.
    no windows   Without stage-1 windows the original has no stage-2 prompt; here the whole video is the window.

Mr. BLIP's prompt (`method="mr_blip"`) is older and shorter: the frames with their times, and

    Query: ...   Given the video and the query, find the relevant windows.   Relevant windows:

`RowFlag`s of a row say what was truncated, dropped or clipped.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Literal

import numpy as np

from calce_jax.config import Behaviour, Method
from calce_jax.text.caption import Caption, Number
from calce_jax.text.caption_choice import choose_captions, fit_captions
from calce_jax.text.inverted import InvertedTask, whole_query
from calce_jax.text.prompt_windows import check_windows, to_lists, whole_seconds
from calce_jax.text.text_row import RowFlag, TextRow, TextSizes, Windows
from calce_jax.text.text_tokenizer import TextTokenizer
from calce_jax.text.token_ids import concatenate, encode_batch, longest_prefix, pad

TASK_PROMPT = "Given the video and the subtitle and the query, find the query relevant windows.\nRelevant windows: "
MR_BLIP_TASK_PROMPT = "Given the video and the query, find the relevant windows.\nRelevant windows: "
NO_CAPTION = "*None*"
WORD_BOUNDARY = "\N{LOWER ONE EIGHTH BLOCK}"  # sentencepiece's mark of the beginning of a word
EOS_TOKEN = "</s>"
SINGLE_TOKEN_LIMIT = 200  # numbers below it are written as a single token
REFERENCE_ANSWER_TOKENS = 70  # the original's limit for videos of any duration

_SPEECH_SUBSTRINGS = ("talk", "speak", "say", "describe", "explain", "chat", "shout", "scream")
_SPEECH_PATTERN = re.compile(
    r"\b(?:(?:talk|speak|say|explain|shout|scream)(?:s|ed|ing)?|spoke|spoken|said"
    r"|describ(?:e|es|ed|ing)|chat(?:s|ted|ting)?)\b",
    re.IGNORECASE,
)


def mentions_speech(query: str, behaviour: Behaviour = "default") -> bool:
    """Return whether a query is about speech; frames during speech are then its key frames.

    Args:
      query: the sentence.
      behaviour: by default True if one of its words is a form of talk, speak, say, describe, explain, chat, shout or
        scream, in any case. "reference" searches these eight strings anywhere, case-sensitively: "essay" contains
        "say", and "Talking" and "describing" contain none.
    """
    if behaviour == "reference":
        return any(word in query for word in _SPEECH_SUBSTRINGS)
    return _SPEECH_PATTERN.search(query) is not None


def stage1_windows(
    windows: Windows | None, duration: Number, behaviour: Behaviour = "default"
) -> tuple[list[list[int | float]], RowFlag]:
    """Return the stage-1 windows that stage 2 uses for a query, by default the whole video if there are none.

    Args:
      windows: predicted by stage 1, in seconds; `None` if stage 1 has not run.
      duration: of the video, in seconds.
      behaviour: "reference" returns no windows if stage 1 predicted none.

    Raises:
      ValueError: under "reference", `windows` is `None`.
    """
    if windows is not None and (len(windows) or behaviour == "reference"):
        return to_lists(windows), RowFlag(0)
    if behaviour == "reference":
        raise ValueError("no stage-1 windows, which stage 2 needs; run `calce infer` on stage 1, then `calce merge`")
    return [[0, float(duration)]], RowFlag.NO_STAGE1_WINDOWS


def find_number_replacements(t5: TextTokenizer, limit: int = SINGLE_TOKEN_LIMIT) -> dict[int, int]:
    """Return the nearest unsplit number for each number below `limit` that T5 splits; of two, the greater.

    A number is split if it has several tokens and the first is not the lone word boundary, which is dropped.
    """
    boundary_id = _token_id(t5, WORD_BOUNDARY)
    # One call for all: the overhead of a call exceeds the time of a number.
    token_ids = t5([str(number) for number in range(2 * limit)], add_special_tokens=False)["input_ids"]
    single_token = [number for number, ids in enumerate(token_ids) if len(ids) == 1 or ids[0] == boundary_id]
    return {n: min(single_token, key=lambda w: (abs(w - n), -w)) for n in sorted(set(range(limit)) - set(single_token))}


def decode_answer(t5: TextTokenizer, ids: Sequence[int] | np.ndarray) -> str:
    """Return the text of an answer, without padding, end and sentinel tokens.

    Ids beyond the tokenizer's vocabulary, which T5's padded embedding has, are dropped.
    """
    vocabulary_ids = [int(i) for i in ids if i < len(t5)]
    return t5.decode(vocabulary_ids, skip_special_tokens=True)


def answer_pieces(t5: TextTokenizer) -> list[str]:
    """Return the text of every token of a vocabulary as it stands in an answer: word boundaries are spaces."""
    return [t5.token(token_id).replace(WORD_BOUNDARY, " ") for token_id in range(len(t5))]


def answer_token_limit(t5: TextTokenizer, duration: Number, min_window: int = 2) -> int:
    """Return the length in tokens, with the end token, of the longest answer about a video of `duration` seconds.

    Args:
      t5: the tokenizer of answers.
      duration: seconds.
      min_window: least length of windows and of gaps between them, in seconds: 2 in QVHighlights, the smallest of all
        datasets.
    """
    windows = [
        [start, start + min_window] for start in range(0, max(int(duration) + 1 - min_window, 1), 2 * min_window)
    ]
    return len(t5(str(windows), add_special_tokens=False)["input_ids"]) + 1


def max_answer_tokens(t5: TextTokenizer, max_duration: float, behaviour: Behaviour = "default") -> int:
    """Return the limit on the tokens of a generated answer.

    Args:
      t5: the tokenizer of answers.
      max_duration: of all videos, in seconds.
      behaviour: by default the limit of the longest video; "reference" has 70 always.
    """
    return REFERENCE_ANSWER_TOKENS if behaviour == "reference" else answer_token_limit(t5, max_duration)


class PromptWriter:
    """Writes the text of rows: prompts and labels.

    Args:
      t5, bert: tokenizers, from `calce_jax.text.tokenizers`.
      sizes: shapes to which rows are padded.
      stage: prompts of stage 2 contain the stage-1 windows.
      behaviour: see the module.
      method: see the module; "mr_blip" writes no captions and no items.
    """

    def __init__(
        self,
        t5: TextTokenizer,
        bert: TextTokenizer,
        sizes: TextSizes,
        *,
        stage: Literal[1, 2],
        behaviour: Behaviour = "default",
        method: Method = "calce",
    ):
        self.sizes, self.stage = sizes, stage
        self.behaviour: Behaviour = behaviour
        self.method: Method = method
        self._t5, self._bert = t5.backend, bert.backend
        self._replacements = find_number_replacements(t5)
        self._boundary_id, self._eos_id = _token_id(t5, WORD_BOUNDARY), _token_id(t5, EOS_TOKEN)
        self._second_ids: dict[int, list[int]] = {}  # token ids by second, a cache
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
        is_absent: bool = False,
        inverted: InvertedTask | None = None,
    ) -> TextRow:
        """Return the text of one row.

        Args:
          query: the sentence.
          items: the things named in it, as noun phrases.
          times: of the real frames, in seconds, at most T.
          duration: of the video, in seconds.
          captions: in order of time.
          true_windows: in seconds; empty where they are not known: all labels are then padding.
          stage1_windows: in seconds, from the function `stage1_windows`; stage 2 only.
          is_absent: the query is known not to happen; there are no true windows then, and the answer is "[]".
          inverted: asks for the query or a word of it, given `true_windows`; the prompt has no items and no
            `stage1_windows` then.

        Raises:
          ValueError: more frames than T; true windows that are reversed or outside the video; no `stage1_windows` in
            stage 2; text that exceeds M even without captions; or limits that hold no task or no window.
        """
        sizes, row_flags = self.sizes, RowFlag(0)
        if len(times) > sizes.frames:
            raise ValueError(
                f"{len(times)} frames, but rows hold {sizes.frames}; prepare the videos with --frames={sizes.frames}"
            )
        frame_seconds = self._frame_seconds(times)
        # One call for all: the overhead of a call exceeds the time of a caption.
        compared = query if inverted is None else inverted.shown_words
        query_bert_tokens, *caption_bert_tokens = encode_batch(
            self._bert, [compared, *(caption.text for caption in captions)], special_tokens=True
        )
        candidates = choose_captions(query_bert_tokens, caption_bert_tokens, sizes.captions)
        caption_seconds = chain.from_iterable(_rounded_times(captions[position]) for position in candidates)
        self._encode_seconds([*frame_seconds, round(float(duration)), *caption_seconds])
        leading_spans = [self._second_ids[second] for second in frame_seconds]
        leading_spans += [[]] * (sizes.frames - len(leading_spans))
        leading_spans.append([*self._greater_sign, *self._second_ids[round(float(duration))], *self._video_end])
        if inverted is None:
            text_ids, truncated_flags = self._text_ids(query, items, stage1_windows)
        else:
            text_ids, inverted, truncated_flags = self._inverted_ids(inverted, query, true_windows, duration)
        row_flags |= truncated_flags
        caption_part = [self._no_caption, self._captions_end] if self.method == "calce" else [[], []]
        trailing_spans = [*caption_part, text_ids]

        tokens_left = sizes.text_tokens - sum(map(len, [*leading_spans, *trailing_spans]))
        if tokens_left < 0:
            raise ValueError(
                f"text_tokens: must be at least {sizes.text_tokens - tokens_left} for a prompt without captions, "
                f"got {sizes.text_tokens}; raise it"
            )
        caption_ids = encode_batch(self._t5, [captions[position].text for position in candidates])
        pieces = {
            position: self._caption_ids(captions[position], ids)
            for position, ids in zip(candidates, caption_ids, strict=True)
        }
        token_counts = [len(pieces[position][0]) for position in candidates]
        positions = fit_captions(query_bert_tokens, caption_bert_tokens, candidates, token_counts, tokens_left)
        row_flags |= RowFlag.CAPTIONS_DROPPED if len(positions) < len(captions) else RowFlag(0)
        caption_spans, truncated = [pieces[n][0] for n in positions], [pieces[n][1] for n in positions]
        caption_bert_tokens = [caption_bert_tokens[n] for n in positions]
        row_flags |= RowFlag.QUERY_TRUNCATED if len(query_bert_tokens) > sizes.bert_tokens else RowFlag(0)
        row_flags |= (
            RowFlag.CAPTION_TRUNCATED
            if any(truncated) or any(len(w) > sizes.bert_tokens for w in caption_bert_tokens)
            else RowFlag(0)
        )

        if inverted is None:
            labels, truncated_flags = self._label_ids(true_windows, duration, is_absent)
        else:
            labels, truncated_flags = self._inverted_label_ids(inverted.answer)
        num_absent = sizes.captions - len(positions)
        tokens, spans = concatenate([*leading_spans, *caption_spans, *[[]] * num_absent, *trailing_spans])
        caption_rows = [self._pad_bert_tokens(token_ids) for token_ids in caption_bert_tokens]
        caption_rows += [np.zeros(sizes.bert_tokens, np.int32)] * num_absent
        return TextRow(
            tokens=pad(tokens, sizes.text_tokens),
            spans=spans,
            query_bert_tokens=self._pad_bert_tokens(query_bert_tokens),
            caption_bert_tokens=np.stack(caption_rows),
            caption_positions=np.array([*positions, *[-1] * num_absent], np.int32),
            labels=pad(labels, sizes.answer_tokens),
            row_flags=row_flags | truncated_flags,
        )

    def format_text(self, query: str, items: Sequence[str], stage1_windows: Windows | None = None) -> str:
        """Return the text part of the prompt, not truncated."""
        if self.method == "mr_blip":
            return f"Query: {query}\n{MR_BLIP_TASK_PROMPT}"
        ref = (
            ""
            if self.stage == 1
            else f"ref: {self._format_windows([] if stage1_windows is None else stage1_windows)}\n"
        )
        return f"Query: {query}\n{ref}Items: {','.join(items)}\n{TASK_PROMPT}"

    def format_answer(self, windows: Windows) -> str:
        """Return the answer for `windows` (seconds), of which labels are made."""
        if self.behaviour == "default":
            return self._format_windows(windows)
        text = str(to_lists(windows))
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
            return str(to_lists(windows))
        return str([self._single_token_window(window) for window in windows])

    def _single_token_window(self, window: Sequence[Number]) -> list[int]:
        """Return a window in whole seconds of one token each, unless the replacement would make it empty."""
        seconds = whole_seconds(window)
        single = [self._replacements.get(second, second) for second in seconds]
        return single if single[0] < single[1] else list(seconds)

    def _text_ids(self, query: str, items: Sequence[str], windows: Windows | None) -> tuple[list[int], RowFlag]:
        if self.stage == 2 and windows is None:
            raise ValueError("stage1_windows: missing for a prompt of stage 2; see the function `stage1_windows`")
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

        # A word has at least one token, so at most `max_tokens` words fit; a very long query is not tokenised again.
        max_words = min(len(query_words), max_tokens)
        fitted_ids = longest_prefix(max_words, max_tokens, lambda n: encode_shortened(n, len(items), len(windows)))
        fitted_ids = fitted_ids or longest_prefix(
            len(items), max_tokens, lambda n: encode_shortened(0, n, len(windows))
        )
        fitted_ids = fitted_ids or longest_prefix(len(windows), max_tokens, lambda n: encode_shortened(0, 0, n))
        if fitted_ids is None:
            raise ValueError(
                f"max_text: must be at least {len(encode_shortened(0, 0, 0))} to hold the task, got {max_tokens}"
            )
        return fitted_ids, RowFlag.QUERY_TRUNCATED

    def _inverted_ids(
        self, task: InvertedTask, query: str, windows: Windows, duration: Number
    ) -> tuple[list[int], InvertedTask, RowFlag]:
        """Return the token ids of the text, its task, and flags.

        Text that is too long loses windows; if that is not enough, the task is to write the whole query.
        """
        windows, row_flags = check_windows(to_lists(windows), duration, self.behaviour)
        max_tokens = self.sizes.max_text

        def encode(count: int) -> list[int]:
            return [*self._encode(task.format_text(self._format_windows(windows[:count]))), self._eos_id]

        ids = encode(len(windows))
        if len(ids) <= max_tokens:
            return ids, task, row_flags
        fitted_ids = longest_prefix(len(windows), max_tokens, encode)
        if fitted_ids is None and task.shown:
            task = whole_query(query)
            fitted_ids = longest_prefix(len(windows), max_tokens, encode)
        if fitted_ids is None:
            raise ValueError(f"max_text: must be at least {len(encode(0))} to hold the task, got {max_tokens}")
        return fitted_ids, task, row_flags | RowFlag.QUERY_TRUNCATED

    def _inverted_label_ids(self, answer: str) -> tuple[list[int], RowFlag]:
        """Return the token ids of a sentence or word, without the last words that do not fit, and flags."""
        words, max_tokens = answer.split(), self.sizes.answer_tokens

        def encode(count: int) -> list[int]:
            return [*self._encode(" ".join(words[:count])), self._eos_id] if count else []

        ids = encode(len(words))
        if len(ids) <= max_tokens:
            return ids, RowFlag(0)
        return longest_prefix(len(words), max_tokens, encode) or [], RowFlag.ANSWER_TRUNCATED

    def _caption_ids(self, caption: Caption, text: list[int]) -> tuple[list[int], bool]:
        """Return the token ids of "[", start, text, end, "]", and whether the text was truncated."""
        start, end = (self._second_ids[second] for second in _rounded_times(caption))
        max_tokens = self.sizes.max_text
        return [*self._open_bracket, *start, *text[:max_tokens], *end, *self._close_bracket], len(text) > max_tokens

    def _label_ids(self, windows: Windows, duration: Number, is_absent: bool) -> tuple[list[int], RowFlag]:
        if not len(windows):
            return [*self._encode(self.format_answer([])), self._eos_id] if is_absent else [], RowFlag(0)
        windows, row_flags = check_windows(to_lists(windows), duration, self.behaviour)
        ids, max_tokens = [*self._encode(self.format_answer(windows)), self._eos_id], self.sizes.answer_tokens
        if len(ids) <= max_tokens:
            return ids, row_flags
        row_flags |= RowFlag.ANSWER_TRUNCATED
        if self.behaviour == "reference":
            return [*ids[: max_tokens - 1], self._eos_id], row_flags
        fitted_ids = longest_prefix(
            len(windows), max_tokens, lambda n: [*self._encode(self.format_answer(windows[:n])), self._eos_id]
        )
        if fitted_ids is None or len(fitted_ids) == len([*self._encode("[]"), self._eos_id]):
            raise ValueError(f"answer_tokens: {max_tokens} tokens do not hold one window; raise it")
        return fitted_ids, row_flags

    def _pad_bert_tokens(self, ids: list[int]) -> np.ndarray:
        """Truncate to U tokens, keeping [SEP] as the last; pad."""
        max_tokens = self.sizes.bert_tokens
        return pad(ids if len(ids) <= max_tokens else [*ids[: max_tokens - 1], ids[-1]], max_tokens)

    def _encode(self, text: str) -> list[int]:
        return encode_batch(self._t5, [text])[0]

    def _encode_without_boundary(self, text: str) -> list[int]:
        return [i for i in self._encode(text) if i != self._boundary_id]

    def _encode_seconds(self, seconds: Iterable[int]) -> None:
        """Add the token ids of seconds to the cache, without the word boundary."""
        new_seconds = sorted(set(seconds) - self._second_ids.keys())
        if not new_seconds:
            return
        encoded = encode_batch(self._t5, [str(self._replacements.get(second, second)) for second in new_seconds])
        for second, ids in zip(new_seconds, encoded, strict=True):
            self._second_ids[second] = ids[1:] if ids[0] == self._boundary_id else ids


def _token_id(t5: TextTokenizer, piece: str) -> int:
    return t5.token_id(piece)


def _rounded_times(caption: Caption) -> tuple[int, int]:
    return round(float(caption.start)), round(float(caption.end))
