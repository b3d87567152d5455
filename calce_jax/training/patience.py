"""The early stop of a run whose scores do not rise any more."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from calce_jax.checkpoints.manager import Checkpoints
from calce_jax.checkpoints.workdir import BEST_METRIC

COUNT_KEY = "evaluations_without_gain"


@dataclass
class Patience:
    """Counts the evaluations since the best one; the count is in the metadata of every checkpoint.

    Attributes:
      limit: evaluations in a row without a better R1_avg that end the run; 0: none do.
      without_gain: evaluations in a row so far.
      best_score: R1_avg of the best; minus infinity before the first.
    """

    limit: int
    without_gain: int = 0
    best_score: float = -math.inf

    @staticmethod
    def restore(limit: int, checkpoints: Checkpoints, metadata: Mapping[str, Any]) -> "Patience":
        """Return the patience of a run.

        Args:
          limit: see the class.
          checkpoints: of the run.
          metadata: of the checkpoint that the run goes on from; {} at its start. Those of earlier versions count 0.
        """
        best = checkpoints.best_step_and_metric
        return Patience(limit, int(metadata.get(COUNT_KEY, 0)), -math.inf if best is None else best[1])

    def add(self, score: float) -> None:
        """Count an evaluation; a score that is no number is no gain."""
        if score > self.best_score:
            self.without_gain, self.best_score = 0, score
        else:
            self.without_gain += 1

    @property
    def is_over(self) -> bool:
        """Whether the run ends."""
        return 0 < self.limit <= self.without_gain

    @property
    def metadata(self) -> dict[str, int]:
        """What a checkpoint records."""
        return {COUNT_KEY: self.without_gain}

    def ends(self, step: int, total_steps: int, tell: Callable[[str], None]) -> bool:
        """Return whether a run ends after `step` of its micro-steps; if so, tell why."""
        if self.is_over:
            noun = "evaluation" if self.without_gain == 1 else f"{self.without_gain} evaluations"
            tell(
                f"stopped early after step {step} of {total_steps}: no better {BEST_METRIC} than {self.best_score:.2f} "
                f"in the last {noun}; to go on, raise --config.loop.patience={self.limit}"
            )
        return self.is_over
