"""Traces of steps, which XProf and TensorBoard open: `--profile=STEPS` of `calce train` and `calce infer`."""

from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import jax
from absl import logging

Item = TypeVar("Item")
Result = TypeVar("Result")

# The first steps compile, fill caches and read ahead.
SKIPPED_STEPS = 3


class StepProfiler:
    """Traces `steps` consecutive steps of this process, after the first `SKIPPED_STEPS`; a context manager.

    Args:
      folder: gets the trace, as `plugins/profile/TIME/HOST.xplane.pb`; each host writes its own.
      steps: number of steps; 0 traces nothing.
      name: of a step, in the trace.
    """

    def __init__(self, folder: Path, steps: int, name: str):
        self._folder, self._last, self._name = folder, SKIPPED_STEPS + steps, name
        self._steps, self._num_started = steps, 0
        self._annotation: Any = None
        self._is_tracing = False

    def __enter__(self) -> "StepProfiler":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        if self._steps and kind is None and self._num_started <= SKIPPED_STEPS:
            logging.warning(
                "--profile: nothing was traced: the first %d steps are not, and there were %d; smaller batches "
                "are more steps",
                SKIPPED_STEPS,
                self._num_started,
            )

    def start_step(self) -> None:
        """Begin a step."""
        self._num_started += 1
        if self._steps and self._num_started == SKIPPED_STEPS + 1:
            jax.profiler.start_trace(self._folder)
            self._is_tracing = True
        if self._is_tracing:
            self._annotation = jax.profiler.StepTraceAnnotation(self._name, step_num=self._num_started)
            self._annotation.__enter__()

    def end_step(self, outputs: Any = None) -> None:
        """End a step; after the last that is traced, wait for its `outputs`, any pytree, and write the trace."""
        if not self._is_tracing:
            return
        if self._num_started == self._last:
            jax.block_until_ready(outputs)
        self._annotation.__exit__(None, None, None)
        self._annotation = None
        if self._num_started == self._last:
            self._stop()

    def wrap(self, run_step: Callable[..., Result]) -> Callable[..., Result]:
        """Return a function that does the same, each call of which is a step."""

        @wraps(run_step)
        def run(*args: Any) -> Result:
            self.start_step()
            outputs = run_step(*args)
            self.end_step(outputs)
            return outputs

        return run

    def watch(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield from an iterator each of whose items is a step."""
        iterator = iter(items)
        while True:
            self.start_step()
            try:
                item = next(iterator)
            except StopIteration:
                self._num_started -= 1
                return
            self.end_step(item)
            yield item

    def _stop(self) -> None:
        if self._annotation is not None:
            self._annotation.__exit__(None, None, None)
            self._annotation = None
        if self._is_tracing:
            self._is_tracing = False
            jax.profiler.stop_trace()
            logging.info("--profile: wrote a trace to %s", self._folder)
