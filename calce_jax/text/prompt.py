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
from calce_jax.text.text_row import Caption, Note, Number, TextRow, TextSizes, Windows
from calce_jax.text.tokenizers import bare

TASK = "Given the video and the subtitle and the query, find the query relevant windows.\nRelevant windows: "
NO_CAPTION = "*None*"
BORDER = "\N{LOWER ONE EIGHTH BLOCK}"  # how sentencepiece writes that a word begins
END = "</s>"
SINGLE_NUMBERS = 200  # the numbers below are made single pieces

_TALK = ("talk", "speak", "say", "describe", "explain", "chat", "shout", "scream")
_TALK_WORDS = re.compile(
    r"\b(?:(?:talk|speak|say|explain|shout|scream)(?:s|ed|ing)?|spoke|spoken|said"
    r"|describ(?:e|es|ed|ing)|chat(?:s|ted|ting)?)\b",
    re.IGNORECASE,
)


def about_talking(query: str, behaviour: Behaviour = "default") -> bool:
    """Say whether a query is about somebody talking, in which case the frames with captions are the key frames.

    Args:
      query: the sentence alone.
      behaviour: by default a form of talk, speak, say, describe, explain, chat, shout or scream among its words, in
        capitals or not. "reference" looks for these eight strings anywhere in it, so that an essay is about talking
        ("say") and "Talking" and "describing" are not.
    """
    if behaviour == "reference":
        return any(word in query for word in _TALK)
    return _TALK_WORDS.search(query) is not None


def stage1_windows(
    windows: Windows | None, duration: Number, behaviour: Behaviour = "default"
) -> tuple[list[list[int | float]], Note]:
    """Return what stage 2 takes for the stage-1 windows of a query: by default the whole video where there are none.

    Raises:
      ValueError: stage 1 has not been asked (`None`), under "reference". That it found none is no error there.
    """
    if windows is not None and (len(windows) or behaviour == "reference"):
        return _listed(windows), Note(0)
    if behaviour == "reference":
        raise ValueError(
            "no stage-1 windows, which stage 2 reads; run launch/infer.py on stage 1, then launch/merge.py"
        )
    return [[0, float(duration)]], Note.NO_WINDOWS


def replaced_numbers(t5: PreTrainedTokenizerBase, below: int = SINGLE_NUMBERS) -> dict[int, int]:
    """Return, for each number below `below` that T5 would split, the nearest that it does not; of two, the greater.

    A number is split if it has several pieces and the first is not the lone word border, which is dropped.
    """

    border = _id(t5, BORDER)
    # One call for all: a call takes a tokenizer longer than a number does.
    pieces = t5([str(number) for number in range(2 * below)], add_special_tokens=False)["input_ids"]
    whole = [number for number, ids in enumerate(pieces) if len(ids) == 1 or ids[0] == border]
    return {n: min(whole, key=lambda w: (abs(w - n), -w)) for n in sorted(set(range(below)) - set(whole))}


def answer_text(t5: PreTrainedTokenizerBase, ids: Sequence[int] | np.ndarray) -> str:
    """Return what T5 wrote, without padding, end and sentinels.

    Ids behind the vocabulary, which T5's padded embedding has, are nothing.
    """
    known = [int(i) for i in ids if i < len(t5)]
    return str(t5.decode(known, skip_special_tokens=True, clean_up_tokenization_spaces=True))


def longest_answer(t5: PreTrainedTokenizerBase, duration: Number, step: int = 2) -> int:
    """Return the tokens of the longest answer a video of `duration` seconds allows, with the end.

    Args:
      t5: the tokenizer answers are written in.
      duration: seconds.
      step: seconds that a window takes at least, and that lie between two: 2 in QVHighlights, the finest there is.
    """
    windows = [[start, start + step] for start in range(0, max(int(duration) + 1 - step, 1), 2 * step)]
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
        self._t5, self._bert = bare(t5), bare(bert)
        self._replaced = replaced_numbers(t5)
        self._border, self._end = _id(t5, BORDER), _id(t5, END)
        self._times: dict[int, list[int]] = {}  # ids of the seconds written so far
        self._open, self._close, self._until = (self._without_borders(sign) for sign in "[]>")
        self._keyed, self._told = self._ids("<extra_id_0>"), self._ids("<extra_id_1>")
        nothing = Caption(-1, -1, NO_CAPTION)
        self._learn(_rounded(nothing))
        self._nothing = self._caption(nothing, self._ids(NO_CAPTION))[0]

    def write(
        self,
        query: str,
        items: Sequence[str],
        times: Sequence[Number] | np.ndarray,
        duration: Number,
        captions: Sequence[Caption] = (),
        *,
        answer: Windows = (),
        reference_windows: Windows | None = None,
    ) -> TextRow:
        """Write one row.

        Args:
          query: the sentence.
          items: the things named in it.
          times: of the real frames, in seconds, at most T.
          duration: of the video, in seconds.
          captions: in order of time.
          answer: the true windows, in seconds; none where they are not known, and then no label is set.
          reference_windows: the stage-1 windows, in seconds, as `stage1_windows` returns them; stage 2 only.

        Raises:
          ValueError: more frames than T; true windows that lie outside the video or end before they start; no
            `reference_windows` in stage 2; or text that exceeds M without any caption.
        """
        sizes, notes = self.sizes, Note(0)
        if len(times) > sizes.frames:
            raise ValueError(f"{len(times)} frames, in a batch of {sizes.frames} a video; prepare with --frames=")
        shown = self._seconds_of_frames(times)
        spoken_at = chain.from_iterable(map(_rounded, captions[: sizes.captions]))
        self._learn([*shown, round(float(duration)), *spoken_at])
        head = [self._times[second] for second in shown]
        head += [[]] * (sizes.frames - len(head))
        head.append([*self._until, *self._times[round(float(duration))], *self._keyed])
        text, cut = self._text(query, items, reference_windows)
        notes |= cut
        tail = [self._nothing, self._told, text]

        # A call takes a tokenizer longer than a caption does, so all captions go in one.
        texts = [caption.text for caption in captions[: sizes.captions]]
        query_words, *caption_words = _all_ids(self._bert, [query, *texts], ends=True)
        spoken, cuts = [], []
        room = sizes.text_tokens - sum(map(len, [*head, *tail]))
        if room < 0:
            raise ValueError(
                f"a prompt without captions takes {sizes.text_tokens - room} text tokens of the {sizes.text_tokens} "
                f"a row has; raise text_tokens"
            )
        written = _all_ids(self._t5, texts)
        for caption, ids in zip(captions, written, strict=False):
            piece, was_cut = self._caption(caption, ids)
            room -= len(piece)
            if room < 0:
                break
            spoken.append(piece)
            cuts.append(was_cut)
        notes |= Note.CAPTIONS_LEFT_OUT if len(spoken) < len(captions) else Note(0)
        caption_words = caption_words[: len(spoken)]
        notes |= Note.QUERY_CUT if len(query_words) > sizes.words else Note(0)
        notes |= Note.CAPTION_CUT if any(cuts) or any(len(w) > sizes.words for w in caption_words) else Note(0)

        labels, cut = self._labels(answer, duration)
        tokens, spans = _end_to_end([*head, *spoken, *([[]] * (sizes.captions - len(spoken))), *tail])
        caption_rows = [self._padded_words(each) for each in caption_words]
        caption_rows += [np.zeros(sizes.words, np.int32)] * (sizes.captions - len(caption_rows))
        return TextRow(
            tokens=_padded(tokens, sizes.text_tokens),
            spans=spans,
            query_words=self._padded_words(query_words),
            caption_words=np.stack(caption_rows),
            labels=_padded(labels, sizes.answer_tokens),
            notes=notes | cut,
        )

    def text(self, query: str, items: Sequence[str], reference_windows: Windows | None = None) -> str:
        """Return the text part as it reads before any cut."""
        ref = (
            ""
            if self.stage == 1
            else f"ref: {self._windows_text([] if reference_windows is None else reference_windows)}\n"
        )
        return f"Query: {query}\n{ref}Items: {','.join(items)}\n{TASK}"

    def answer(self, windows: Windows) -> str:
        """Return the answer that names `windows` (seconds), as it is learnt."""
        if self.behaviour == "default":
            return self._windows_text(windows)
        text = str(_listed(windows))
        for number, other in self._replaced.items():
            text = text.replace(str(number), str(other))
        return text

    def _seconds_of_frames(self, times: Sequence[Number] | np.ndarray) -> list[int]:
        exact = np.asarray(times, np.float32)
        if self.behaviour == "reference" and self.stage == 2:
            exact = np.round(exact, 2)
        return [round(float(second)) for second in exact]

    def _windows_text(self, windows: Windows) -> str:
        if self.behaviour == "reference":
            return str(_listed(windows))
        return str([self._whole_window(window) for window in windows])

    def _whole_window(self, window: Sequence[Number]) -> list[int]:
        """Return a window in whole seconds that are single pieces, unless that would leave nothing of it."""
        seconds = _whole(window)
        single = [self._replaced.get(second, second) for second in seconds]
        return single if single[0] < single[1] else list(seconds)

    def _text(self, query: str, items: Sequence[str], windows: Windows | None) -> tuple[list[int], Note]:
        if self.stage == 2 and windows is None:
            raise ValueError("no stage-1 windows for a prompt of stage 2; see `stage1_windows`")
        limit = self.sizes.max_text
        ids = [*self._ids(self.text(query, items, windows)), self._end]
        if len(ids) <= limit:
            return ids, Note(0)
        if self.behaviour == "reference":
            return [*ids[: limit - 1], self._end], Note.QUERY_CUT

        words, items, windows = query.split(), list(items), [] if windows is None else list(windows)

        def attempt(word_count: int, item_count: int, window_count: int) -> list[int]:
            shorter = self.text(" ".join(words[:word_count]), items[:item_count], windows[:window_count])
            return [*self._ids(shorter), self._end]

        # A word is a token or more, so no more words than `limit` can stay, and a book is not tokenised again.
        most = min(len(words), limit)
        some = _longest(most, limit, lambda n: attempt(n, len(items), len(windows)))
        some = some or _longest(len(items), limit, lambda n: attempt(0, n, len(windows)))
        some = some or _longest(len(windows), limit, lambda n: attempt(0, 0, n))
        if some is None:
            raise ValueError(f"max_text: {limit} tokens do not even hold the task, which takes {len(attempt(0, 0, 0))}")
        return some, Note.QUERY_CUT

    def _caption(self, caption: Caption, text: list[int]) -> tuple[list[int], bool]:
        """Return the ids of "[", start, text, end, "]", and whether the text was cut."""
        start, end = (self._times[second] for second in _rounded(caption))
        limit = self.sizes.max_text
        return [*self._open, *start, *text[:limit], *end, *self._close], len(text) > limit

    def _labels(self, windows: Windows, duration: Number) -> tuple[list[int], Note]:
        if not len(windows):
            return [], Note(0)
        windows, notes = _inside(_listed(windows), duration, self.behaviour)
        ids, most = [*self._ids(self.answer(windows)), self._end], self.sizes.answer_tokens
        if len(ids) <= most:
            return ids, notes
        notes |= Note.ANSWER_CUT
        if self.behaviour == "reference":
            return [*ids[: most - 1], self._end], notes
        kept = _longest(len(windows), most, lambda n: [*self._ids(self.answer(windows[:n])), self._end])
        if kept is None or len(kept) == len([*self._ids("[]"), self._end]):
            raise ValueError(f"answer_tokens: {most} do not hold one window; raise it")
        return kept, notes

    def _padded_words(self, ids: list[int]) -> np.ndarray:
        """Cut to U words, the last of which stays [SEP]; pad."""
        most = self.sizes.words
        return _padded(ids if len(ids) <= most else [*ids[: most - 1], ids[-1]], most)

    def _ids(self, text: str) -> list[int]:
        return _all_ids(self._t5, [text])[0]

    def _without_borders(self, text: str) -> list[int]:
        return [i for i in self._ids(text) if i != self._border]

    def _learn(self, seconds: Iterable[int]) -> None:
        """See that whole seconds have their ids; like a sign, a second stands without the border of a word."""
        new = sorted(set(seconds) - self._times.keys())
        if not new:
            return
        written = _all_ids(self._t5, [str(self._replaced.get(second, second)) for second in new])
        for second, ids in zip(new, written, strict=True):
            self._times[second] = ids[1:] if ids[0] == self._border else ids


def _all_ids(tokenizer: Tokenizer, texts: list[str], *, ends: bool = False) -> list[list[int]]:
    """Tokenize texts; with BERT's [CLS] and [SEP] at the `ends`."""
    return [encoded.ids for encoded in tokenizer.encode_batch_fast(texts, add_special_tokens=ends)]


def _id(t5: PreTrainedTokenizerBase, piece: str) -> int:
    found = t5.convert_tokens_to_ids(piece)
    assert isinstance(found, int), "one piece has one id"
    return found


def _rounded(caption: Caption) -> tuple[int, int]:
    return round(float(caption.start)), round(float(caption.end))


def _listed(windows: Windows) -> list[list[int | float]]:
    """Return windows as the annotation writes them, 82 or 24.3; in the array of a table both are floats."""
    if not isinstance(windows, np.ndarray):
        return [[n if isinstance(n, int | float) else float(n) for n in window] for window in windows]
    whole = bool((windows == np.round(windows)).all())
    return windows.astype(np.int64 if whole else np.float64).tolist()


def _whole(window: Sequence[Number]) -> tuple[int, int]:
    """Return a window in whole seconds; one that rounding would empty takes the seconds it touches."""
    start, end = (float(second) for second in window)
    first, last = round(start), round(end)
    return (first, last) if first < last else (int(np.floor(start)), max(int(np.ceil(end)), int(np.floor(start)) + 1))


def _inside(
    windows: list[list[int | float]], duration: Number, behaviour: Behaviour
) -> tuple[list[list[int | float]], Note]:
    """Refuse impossible windows, and by default shorten those that reach a little beyond the video."""
    notes = Note(0)
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
            notes |= Note.WINDOW_OUTSIDE
    return windows, notes


def _longest(count: int, limit: int, write: Callable[[int], list[int]]) -> list[int] | None:
    """Return `write(n)` for the greatest n up to `count` with at most `limit` ids, or None where even 0 has more."""
    n = bisect_right(range(count + 1), limit, key=lambda n: len(write(n))) - 1
    return write(n) if n >= 0 else None


def _end_to_end(pieces: Iterable[Sequence[int]]) -> tuple[list[int], np.ndarray]:
    """Return all pieces in one list, and where each starts and how long it is."""
    pieces = list(pieces)
    sizes = np.array([len(piece) for piece in pieces], np.int32)
    starts = np.concatenate([np.zeros(1, np.int32), np.cumsum(sizes, dtype=np.int32)[:-1]])
    starts[sizes == 0] = 0
    return [i for piece in pieces for i in piece], np.stack([starts, sizes], axis=1)


def _padded(ids: Sequence[int], size: int) -> np.ndarray:
    padded = np.zeros(size, np.int32)
    padded[: len(ids)] = ids
    return padded


# What the original generates at most, whatever the video's length.
REFERENCE_ANSWER_TOKENS = 70


def answer_tokens(t5: PreTrainedTokenizerBase, max_duration: float, behaviour: Behaviour = "default") -> int:
    """Return how many tokens an answer may have: what the longest video needs; under "reference" always 70.

    Args:
      t5: the tokenizer.
      max_duration: of the videos, seconds.
      behaviour: the run's.
    """
    return REFERENCE_ANSWER_TOKENS if behaviour == "reference" else longest_answer(t5, max_duration)
