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

from calce_jax.checkpoints.manager import CRITERION, Checkpoints
from calce_jax.distributed.multihost import told_to_stop
from calce_jax.errors import UserError
from calce_jax.input_pipeline import NoteCounter
from calce_jax.training.metric_writer import MetricWriter
from calce_jax.training.state import TrainState

# Steps whose measurements are left on the device at a log, so that reading the others does not wait.
LAG = 2
# Skipped steps in a row that end the run: by then it is not one batch, and nothing is being learnt.
MAX_SKIPPED = 5


class TrainingError(UserError):
    """Training cannot go on; the message says at which step and why."""


class _EvaluationStopped(BaseException):
    """SIGTERM arrived during an evaluation. Not an `Exception`, so that no handler in between swallows it."""


@dataclass(frozen=True)
class Evaluation:
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
class Plan:
    """How long a run is, and when it logs and evaluates."""

    steps_per_epoch: int  # micro-steps
    epochs: int
    log_every: int  # micro-steps
    eval_every: int  # epochs

    @property
    def steps(self) -> int:
        """Micro-steps of the whole run."""
        return self.steps_per_epoch * self.epochs

    def evaluates(self, step: int) -> bool:
        """Tell whether the state after `step` micro-steps is evaluated: every few epochs, and in the end."""
        epoch, within = divmod(step, self.steps_per_epoch)
        return step > 0 and within == 0 and (epoch % self.eval_every == 0 or step == self.steps)


def train(
    state: TrainState,
    iterator: grain.DatasetIterator,
    draw: Callable[[TrainState], tuple[Any, Any]],
    *,
    plan: Plan,
    step_fn: Callable[[TrainState, Any], tuple[TrainState, Mapping[str, jax.Array]]],
    evaluate: Callable[[TrainState], Evaluation],
    checkpoints: Checkpoints,
    record: Mapping[str, Any],
    writer: MetricWriter,
    queries: Callable[[np.ndarray], list[str]],
) -> TrainState:
    """Train from `state` to the end of the plan, or until SIGTERM, and leave a checkpoint either way.

    Args:
      state: fresh, or restored together with the iterator.
      iterator: stands after the state's last batch.
      draw: takes the next batch from it; gives what this host is told of it (its `row`, `notes` and `present`), and the
        batch on the devices.
      plan: how long, how often.
      step_fn: compiled; `(state, device batch) -> (state, float32 scalars)`, among them "loss", "learning_rate",
        "gradient_norm", "skipped" (1 where it left all but `state.step` as it was), "tokens" and "padding". It may
        donate the state.
      evaluate: scores a state.
      checkpoints: of the workdir; a record in it with "evaluation_due" makes a resumed run evaluate first.
      record: what is kept with each checkpoint.
      writer: of metrics.
      queries: turns rows of a batch into query ids, for messages.

    Returns:
      The last state. On SIGTERM, raises SystemExit(0) after saving instead.

    Raises:
      TrainingError: `MAX_SKIPPED` steps in a row were skipped, or the iterator ends early.
      CheckpointError: a checkpoint cannot be written, or the state is not finite.
    """
    step = int(state.step)
    log = _Log(writer, queries, checkpoints)
    due = step == checkpoints.latest and bool(checkpoints.record(step).get("evaluation_due"))

    def save(metrics: Mapping[str, float] | None, *, evaluation_due: bool = False) -> None:
        log.read_all()
        checkpoints.save(state, iterator, {**record, "evaluation_due": evaluation_due}, metrics)

    bar = tqdm(total=plan.steps, initial=step, unit="step", dynamic_ncols=True, disable=jax.process_index() > 0)
    with _sigterm() as stop, bar:
        while True:
            # 1. Evaluate at the end of an epoch (or what the last process left to evaluate), save latest and best.
            if due:
                log.read_all()  # an evaluation waits for the device anyway, and may be long
                try:
                    evaluation = _interruptible(stop, evaluate, state)
                except _EvaluationStopped:
                    save(None, evaluation_due=True)
                    break
                _report(writer, bar, step, plan, evaluation)
                save(evaluation.metrics)
                due = False
                log.restart()
            elif step % plan.steps_per_epoch == 0 and step not in (0, checkpoints.latest):
                save(None)

            # 2. Stop: at the end, or because we were told to.
            if step >= plan.steps:
                break
            if stop.ask(step):
                if step != checkpoints.latest:
                    save(None)
                break

            # 3. One micro-step. Nothing here waits for the device, but batches dealt by length, once a window.
            try:
                told, batch = draw(state)
            except StopIteration:
                raise TrainingError(
                    f"the data end before step {step} of {plan.steps}", "the iterator should repeat without end"
                ) from None
            state, measured = step_fn(state, batch)
            step += 1
            log.add(step, told, measured)
            bar.update()

            # 4. Log what is ready.
            if step % plan.log_every == 0:
                bar.set_postfix(log.write(step), refresh=False)
            if step % plan.steps_per_epoch == 0:
                log.tell_notes()
            due = plan.evaluates(step)

        checkpoints.wait()
        writer.flush()
    if stop.told and (step < plan.steps or due):
        print(
            f"stopped by SIGTERM after step {step} of {plan.steps}; saved to {checkpoints.folder / str(step)}. "
            "The same command goes on from there.",
            file=sys.stderr,
        )
        raise SystemExit(0)
    return state


class _Log:
    """Measurements on their way from the device to the writer."""

    def __init__(self, writer: MetricWriter, queries: Callable[[np.ndarray], list[str]], checkpoints: Checkpoints):
        self._writer, self._queries, self._checkpoints = writer, queries, checkpoints
        self._waiting: deque[tuple[int, np.ndarray, Mapping[str, jax.Array]]] = deque()
        self._read: list[dict[str, float]] = []
        self._skipped: list[tuple[int, list[str]]] = []  # the last steps and their queries, as far as all were skipped
        self._notes, self._noted = NoteCounter(), 0
        self._samples, self._mended = 0, 0
        self._frames = 0
        self._since, self._steps = time.perf_counter(), 0

    def add(self, step: int, told: Any, measured: Mapping[str, jax.Array]) -> None:
        """Take in a step that is under way."""
        self._waiting.append((step, np.asarray(told.row), measured))
        self._notes.add(np.asarray(told.row), np.asarray(told.notes))
        self._frames += int(np.sum(told.present)) * jax.process_count()
        self._samples += len(told.row)
        self._mended += int(np.count_nonzero(told.notes))
        self._steps += 1

    def write(self, step: int) -> dict[str, str]:
        """Write the means since the last time; return what the progress bar shows."""
        self._read_but(LAG)
        if not self._read:
            return {}
        # A skipped step says nothing of loss and gradient; all else is true of it too.
        applied = [each for each in self._read if not each["skipped"]]
        of = {name: applied if name in ("loss", "gradient_norm") else self._read for name in self._read[0]}
        mean = {name: float(np.mean([each[name] for each in steps])) for name, steps in of.items() if steps}
        seconds = time.perf_counter() - self._since
        scalars = {f"train/{name}": value for name, value in mean.items() if name not in ("tokens", "padding")}
        scalars["train/learning_rate"] = self._read[-1]["learning_rate"]
        scalars["train/skipped"] = float(len(self._read) - len(applied))
        scalars |= {
            "data/tokens": mean["tokens"],
            "data/padding": mean["padding"],
            "data/mended": self._mended / self._samples,  # the share that did not fit as it was
            "speed/step_seconds": seconds / self._steps,
            "speed/frames_per_second": self._frames / seconds,
            "speed/tokens_per_second": mean["tokens"] * self._steps / seconds,
            "memory/host_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        }
        if device := jax.local_devices()[0].memory_stats():
            scalars["memory/device_gb"] = device["peak_bytes_in_use"] / 1e9
        self._writer.write_scalars(step, scalars)
        self._read.clear()
        self._samples, self._mended = 0, 0
        self.restart()
        return {"loss": f"{mean.get('loss', np.nan):.3f}", "lr": f"{scalars['train/learning_rate']:.2e}"}

    def tell_notes(self) -> None:
        """Name the queries that did not fit the shapes of a batch, where there are more than the last time."""
        count = sum(map(len, self._notes.rows.values()))
        if count > self._noted:
            for line in self._notes.lines(self._queries):
                logging.warning("training: %s", line)
        self._noted = count

    def restart(self) -> None:
        """Begin to time anew, so that an evaluation does not count as slow steps."""
        self._frames, self._steps, self._since = 0, 0, time.perf_counter()

    def read_all(self) -> None:
        """Wait for every measurement."""
        self._read_but(0)

    def _read_but(self, lag: int) -> None:
        while len(self._waiting) > lag:
            step, rows, measured = self._waiting.popleft()
            values = {name: float(value) for name, value in jax.device_get(dict(measured)).items()}
            self._read.append(values)
            if not values["skipped"]:
                self._skipped.clear()
                continue
            queries = self._queries(rows)
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
        latest, workdir = self._checkpoints.latest, self._checkpoints.folder.parent
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


def _report(writer: MetricWriter, bar: tqdm, step: int, plan: Plan, evaluation: Evaluation) -> None:
    writer.write_scalars(step, {f"eval/{name}": value for name, value in evaluation.metrics.items()})
    writer.write_images(step, {f"samples/{name}": image for name, image in evaluation.images.items()})
    writer.write_texts(step, {f"samples/{name}": text for name, text in evaluation.texts.items()})
    epoch = step // plan.steps_per_epoch
    if not bar.disable:
        bar.write(f"epoch {epoch}/{plan.epochs}  {CRITERION} {evaluation.metrics[CRITERION]:.2f}", file=sys.stderr)


@dataclass
class _Stop:
    told: bool = False
    evaluating: bool = False

    def ask(self, step: int) -> bool:
        """Tell whether to stop before a step; several hosts find out together."""
        self.told = self.told or told_to_stop(step)
        return self.told


@contextmanager
def _sigterm() -> Iterator[_Stop]:
    """Note SIGTERM instead of dying of it.

    Of several hosts none may act on it alone: there jax has taken hold of the signal and tells the others.
    """
    stop = _Stop()
    if jax.process_count() > 1:
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        del number, frame
        stop.told = True
        if stop.evaluating:
            raise _EvaluationStopped

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


def _interruptible(stop: _Stop, evaluate: Callable[[TrainState], Evaluation], state: TrainState) -> Evaluation:
    """Evaluate, unless SIGTERM comes: an evaluation may take longer than one is given to leave."""
    if stop.told:
        raise _EvaluationStopped
    stop.evaluating = True
    try:
        return evaluate(state)
    finally:
        stop.evaluating = False
