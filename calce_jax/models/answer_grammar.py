"""Which tokens may follow in an answer: windows of the video such as "[[2, 14], [20, 36]]", and nothing else.

An answer is read character by character by a small automaton, whose states are the phases below. Tokens of T5 cross the
borders of its parts ("2,", "▁14", "],"), so `calce_jax.text.answer_grammar` runs the automaton over the characters of
every token from every phase. What these tables do not say, whether a number is within the video, on the grid, and
behind the start of its window, is computed from the digits so far: they may be the beginning of several numbers, of
which one must be allowed. So every tokenization of an answer is followed, not only that of the labels.

    BEGIN "▁"? LIST "[" -+-> "]" CLOSED "</s>"
                         +-> "[" START digits "," COMMA "▁" END digits "]" WINDOW -+-> "]" CLOSED "</s>"
                              ^---------- "[" -- NEXT <-- "▁" -- SEPARATOR <-- "," +

Dimensions: B batch, K beams, A tokens that occur in answers, P phases, S seconds from 0 to the longest duration.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


class Phase(IntEnum):
    """Where in an answer its text so far ends; what comes next is in the picture above."""

    BEGIN = 0
    LIST = 1
    FIRST = 2
    START = 3
    START_DIGITS = 4
    COMMA = 5
    END = 6
    END_DIGITS = 7
    WINDOW = 8
    SEPARATOR = 9
    NEXT = 10
    CLOSED = 11
    ENDED = 12


class NumberKind(IntEnum):
    """Which number of a window a token writes digits of, or completes."""

    NONE = 0
    START = 1
    END = 2


@dataclass(frozen=True)
class AnswerGrammar:
    """The automaton over the tokens of a tokenizer: a static setting of a compiled program, so tuples and no arrays.

    Fields:
      tokens: ids of the A tokens, ascending; the end token is one.
      next_phase: P rows of A: the phase after a token, -1 where it may not follow.
      kind: P rows of A: the `NumberKind` that a token writes digits of or completes.
      completes: P rows of A: whether the number is complete after the token.
      digits: of each token, how many it has.
      number: of each token, the value of its digits; 0 without.
      may_begin: of each token, whether a number may begin with its digits; "07" may not.
      is_written: of each second, whether windows may begin and end there.
      first_end: of each second, the first at which a window that begins there may end; S if there is none.
    """

    tokens: tuple[int, ...]
    next_phase: tuple[tuple[int, ...], ...]
    kind: tuple[tuple[int, ...], ...]
    completes: tuple[tuple[bool, ...], ...]
    digits: tuple[int, ...]
    number: tuple[int, ...]
    may_begin: tuple[bool, ...]
    is_written: tuple[bool, ...]
    first_end: tuple[int, ...]

    @property
    def max_second(self) -> int:
        """Return the last second that an answer may name, S - 1."""
        return len(self.is_written) - 1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AnswerState:
    """Where the answer of each beam is in the automaton."""

    phase: Int[Array, "B K"]
    number: Int[Array, "B K"]  # of the digits so far; 0 outside of a number
    start: Int[Array, "B K"]  # of the window that is being written, in seconds


@dataclass(frozen=True)
class _NextToken:
    """What each of the A tokens would do to the answer of a beam."""

    phase: Int[Array, "B K A"]
    number: Int[Array, "B K A"]
    kind: Int[Array, "B K A"]
    completes: Bool[Array, "B K A"]
    is_number: Bool[Array, "B K A"]  # its digits can be digits of a number


class AnswerConstraint:
    """A grammar on the device, for the videos of a batch.

    Args:
      grammar: of the answers.
      duration: of each video, in seconds; answers name whole seconds, so it is rounded, as in the prompt.

    Attributes:
      tokens: ids of the tokens that occur in answers.
    """

    def __init__(self, grammar: AnswerGrammar, duration: Float[Array, " B"]):
        def per_token(column: Sequence[int]) -> Array:
            return jnp.array(column)[None, None]

        self._max_second = grammar.max_second
        self.tokens = jnp.array(grammar.tokens, jnp.int32)
        self._next_phase, self._kind = jnp.array(grammar.next_phase, jnp.int32), jnp.array(grammar.kind, jnp.int32)
        self._completes = jnp.array(grammar.completes)
        self._has_digits = per_token(grammar.digits) > 0
        self._may_begin, self._number = per_token(grammar.may_begin), per_token(grammar.number)
        self._shift = per_token([10**digits for digits in grammar.digits])
        self._first_end = jnp.array(grammar.first_end, jnp.int32)
        # The number of seconds that are written before each second, and before S.
        self._num_before = jnp.array(np.cumsum([False, *grammar.is_written]), jnp.int32)
        # The last second at which a window of a video may begin, by the last second of the video; -1 if none may.
        last_starts = np.full(len(grammar.first_end) + 1, -1)
        starts = np.flatnonzero(grammar.is_written)
        np.maximum.at(last_starts, np.array(grammar.first_end)[starts], starts)
        last = jnp.clip(jnp.round(duration), 0, grammar.max_second).astype(jnp.int32)
        self._last = last[:, None, None]
        self._last_start = jnp.array(np.maximum.accumulate(last_starts), jnp.int32)[self._last]

    def init(self, num_beams: int) -> AnswerState:
        """Return the state of answers without tokens."""
        zeros = jnp.zeros((self._last.shape[0], num_beams), jnp.int32)
        return AnswerState(phase=jnp.full_like(zeros, int(Phase.BEGIN)), number=zeros, start=zeros)

    def allowed(self, state: AnswerState) -> Bool[Array, "B K A"]:
        """Return which tokens may follow."""
        token = self._next_token(state)
        is_end = token.kind == NumberKind.END
        low = jnp.where(is_end, self._first_end[state.start][:, :, None], 0)
        high = jnp.where(is_end, self._last, self._last_start)
        number = jnp.minimum(token.number, self._max_second + 1)
        # Whether it is the number of a second that may be written, or may become one by more digits.
        is_exact = self._any_written(number, number, is_end) & (low <= number) & (number <= high)
        may_become = is_exact
        for power in (10**digits for digits in range(1, len(str(self._max_second)))):
            first, last = number * power, number * power + power - 1
            longer = self._any_written(jnp.maximum(first, low), jnp.minimum(last, high), is_end)
            may_become |= (number > 0) & longer
        is_valid = token.is_number & jnp.where(token.completes, is_exact, may_become)
        # A window may only be begun if one can be completed.
        can_start = (token.phase != Phase.START) | (self._last_start >= 0)
        return (token.phase >= 0) & can_start & ((token.kind == NumberKind.NONE) | is_valid)

    def advance(self, state: AnswerState, choice: Int[Array, "B K"]) -> AnswerState:
        """Return the state of each beam after a token that may follow, given by its index in `tokens`.

        After another token the state means nothing: such a beam must never become an answer.
        """
        token = self._next_token(state)

        def pick(values: Array) -> Array:
            return jnp.take_along_axis(values, choice[:, :, None], axis=2)[:, :, 0]

        phase, number = pick(token.phase), pick(token.number)
        has_start = pick(token.completes & (token.kind == NumberKind.START))
        return AnswerState(
            phase=jnp.where(phase < 0, int(Phase.ENDED), phase),
            number=jnp.where(_is_digits(phase), number, 0),
            start=jnp.where(has_start, jnp.minimum(number, self._max_second), state.start),
        )

    def _next_token(self, state: AnswerState) -> _NextToken:
        continues, so_far = _is_digits(state.phase)[:, :, None], state.number[:, :, None]
        # "0" is a whole number; and what would be beyond every video must not overflow.
        may_continue = ~self._has_digits | ((so_far > 0) & (so_far <= self._max_second // self._shift))
        return _NextToken(
            phase=self._next_phase[state.phase],
            number=jnp.where(continues & may_continue, so_far, 0) * self._shift + self._number,
            kind=self._kind[state.phase],
            completes=self._completes[state.phase],
            is_number=jnp.where(continues, may_continue, self._may_begin),
        )

    def _any_written(
        self, low: Int[Array, "B K A"], high: Int[Array, "B K A"], is_end: Bool[Array, "B K A"]
    ) -> Bool[Array, "B K A"]:
        """Return whether a second from `low` to `high` may be written; the last of a video may, as an end."""
        before_low, up_to_high = (
            self._num_before[jnp.clip(bound, 0, self._max_second + 1)] for bound in (low, high + 1)
        )
        return (up_to_high > before_low) | (is_end & (low <= self._last) & (self._last <= high))


def _is_digits(phase: Int[Array, "..."]) -> Bool[Array, "..."]:
    return (phase == Phase.START_DIGITS) | (phase == Phase.END_DIGITS)
