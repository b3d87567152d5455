"""The answer of several that agrees best with all of them.

Minimum Bayes risk decoding (Kumar & Byrne 2004; Eikema & Aziz 2020 for sequence models): not the most probable answer
is given, but the one whose expected overlap with the right one is greatest, if the right one is distributed as the
answers of the beam search are. Where five of about the same probability differ, it is one in their middle.
"""

from collections.abc import Sequence

import numpy as np

from calce_jax.moments.windows import Window, iou_matrix


def least_risk(answers: Sequence[Sequence[Window]], probabilities: Sequence[float]) -> int:
    """Return the index of the answer with the greatest expected overlap; of equal ones that of the first.

    Args:
      answers: the windows of each answer, at least one answer; without windows, the query does not happen.
      probabilities: of each answer.
    """
    expected = [
        sum(probability * overlap(answer, other) for other, probability in zip(answers, probabilities, strict=True))
        for answer in answers
    ]
    # Rounded, so that the order of a sum does not decide between equal answers.
    return int(np.argmax(np.round(expected, 9)))


def overlap(first: Sequence[Window], second: Sequence[Window]) -> float:
    """Return how far two answers agree, 0 to 1; the reward of training, see `calce_jax.training.rewards`.

    Windows are matched one to one, the pair of greatest IoU first, and the sum of the IoUs is divided by the greater
    number of windows. Two answers without windows agree.
    """
    if not first or not second:
        return float(not first and not second)
    ious = iou_matrix(np.array(first, np.float64), np.array(second, np.float64))
    total, count = 0.0, max(ious.shape)
    for _ in range(min(ious.shape)):
        row, column = np.unravel_index(ious.argmax(), ious.shape)
        total += float(ious[row, column])
        ious[row], ious[:, column] = 0.0, 0.0
    return total / count
