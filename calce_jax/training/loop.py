"""The training loop: evaluate, save, stop, step, log.

The host runs ahead of the device: the metrics of a step are fetched only after later steps were dispatched. A step
whose loss or gradient is not finite is skipped on the device, inside `train_step`, so the steps dispatched before the
host reads its metrics start from unchanged parameters. The host counts skipped steps in order, logs a warning, and
ends the run after `MAX_SKIPPED` in a row. It waits for the device only before an evaluation and before a checkpoint.
"""

import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import jax
import numpy as np

from calce_jax.batch import Batch
from calce_jax.checkpoints.manager import Checkpoints
from calce_jax.checkpoints.workdir import BEST_METRIC
from calce_jax.distributed.multihost import preemption_requested
from calce_jax.training.feed import Feed
from calce_jax.training.metric_log import MetricLog, TrainingError
from calce_jax.training.metric_writer import MetricWriter
from calce_jax.training.patience import Patience
from calce_jax.training.progress import TrainProgress
from calce_jax.training.state import TrainState
from calce_jax.training.utilization import Utilization


class _EvaluationInterrupted(BaseException):
    """A signal to stop arrived during an evaluation. Not an `Exception`, so that no handler in between swallows it."""


@dataclass(frozen=True)
class EvalResult:
    """Scores of an evaluation, and samples to show.

    Fields:
      metrics: by name ("R1@0.5"); R1_avg decides which checkpoint is the best.
      images: uint8 (H, W, 3), by the name of the sample.
      texts: Markdown, by the name of the sample.
    """

    metrics: Mapping[str, float]
    images: Mapping[str, np.ndarray] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainSchedule:
    """Length of a run, and when it logs and evaluates."""

    steps_per_epoch: int  # micro-steps
    epochs: int
    log_every: int  # micro-steps
    eval_every: int  # epochs
    patience: int = 0  # see `calce_jax.training.patience.Patience`

    @property
    def total_steps(self) -> int:
        """Micro-steps of the whole run."""
        return self.steps_per_epoch * self.epochs

    def is_eval_step(self, step: int) -> bool:
        """Return whether to evaluate after `step` micro-steps: every `eval_every` epochs, and at the end."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        return step > 0 and step_in_epoch == 0 and (epoch % self.eval_every == 0 or step == self.total_steps)


@dataclass(frozen=True)
class TrainFunctions:
    """The functions that the loop calls.

    Fields:
      train_step: compiled, `(state, batch) -> (state, metrics)`; may donate the state. Metrics are float32 scalars,
        among them "loss", "learning_rate", "gradient_norm", "skipped" (1 where only `state.step` changed), "tokens" and
        "padding".
      evaluate: scores a state.
      query_ids: turns rows of the queries table into query ids, for messages.
    """

    train_step: Callable[[TrainState, Batch], tuple[TrainState, Mapping[str, jax.Array]]]
    evaluate: Callable[[TrainState], EvalResult]
    query_ids: Callable[[np.ndarray], list[str]]


@dataclass(frozen=True)
class RunOutputs:
    """Where a run writes.

    Fields:
      checkpoints: of the workdir. If the metadata of the latest has "evaluation_due", the loop evaluates first; they
        also have what `calce_jax.training.patience.Patience` counts.
      metadata: saved with each checkpoint, JSON values.
      writer: of metrics, images and texts.
      utilization: see `calce_jax.training.metric_log.MetricLog`.
    """

    checkpoints: Checkpoints
    metadata: Mapping[str, Any]
    writer: MetricWriter
    utilization: Utilization | None = None


def train(
    state: TrainState,
    feed: Feed,
    schedule: TrainSchedule,
    functions: TrainFunctions,
    outputs: RunOutputs,
    *,
    stop_on_signals: bool = False,
) -> TrainState:
    """Train to the end of the schedule or of its patience, or until SIGTERM or SIGINT; a checkpoint is always saved.

    Args:
      state: new, or restored together with `feed.iterator`.
      feed: its iterator stands after the last batch of `state`.
      schedule: number of steps, when to log and to evaluate.
      functions: training step, evaluation.
      outputs: checkpoints and metrics.
      stop_on_signals: handle SIGTERM and SIGINT (Ctrl-C) of this process while training; a second SIGINT interrupts at
        once. For commands alone: handlers belong to the whole process, and only the main thread can set them. Several
        hosts stop together on SIGTERM without it.

    Returns:
      The last state.

    Raises:
      TrainingError: `MAX_SKIPPED` steps in a row were skipped, or the data end early.
      CheckpointError: a checkpoint cannot be written, or the state is not finite.
      SystemExit: with code 143 after SIGTERM, 130 after SIGINT, and a checkpoint.
    """
    step, checkpoints, writer = int(state.step), outputs.checkpoints, outputs.writer
    log = MetricLog(writer, functions.query_ids, checkpoints, outputs.utilization)
    latest_metadata = checkpoints.read_metadata(step) if step == checkpoints.latest_step else {}
    eval_due = bool(latest_metadata.get("evaluation_due"))
    patience = Patience.restore(schedule.patience, checkpoints, latest_metadata)

    def save(metrics: Mapping[str, float] | None, *, evaluation_due: bool = False) -> None:
        log.fetch_all()
        checkpoints.save(
            state,
            feed.iterator,
            {**outputs.metadata, **patience.metadata, "evaluation_due": evaluation_due},
            metrics,
        )

    progress = TrainProgress(schedule.total_steps, step)
    with _stop_request(stop_on_signals) as stop, progress:
        while True:
            # 1. Evaluate at the end of an epoch, or first if the interrupted process had to; save latest and best.
            if eval_due:
                log.fetch_all()  # an evaluation waits for the device anyway, and may be long
                try:
                    evaluation = _evaluate_interruptibly(stop, functions.evaluate, state)
                except _EvaluationInterrupted:
                    save(None, evaluation_due=True)
                    break
                _write_evaluation(writer, step, evaluation)
                progress.print(_epoch_line(schedule, step, log.loss, evaluation))
                patience.add(evaluation.metrics[BEST_METRIC])
                save(evaluation.metrics)
                eval_due = False
                log.reset_timer()
            elif step % schedule.steps_per_epoch == 0 and step not in (0, checkpoints.latest_step):
                save(None)

            # 2. Stop: at the end, if scores do not rise any more, or on request.
            if step >= schedule.total_steps or patience.ends(step, schedule.total_steps, progress.print):
                break
            if stop.should_stop(step):
                if step != checkpoints.latest_step:
                    save(None)
                break

            # 3. One micro-step. Nothing here waits for the device, except length grouping, once per window.
            try:
                row_info, batch = feed.next_batch(state)
            except StopIteration:
                raise TrainingError(
                    f"the data end before step {step} of {schedule.total_steps}",
                    "the iterator must repeat without end",
                ) from None
            state, step_metrics = functions.train_step(state, batch)
            step += 1
            log.add(step, row_info, step_metrics)
            progress.update()

            # 4. Log the metrics that are ready.
            if step % schedule.log_every == 0:
                progress.log(step, log.write(step))
            if step % schedule.steps_per_epoch == 0:
                log.report_row_flags()
            eval_due = schedule.is_eval_step(step)

        checkpoints.wait()
        writer.flush()
    if eval_due or (step < schedule.total_steps and not patience.is_over):
        stop.exit(f"after step {step} of {schedule.total_steps}; saved to {checkpoints.folder / str(step)}")
    return state


def _write_evaluation(writer: MetricWriter, step: int, evaluation: EvalResult) -> None:
    writer.write_scalars(step, {f"eval/{name}": value for name, value in evaluation.metrics.items()})
    writer.write_images(step, {f"samples/{name}": image for name, image in evaluation.images.items()})
    writer.write_texts(step, {f"samples/{name}": text for name, text in evaluation.texts.items()})


def _epoch_line(schedule: TrainSchedule, step: int, loss: float, evaluation: EvalResult) -> str:
    epoch = f"epoch {step // schedule.steps_per_epoch}/{schedule.epochs}"
    return f"{epoch}  loss {loss:.3f}  {BEST_METRIC} {evaluation.metrics[BEST_METRIC]:.2f}"


@dataclass
class _StopRequest:
    """Whether to stop, by which signal, and whether an evaluation is running, which a signal interrupts."""

    requested: bool = False
    received: signal.Signals = signal.SIGTERM
    evaluating: bool = False

    def should_stop(self, step: int) -> bool:
        """Return whether to stop before a step; several hosts agree on it."""
        self.requested = self.requested or preemption_requested(step)
        return self.requested

    def exit(self, place: str) -> None:
        """End the process as stopped by the signal.

        Raises:
          SystemExit: always.
        """
        print(f"stopped by {self.received.name} {place}. The same command goes on from there.", file=sys.stderr)
        raise SystemExit(128 + self.received)


@contextmanager
def _stop_request(stop_on_signals: bool) -> Iterator[_StopRequest]:
    """Yield a request that SIGTERM and SIGINT set while the context lasts, if `stop_on_signals`.

    With several hosts none may stop alone: jax.distributed handles the signal there, and tells all hosts at which step
    to stop.
    """
    stop = _StopRequest()
    if not stop_on_signals or jax.process_count() > 1:
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, previous[signal.SIGINT])
            print("stopping after this step, with a checkpoint; Ctrl-C again stops at once", file=sys.stderr)
        stop.requested, stop.received = True, signal.Signals(number)
        if stop.evaluating:
            raise _EvaluationInterrupted

    # What the parent ignores for this process, as a shell does with Ctrl-C for jobs in the background, stays ignored.
    heard = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, handle) for number in heard}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _evaluate_interruptibly(
    stop: _StopRequest, evaluate: Callable[[TrainState], EvalResult], state: TrainState
) -> EvalResult:
    """Evaluate. A signal to stop interrupts it, since an evaluation may take longer than the time left before SIGKILL.

    Raises:
      _EvaluationInterrupted: a stop was requested.
    """
    if stop.requested:
        raise _EvaluationInterrupted
    stop.evaluating = True
    try:
        return evaluate(state)
    finally:
        stop.evaluating = False
