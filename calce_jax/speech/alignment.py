"""When each token of a finished text is said: the decoder's attention to the encoder, and dynamic time warping.

Source: `whisper/timing.py` of openai-whisper, whose numbers are reproduced. The decoder reads prompt, text and end
token at once (teacher forcing); some of its heads look at the sound of the token that comes next. Their weights,
normalised, filtered and averaged, are the likelihood that a token is said in an encoder position; the path of least
cost through them, in which time never runs back, gives each token its first position.

Dimensions: B windows, F mel frames, C mel bands, L tokens, S encoder positions (F / 2), K heads, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from calce_jax.batch import AnyArray
from calce_jax.models.whisper import Whisper

MEDIAN_FILTER_WIDTH = 7  # encoder positions, as in every published model
# Texts are aligned in programs of this many tokens, twice as many, and so on, so that few are compiled.
MIN_PADDED_TOKENS = 64


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AlignInputs:
    """A batch of windows with their texts."""

    mel: Float[AnyArray, "B F C"]
    tokens: Int[AnyArray, "B L"]  # prompt without timestamps, text, `eot`; padded on the right with any token
    num_tokens: Int[AnyArray, " B"]  # without padding
    num_positions: Int[AnyArray, " B"]  # encoder positions that lie in the file, at least 1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AlignOutputs:
    """What `align_batch` computes of a batch."""

    likelihood: Float[AnyArray, "B L S"]  # of a position, that the token after this one is said in it; no probability
    probability: Float[AnyArray, "B L"]  # of the token after this one, among those of text


def pack_texts(
    mel: Float[np.ndarray, "B F C"],
    num_frames: Sequence[int],
    prompts: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    *,
    eot: int,
    max_tokens: int,
) -> AlignInputs:
    """Return the inputs of `align_batch`; rows of `mel` beyond the texts are padding.

    Args:
      mel: the windows.
      num_frames: mel frames of each window that lie in the file.
      prompts: tokens of each window from the start of transcript to the one before the text.
      texts: tokens of each window.
      eot: end of text.
      max_tokens: of prompt, text and `eot` together.
    """
    sequences = [[*prompt, *text, eot] for prompt, text in zip(prompts, texts, strict=True)]
    width = MIN_PADDED_TOKENS
    while width < max(map(len, sequences)):
        width *= 2
    tokens = np.full((len(mel), min(width, max_tokens)), eot, np.int32)
    num_tokens, num_positions = np.ones((2, len(mel)), np.int32)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = sequence
        num_tokens[row], num_positions[row] = len(sequence), max(num_frames[row] // 2, 1)
    return AlignInputs(mel, tokens, num_tokens, num_positions)


def align_batch(
    whisper: Whisper, inputs: AlignInputs, heads: Sequence[tuple[int, int]], *, num_text_tokens: int, dtype: str
) -> AlignOutputs:
    """Return the evidence for the time of every token.

    Args:
      whisper: the model.
      inputs: the batch.
      heads: K pairs (block of the decoder, head), as in `alignment_heads` of a `generation_config.json`.
      num_text_tokens: the tokens below are text, those from there on are special.
      dtype: of all computations but norms, softmax and logits.
    """
    memory = whisper.encode(inputs.mel.astype(dtype))
    hidden, weights = whisper.decode_with_attention(inputs.tokens, memory, heads)

    def align_row(row: tuple[Array, ...]) -> tuple[Array, Array]:
        hidden, weights, tokens, num_tokens, num_positions = row
        is_token, is_inside = jnp.arange(len(tokens)) < num_tokens, jnp.arange(weights.shape[2]) < num_positions
        weights = normalise_weights(weights, is_token, is_inside)
        filtered = median_filter(weights, num_positions).mean(axis=0)
        probabilities = jax.nn.softmax(whisper.logits(hidden)[:, :num_text_tokens], axis=-1)
        following = jnp.minimum(jnp.roll(tokens, -1), num_text_tokens - 1)
        return filtered, jnp.take_along_axis(probabilities, following[:, None], axis=1)[:, 0]

    # Row by row: K L S weights and L V logits of one window are 50 and 25 MB in the smallest model.
    likelihood, probability = jax.lax.map(
        align_row, (hidden, weights, inputs.tokens, inputs.num_tokens, inputs.num_positions)
    )
    return AlignOutputs(likelihood, probability)


def normalise_weights(
    weights: Float[Array, "K L S"], is_token: Bool[Array, " L"], is_inside: Bool[Array, " S"]
) -> Float[Array, "K L S"]:
    """Return attention weights with mean 0 and standard deviation 1 over the tokens, at each position.

    Args:
      weights: softmax over all positions.
      is_token: which tokens are no padding.
      is_inside: which positions lie in the file; the weights of the others are taken from them.
    """
    weights = jnp.where(is_inside[None, None], weights, 0.0)
    weights = weights / jnp.maximum(weights.sum(axis=-1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    rows, num_tokens = is_token[None, :, None], is_token.sum().astype(jnp.float32)
    mean = jnp.where(rows, weights, 0.0).sum(axis=1, keepdims=True) / num_tokens
    variance = jnp.where(rows, jnp.square(weights - mean), 0.0).sum(axis=1, keepdims=True) / num_tokens
    deviation = jnp.sqrt(jnp.where(variance > 0, variance, 1.0))
    return jnp.where(rows & is_inside[None, None], (weights - mean) / deviation, 0.0)


def median_filter(weights: Float[Array, "K L S"], num_positions: Int[Array, ""]) -> Float[Array, "K L S"]:
    """Return the median of each position and its neighbours, reflected at position 0 and at the last one in the file.

    Fewer positions than half the filter are returned as they are.
    """
    half, last = MEDIAN_FILTER_WIDTH // 2, num_positions - 1
    shifted = []
    for shift in range(-half, half + 1):
        index = jnp.abs(jnp.arange(weights.shape[2]) + shift)
        shifted.append(jnp.take(weights, jnp.where(index > last, jnp.abs(2 * last - index), index), axis=2))
    # The largest, then the next one, to the end: a sort that stops at the median. A general sort takes far longer.
    for end in range(MEDIAN_FILTER_WIDTH - 1, half - 1, -1):
        for place in range(end):
            pair = shifted[place], shifted[place + 1]
            shifted[place], shifted[place + 1] = jnp.minimum(*pair), jnp.maximum(*pair)
    return jnp.where(num_positions > half, shifted[half], weights)


def first_positions(likelihood: Float[np.ndarray, "L S"]) -> Int[np.ndarray, " L"]:
    """Return the first position of each row on the path of greatest likelihood, by `dynamic_time_warping`."""
    rows, positions = dynamic_time_warping(-likelihood)
    return positions[np.diff(rows, prepend=-1) > 0]


def dynamic_time_warping(cost: Float[np.ndarray, "L S"]) -> tuple[Int[np.ndarray, " X"], Int[np.ndarray, " X"]]:
    """Return rows and columns of the path of least cost from the first cell to the last, in steps of 0 or 1 in both.

    Sums are float32, and of equal sums the step along a row is taken, as in openai-whisper. Computed by diagonals,
    whose cells do not depend on each other, so that numpy is fast enough.
    """
    num_rows, num_columns = cost.shape
    # Cell (i, j) is at [i + j, i], so that a diagonal is one row, and its three predecessors are slices.
    skewed = np.full((num_rows + num_columns - 1, num_rows), np.inf, np.float32)
    row_index, column_index = np.indices(cost.shape)
    skewed[row_index + column_index, row_index] = cost
    steps = np.zeros(skewed.shape, np.int8)
    infinite = np.full(num_rows + 1, np.inf, np.float32)
    # Sums of the diagonal before, and of the one before that; element i + 1 is of row i.
    last, last_but_one = infinite.copy(), infinite.copy()
    last_but_one[0] = 0  # the start, before the first cell
    for diagonal, diagonal_cost in enumerate(skewed):
        both, down, along = last_but_one[:-1], last[:-1], last[1:]
        step = np.where((both < down) & (both < along), 0, np.where((down < both) & (down < along), 1, 2))
        steps[diagonal] = step
        sums = infinite.copy()
        sums[1:] = diagonal_cost + np.choose(step, (both, down, along))
        last_but_one, last = last, sums
        last_but_one[0] = np.inf
    row, column = num_rows - 1, num_columns - 1
    path = [(row, column)]
    while row or column:
        step = 2 if row == 0 else 1 if column == 0 else steps[row + column, row]
        row, column = row - (step < 2), column - (step != 1)
        path.append((row, column))
    rows, columns = np.array(path[::-1], np.int64).T
    return rows, columns
