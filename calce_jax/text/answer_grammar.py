"""The numbers of answers, and the grammar of answers over the tokens of a T5 tokenizer (host)."""

from typing import NamedTuple

from calce_jax.config import ConfigError, RunConfig
from calce_jax.models.answer_grammar import AnswerGrammar, NumberKind, Phase
from calce_jax.text.prompt import EOS_TOKEN, WORD_BOUNDARY, find_number_replacements
from calce_jax.text.text_tokenizer import TextTokenizer

MAX_SECOND = 99_999  # a day; the device computes numbers of five digits in 32 bits
_DIGITS = "0123456789"
_CHARACTERS = {*_DIGITS, *"[,]", WORD_BOUNDARY}
# Phase and character -> phase; a digit is "0".
_TRANSITIONS = {
    (Phase.BEGIN, WORD_BOUNDARY): Phase.LIST,
    (Phase.BEGIN, "["): Phase.FIRST,
    (Phase.LIST, "["): Phase.FIRST,
    (Phase.FIRST, "]"): Phase.CLOSED,
    (Phase.FIRST, "["): Phase.START,
    (Phase.START, "0"): Phase.START_DIGITS,
    (Phase.START_DIGITS, "0"): Phase.START_DIGITS,
    (Phase.START_DIGITS, ","): Phase.COMMA,
    (Phase.COMMA, WORD_BOUNDARY): Phase.END,
    (Phase.END, "0"): Phase.END_DIGITS,
    (Phase.END_DIGITS, "0"): Phase.END_DIGITS,
    (Phase.END_DIGITS, "]"): Phase.WINDOW,
    (Phase.WINDOW, "]"): Phase.CLOSED,
    (Phase.WINDOW, ","): Phase.SEPARATOR,
    (Phase.SEPARATOR, WORD_BOUNDARY): Phase.NEXT,
    (Phase.NEXT, "["): Phase.START,
}
_KINDS = {Phase.START_DIGITS: NumberKind.START, Phase.END_DIGITS: NumberKind.END}


def find_meant_seconds(t5: TextTokenizer, grid: int) -> dict[int, int]:
    """Return the second that is meant by a number that is not on the grid, where there is one.

    Labels have "113" in place of 112, which T5 would split (`calce_jax.text.prompt`). Where windows begin and end at
    even seconds, 113 can mean nothing else. On a grid of 1 every number means itself.

    Args:
      t5: the tokenizer of answers.
      grid: in seconds.
    """
    replacements = find_number_replacements(t5) if grid > 1 else {}
    return {written: second for second, written in replacements.items() if second % grid == 0 and written % grid}


def answer_grammar(config: RunConfig, t5: TextTokenizer, max_duration: float) -> AnswerGrammar | None:
    """Return the grammar that a run decodes with; None without `config.generation.constrain`, and under "reference".

    Args:
      config: of the run.
      t5: the tokenizer of answers.
      max_duration: of all videos, in seconds.

    Raises:
      ConfigError: a video is longer than `MAX_SECOND`.
    """
    if not config.generation.constrain or config.behaviour == "reference":
        return None
    if max_duration > MAX_SECOND:
        raise ConfigError(
            f"config.generation.constrain: must be False for videos of more than {MAX_SECOND} s, got one of "
            f"{max_duration:g} s"
        )
    return make_answer_grammar(t5, max_duration, config.data.window_grid)


def make_answer_grammar(t5: TextTokenizer, max_duration: float, grid: int) -> AnswerGrammar:
    """Return the grammar of answers about videos of up to `max_duration` seconds.

    Args:
      t5: the tokenizer of answers.
      max_duration: of the longest video, in seconds, at most `MAX_SECOND`.
      grid: seconds; windows begin and end at its multiples, which may be written as labels write them, and a window may
        end with its video.
    """
    max_second = round(max_duration)
    meant = {second: second for second in range(0, max_second + 1, grid)} | {
        written: second for written, second in find_meant_seconds(t5, grid).items() if written <= max_second
    }
    tokens = {
        token: text for text, token in t5.get_vocab().items() if text == EOS_TOKEN or _CHARACTERS.issuperset(text)
    }
    steps = {token: [_follow(phase, tokens[token], max_second) for phase in Phase] for token in sorted(tokens)}
    steps = {token: row for token, row in steps.items() if any(step.phase >= 0 for step in row)}
    texts = {token: "".join(filter(_DIGITS.__contains__, tokens[token])) for token in steps}
    return AnswerGrammar(
        tokens=tuple(steps),
        next_phase=tuple(tuple(row[phase].phase for row in steps.values()) for phase in Phase),
        kind=tuple(tuple(int(row[phase].kind) for row in steps.values()) for phase in Phase),
        completes=tuple(tuple(row[phase].completes for row in steps.values()) for phase in Phase),
        digits=tuple(map(len, texts.values())),
        number=tuple(int(digits or 0) for digits in texts.values()),
        may_begin=tuple(digits[:1] != "0" or digits == "0" for digits in texts.values()),
        is_written=tuple(second in meant for second in range(max_second + 1)),
        first_end=tuple(_first_ends(meant, max_second)),
    )


class _Step(NamedTuple):
    """What a token does to an answer, see `AnswerGrammar`; a phase of -1 says that it may not follow."""

    phase: int
    kind: NumberKind
    completes: bool


def _follow(phase: Phase, text: str, max_second: int) -> _Step:
    """Run the automaton over the text of a token; one that has digits of two numbers is not followed."""
    refused, kind = _Step(-1, NumberKind.NONE, False), _KINDS.get(phase, NumberKind.NONE)
    if text == EOS_TOKEN:
        return _Step(Phase.ENDED, NumberKind.NONE, False) if phase == Phase.CLOSED else refused
    if not text or sum(map(_DIGITS.__contains__, text)) > len(str(max_second)):
        return refused
    for character in text:
        after = _TRANSITIONS.get((phase, "0" if character in _DIGITS else character))
        of_after = _KINDS.get(after, NumberKind.NONE) if after is not None else NumberKind.NONE
        if after is None or (of_after and kind not in (NumberKind.NONE, of_after)):
            return refused
        phase, kind = after, kind or of_after
    return _Step(int(phase), kind, bool(kind) and phase not in _KINDS)


def _first_ends(meant: dict[int, int], max_second: int) -> list[int]:
    """Return, of each second, the first written one that means a later second; `max_second` + 1 if there is none."""
    first_ends = []
    for second in range(max_second + 1):
        later = (written for written in range(second + 1, max_second + 1) if written in meant)
        first_ends.append(next((w for w in later if meant[w] > meant.get(second, second)), max_second + 1))
    return first_ends
