"""Windows of answers, read on the device: tokens to seconds, inside a compiled program.

The host reads text with `calce_jax.moments.windows.parse_windows`, which makes the best of any text. Here an answer is
either well-formed or not: "[[82, 150], [200, 210]]" or "[]", whole seconds, spaces anywhere between its parts. The
pieces of T5's vocabulary mix digits and signs ("2,", "],"), so a piece is looked up as its characters, and an automaton
reads these one after the other.

Dimensions: N answers, A tokens, V vocabulary, C characters of a piece, W windows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32

from calce_jax.batch import AnyArray
from calce_jax.models.t5 import EOS_ID

# Characters: 0 to 9 are the digits.
_SPACE, _OPEN, _CLOSE, _COMMA, _NONE, _OTHER = range(10, 16)
_CODES = {str(digit): digit for digit in range(10)} | {" ": _SPACE, "[": _OPEN, "]": _CLOSE, ",": _COMMA}
_MAX_SECOND = 10**6  # longer numbers stay here, so that int32 does not overflow; no video is as long

# States: what was read last.
_BEGIN, _LIST, _WINDOW, _START, _START_SPACE, _MIDDLE = range(6)
_END, _END_SPACE, _WINDOW_END, _SEPARATOR, _DONE, _WRONG = range(6, 12)
_DIGITS = range(10)


def _transitions() -> Int[np.ndarray, "12 16"]:
    """Return the next state of every state (row) and character (column)."""
    table = np.full((12, 16), _WRONG, np.int32)
    table[:, _NONE] = np.arange(12)
    for state, moves in {
        _BEGIN: {_SPACE: _BEGIN, _OPEN: _LIST},
        _LIST: {_SPACE: _LIST, _OPEN: _WINDOW, _CLOSE: _DONE},
        _WINDOW: {_SPACE: _WINDOW, **dict.fromkeys(_DIGITS, _START)},
        _START: {**dict.fromkeys(_DIGITS, _START), _SPACE: _START_SPACE, _COMMA: _MIDDLE},
        _START_SPACE: {_SPACE: _START_SPACE, _COMMA: _MIDDLE},
        _MIDDLE: {_SPACE: _MIDDLE, **dict.fromkeys(_DIGITS, _END)},
        _END: {**dict.fromkeys(_DIGITS, _END), _SPACE: _END_SPACE, _CLOSE: _WINDOW_END},
        _END_SPACE: {_SPACE: _END_SPACE, _CLOSE: _WINDOW_END},
        _WINDOW_END: {_SPACE: _WINDOW_END, _COMMA: _SEPARATOR, _CLOSE: _DONE},
        _SEPARATOR: {_SPACE: _SEPARATOR, _OPEN: _WINDOW},
        _DONE: {_SPACE: _DONE},
    }.items():
        for character, following in moves.items():
            table[state, character] = following
    return table


_TRANSITIONS = _transitions()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AnswerWindows:
    """Windows of answers, with any leading axes.

    Fields:
      windows: start and end in whole seconds; 0 where there is none.
      mask: True where there is a window, a prefix.
      well_formed: whether the answer could be read; one that could not has no windows.
    """

    windows: Float[AnyArray, "*N W 2"]
    mask: Bool[AnyArray, "*N W"]
    well_formed: Bool[AnyArray, "*N"]


def piece_characters(pieces: Sequence[str], vocab: int) -> Int32[np.ndarray, "V C"]:
    """Return the characters of every piece of a vocabulary, for `parse_answers`.

    Args:
      pieces: text of each id, with spaces where words begin.
      vocab: V, the size of the model's vocabulary; ids beyond `pieces` make an answer malformed.
    """
    readable = {
        i: [_CODES[c] for c in piece] for i, piece in enumerate(pieces) if piece and set(piece) <= _CODES.keys()
    }
    table = np.full((vocab, max(map(len, readable.values()), default=1)), _NONE, np.int32)
    table[:, 0] = _OTHER
    for i, characters in readable.items():
        table[i, : len(characters)] = characters
    return table


def parse_answers(
    tokens: Int[Array, "N A"],
    characters: Int32[AnyArray, "V C"],
    latest_end: Float[Array, " N"],
    max_windows: int,
) -> AnswerWindows:
    """Read the windows of answers.

    Malformed is an answer without an end token, of other characters or another form, with a window that does not end
    after its start or ends after `latest_end`, or with more than W windows.

    Args:
      tokens: with the end token; what follows it is not read.
      characters: from `piece_characters`.
      latest_end: seconds.
      max_windows: W.
    """
    count = tokens.shape[0]
    is_end = tokens == EOS_ID
    is_text = jnp.cumsum(is_end, axis=1) == 0
    codes = jnp.where(is_text[:, :, None], jnp.take(jnp.asarray(characters), tokens, axis=0), _NONE)
    slots = jnp.arange(max_windows)[None]

    def read(carry: tuple[Array, ...], codes: Int[Array, "N C"]) -> tuple[tuple[Array, ...], None]:
        state, start, end, num_windows, windows = carry
        for code in jnp.moveaxis(codes, 1, 0):
            following = jnp.asarray(_TRANSITIONS)[state, code]
            is_digit = code < _SPACE
            start = jnp.where(
                is_digit & (following == _START), _append_digit(start, code, is_first=state != _START), start
            )
            end = jnp.where(is_digit & (following == _END), _append_digit(end, code, is_first=state != _END), end)
            closes = (following == _WINDOW_END) & ((state == _END) | (state == _END_SPACE))
            is_slot = closes[:, None] & (slots == num_windows[:, None])
            windows = jnp.where(is_slot[:, :, None], jnp.stack([start, end], axis=-1)[:, None], windows)
            num_windows += closes.astype(jnp.int32)
            state = following
        return (state, start, end, num_windows, windows), None

    zeros = jnp.zeros(count, jnp.int32)
    initial = (zeros, zeros, zeros, zeros, jnp.zeros((count, max_windows, 2), jnp.int32))
    (state, _, _, num_windows, windows), _ = jax.lax.scan(read, initial, jnp.moveaxis(codes, 1, 0))
    mask = slots < num_windows[:, None]
    is_sound = (windows[..., 0] < windows[..., 1]) & (windows[..., 1].astype(jnp.float32) <= latest_end[:, None])
    well_formed = (state == _DONE) & is_end.any(axis=1) & (num_windows <= max_windows) & (is_sound | ~mask).all(axis=1)
    mask = mask & well_formed[:, None]
    return AnswerWindows(
        windows=jnp.where(mask[:, :, None], windows, 0).astype(jnp.float32), mask=mask, well_formed=well_formed
    )


def _append_digit(
    number: Int[Array, " N"], digit: Int[Array, " N"], *, is_first: Bool[Array, " N"]
) -> Int[Array, " N"]:
    """Return a number with another digit at its end; `digit` alone where it is the first one."""
    return jnp.minimum(jnp.where(is_first, 0, number) * 10 + digit, _MAX_SECOND)
