"""Progress of training on stderr: a bar in a terminal; elsewhere, as in a file of logs, a line for each log."""

import sys
from collections.abc import Mapping
from types import TracebackType

import jax
from tqdm import tqdm


class TrainProgress:
    """Shows steps, losses and scores; of several hosts on the first one alone.

    Args:
      total_steps: micro-steps of the run.
      step: micro-steps that were made before.
    """

    def __init__(self, total_steps: int, step: int):
        self._total_steps = total_steps
        self._is_silent = jax.process_index() > 0
        self._has_bar = not self._is_silent and sys.stderr.isatty() and step < total_steps  # nothing to show at the end
        self._bar = tqdm(
            total=total_steps, initial=step, unit="step", dynamic_ncols=True, disable=not self._has_bar, file=sys.stderr
        )

    def __enter__(self) -> "TrainProgress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def update(self) -> None:
        """Count a step."""
        self._bar.update()

    def log(self, step: int, values: Mapping[str, str]) -> None:
        """Show values after a step, such as its loss; nothing if there are none yet."""
        if self._has_bar:
            self._bar.set_postfix(values, refresh=False)
        elif values:
            self.print("  ".join([f"step {step}/{self._total_steps}", *map(" ".join, values.items())]))

    def print(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        if not self._is_silent:
            tqdm.write(line, file=sys.stderr)
            sys.stderr.flush()
