"""The training loop: step, log, evaluate, save, stop.

The host runs ahead of the device. What a step measures stays on the device until later steps are under way. A step
whose loss or gradient is not finite is skipped on the device, inside `step_fn`, so the steps that are under way by the
time the host reads of it start from the unchanged parameters. The host counts skipped steps in order, warns, and ends
the run after `MAX_SKIPPED` in a row. It waits for the device only before an evaluation and before a checkpoint.
"""

import resource
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import grain
import jax
import numpy as np
from absl import logging
from tqdm import tqdm

from calce_jax.checkpoints.manager import BEST_METRIC, Checkpoints
from calce_jax.distributed.multihost import preemption_requested
from calce_jax.errors import UserError
from calce_jax.input_pipeline.row_flags import RowFlagCounter
from calce_jax.training.metric_writer import MetricWriter
from calce_jax.training.state import TrainState

# Steps whose measurements are left on the device at a log, so that reading the others does not wait.
METRICS_LAG_STEPS = 2
# Skipped steps in a row that end the run: by then it is not one batch, and nothing is being learnt.
MAX_SKIPPED = 5


class TrainingError(UserError):
    """Training cannot go on; the message says at which step and why."""


class _EvaluationInterrupted(BaseException):
    """SIGTERM arrived during an evaluation. Not an `Exception`, so that no handler in between swallows it."""


@dataclass(frozen=True)
class EvalResult:
    """What an evaluation brings back.

    Fields:
      metrics: by name ("R1@0.5"), with R1_avg, which decides which checkpoint is best.
      images: uint8 (H, W, 3), by the name of the sample they show.
      texts: Markdown, likewise.
    """

    metrics: Mapping[str, float]
    images: Mapping[str, np.ndarray] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainSchedule:
    """How long a run is, and when it logs and evaluates."""

    steps_per_epoch: int  # micro-steps
    epochs: int
    log_every: int  # micro-steps
    eval_every: int  # epochs

    @property
    def total_steps(self) -> int:
        """Micro-steps of the whole run."""
        return self.steps_per_epoch * self.epochs

    def is_eval_step(self, step: int) -> bool:
        """Tell whether the state after `step` micro-steps is evaluated: every few epochs, and in the end."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        return step > 0 and step_in_epoch == 0 and (epoch % self.eval_every == 0 or step == self.total_steps)


def train(
    state: TrainState,
    iterator: grain.DatasetIterator,
    next_batch: Callable[[TrainState], tuple[Any, Any]],
    *,
    schedule: TrainSchedule,
    step_fn: Callable[[TrainState, Any], tuple[TrainState, Mapping[str, jax.Array]]],
    evaluate: Callable[[TrainState], EvalResult],
    checkpoints: Checkpoints,
    metadata: Mapping[str, Any],
    writer: MetricWriter,
    query_ids_of: Callable[[np.ndarray], list[str]],
) -> TrainState:
    """Train from `state` to the end of the plan, or until SIGTERM, and leave a checkpoint either way.

    Args:
      state: fresh, or restored together with the iterator.
      iterator: stands after the state's last batch.
      next_batch: takes the next batch from it; gives what this host is told of it (its `row`, `notes` and `present`), and the
        batch on the devices.
      schedule: how long, how often.
      step_fn: compiled; `(state, device batch) -> (state, float32 scalars)`, among them "loss", "learning_rate",
        "gradient_norm", "skipped" (1 where it left all but `state.step` as it was), "tokens" and "padding". It may
        donate the state.
      evaluate: scores a state.
      checkpoints: of the workdir; a record in it with "evaluation_due" makes a resumed run evaluate first.
      metadata: what is kept with each checkpoint.
      writer: of metrics.
      query_ids_of: turns rows of a batch into query ids, for messages.

    Returns:
      The last state. On SIGTERM, raises SystemExit(0) after saving instead.

    Raises:
      TrainingError: `MAX_SKIPPED` steps in a row were skipped, or the iterator ends early.
      CheckpointError: a checkpoint cannot be written, or the state is not finite.
    """
    step = int(state.step)
    log = _MetricLog(writer, query_ids_of, checkpoints)
    eval_due = step == checkpoints.latest_step and bool(checkpoints.read_metadata(step).get("evaluation_due"))

    def save(metrics: Mapping[str, float] | None, *, evaluation_due: bool = False) -> None:
        log.fetch_all()
        checkpoints.save(state, iterator, {**metadata, "evaluation_due": evaluation_due}, metrics)

    bar = tqdm(
        total=schedule.total_steps, initial=step, unit="step", dynamic_ncols=True, disable=jax.process_index() > 0
    )
    with _handle_sigterm() as stop, bar:
        while True:
            # 1. Evaluate at the end of an epoch (or what the last process left to evaluate), save latest and best.
            if eval_due:
                log.fetch_all()  # an evaluation waits for the device anyway, and may be long
                try:
                    evaluation = _evaluate_interruptibly(stop, evaluate, state)
                except _EvaluationInterrupted:
                    save(None, evaluation_due=True)
                    break
                _write_evaluation(writer, bar, step, schedule, evaluation)
                save(evaluation.metrics)
                eval_due = False
                log.reset_timer()
            elif step % schedule.steps_per_epoch == 0 and step not in (0, checkpoints.latest_step):
                save(None)

            # 2. Stop: at the end, or because we were told to.
            if step >= schedule.total_steps:
                break
            if stop.should_stop(step):
                if step != checkpoints.latest_step:
                    save(None)
                break

            # 3. One micro-step. Nothing here waits for the device, but batches dealt by length, once a window.
            try:
                row_info, batch = next_batch(state)
            except StopIteration:
                raise TrainingError(
                    f"the data end before step {step} of {schedule.total_steps}",
                    "the iterator should repeat without end",
                ) from None
            state, step_metrics = step_fn(state, batch)
            step += 1
            log.add(step, row_info, step_metrics)
            bar.update()

            # 4. Log what is ready.
            if step % schedule.log_every == 0:
                bar.set_postfix(log.write(step), refresh=False)
            if step % schedule.steps_per_epoch == 0:
                log.report_row_flags()
            eval_due = schedule.is_eval_step(step)

        checkpoints.wait()
        writer.flush()
    if stop.requested and (step < schedule.total_steps or eval_due):
        print(
            f"stopped by SIGTERM after step {step} of {schedule.total_steps}; saved to {checkpoints.folder / str(step)}. "
            "The same command goes on from there.",
            file=sys.stderr,
        )
        raise SystemExit(0)
    return state


class _MetricLog:
    """Measurements on their way from the device to the writer."""

    def __init__(self, writer: MetricWriter, query_ids_of: Callable[[np.ndarray], list[str]], checkpoints: Checkpoints):
        self._writer, self._query_ids_of, self._checkpoints = writer, query_ids_of, checkpoints
        self._pending: deque[tuple[int, np.ndarray, Mapping[str, jax.Array]]] = deque()
        self._fetched: list[dict[str, float]] = []
        self._skipped: list[tuple[int, list[str]]] = []  # the last steps and their queries, as far as all were skipped
        self._flag_counter, self._num_reported_flags = RowFlagCounter(), 0
        self._num_rows, self._num_flagged_rows = 0, 0
        self._num_frames = 0
        self._start_time, self._num_steps = time.perf_counter(), 0

    def add(self, step: int, row_info: Any, metrics: Mapping[str, jax.Array]) -> None:
        """Take in a step that is under way."""
        self._pending.append((step, np.asarray(row_info.row), metrics))
        self._flag_counter.add(np.asarray(row_info.row), np.asarray(row_info.notes))
        self._num_frames += int(np.sum(row_info.present)) * jax.process_count()
        self._num_rows += len(row_info.row)
        self._num_flagged_rows += int(np.count_nonzero(row_info.notes))
        self._num_steps += 1

    def write(self, step: int) -> dict[str, str]:
        """Write the means since the last time; return what the progress bar shows."""
        self._fetch_until(METRICS_LAG_STEPS)
        if not self._fetched:
            return {}
        # A skipped step says nothing of loss and gradient; all else is true of it too.
        applied = [step_values for step_values in self._fetched if not step_values["skipped"]]
        of = {name: applied if name in ("loss", "gradient_norm") else self._fetched for name in self._fetched[0]}
        mean = {name: float(np.mean([each[name] for each in steps])) for name, steps in of.items() if steps}
        seconds = time.perf_counter() - self._start_time
        scalars = {f"train/{name}": value for name, value in mean.items() if name not in ("tokens", "padding")}
        scalars["train/learning_rate"] = self._fetched[-1]["learning_rate"]
        scalars["train/skipped"] = float(len(self._fetched) - len(applied))
        scalars |= {
            "data/tokens": mean["tokens"],
            "data/padding": mean["padding"],
            "data/mended": self._num_flagged_rows / self._num_rows,  # the share that did not fit as it was
            "speed/step_seconds": seconds / self._num_steps,
            "speed/frames_per_second": self._num_frames / seconds,
            "speed/tokens_per_second": mean["tokens"] * self._num_steps / seconds,
            "memory/host_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        }
        if device := jax.local_devices()[0].memory_stats():
            scalars["memory/device_gb"] = device["peak_bytes_in_use"] / 1e9
        self._writer.write_scalars(step, scalars)
        self._fetched.clear()
        self._num_rows, self._num_flagged_rows = 0, 0
        self.reset_timer()
        return {"loss": f"{mean.get('loss', np.nan):.3f}", "lr": f"{scalars['train/learning_rate']:.2e}"}

    def report_row_flags(self) -> None:
        """Name the queries that did not fit the shapes of a batch, where there are more than the last time."""
        count = sum(map(len, self._flag_counter.rows.values()))
        if count > self._num_reported_flags:
            for line in self._flag_counter.summary_lines(self._query_ids_of):
                logging.warning("training: %s", line)
        self._num_reported_flags = count

    def reset_timer(self) -> None:
        """Begin to time anew, so that an evaluation does not count as slow steps."""
        self._num_frames, self._num_steps, self._start_time = 0, 0, time.perf_counter()

    def fetch_all(self) -> None:
        """Wait for every measurement."""
        self._fetch_until(0)

    def _fetch_until(self, max_pending: int) -> None:
        while len(self._pending) > max_pending:
            step, rows, metrics = self._pending.popleft()
            values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
            self._fetched.append(values)
            if not values["skipped"]:
                self._skipped.clear()
                continue
            queries = self._query_ids_of(rows)
            logging.warning(
                "training: step %d was skipped: its loss is %g and its gradient norm %g; its queries are %s",
                step,
                values["loss"],
                values["gradient_norm"],
                ", ".join(queries),
            )
            self._skipped.append((step, queries))
            if len(self._skipped) == MAX_SKIPPED:
                raise TrainingError(self._end())

    def _end(self) -> str:
        """Return why the run ends after the steps that were skipped, and how to go on."""
        named = "; ".join(f"step {step}: {', '.join(queries)}" for step, queries in self._skipped)
        latest, workdir = self._checkpoints.latest_step, self._checkpoints.folder.parent
        text = (
            f"{MAX_SKIPPED} steps in a row had a loss or a gradient that is not finite and were skipped; their queries "
            f"are {named}. Correct their videos, captions and windows; the same command then "
        )
        if latest is None:
            return text + (
                "starts anew, since no checkpoint was saved. If it ends here again, lower config.schedule.peak in "
                "another --workdir"
            )
        text += f"goes on from step {latest}, whose values are finite. If it ends here again, "
        if (before := self._checkpoints.before(latest)) is not None:
            text += f"remove {self._checkpoints.folder / str(latest)} to go on from step {before}, or "
        return text + f"train in another --workdir with config.weights.start={workdir} and a lower config.schedule.peak"


def _write_evaluation(
    writer: MetricWriter, bar: tqdm, step: int, schedule: TrainSchedule, evaluation: EvalResult
) -> None:
    writer.write_scalars(step, {f"eval/{name}": value for name, value in evaluation.metrics.items()})
    writer.write_images(step, {f"samples/{name}": image for name, image in evaluation.images.items()})
    writer.write_texts(step, {f"samples/{name}": text for name, text in evaluation.texts.items()})
    epoch = step // schedule.steps_per_epoch
    if not bar.disable:
        bar.write(
            f"epoch {epoch}/{schedule.epochs}  {BEST_METRIC} {evaluation.metrics[BEST_METRIC]:.2f}", file=sys.stderr
        )


@dataclass
class _StopRequest:
    requested: bool = False
    evaluating: bool = False

    def should_stop(self, step: int) -> bool:
        """Tell whether to stop before a step; several hosts find out together."""
        self.requested = self.requested or preemption_requested(step)
        return self.requested


@contextmanager
def _handle_sigterm() -> Iterator[_StopRequest]:
    """Note SIGTERM instead of dying of it.

    Of several hosts none may act on it alone: there jax has taken hold of the signal and tells the others.
    """
    stop = _StopRequest()
    if jax.process_count() > 1:
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        del number, frame
        stop.requested = True
        if stop.evaluating:
            raise _EvaluationInterrupted

    previous_handler = signal.signal(signal.SIGTERM, handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, previous_handler)


def _evaluate_interruptibly(
    stop: _StopRequest, evaluate: Callable[[TrainState], EvalResult], state: TrainState
) -> EvalResult:
    """Evaluate, unless SIGTERM comes: an evaluation may take longer than one is given to leave."""
    if stop.requested:
        raise _EvaluationInterrupted
    stop.evaluating = True
    try:
        return evaluate(state)
    finally:
        stop.evaluating = False
