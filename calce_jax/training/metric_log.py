"""Metrics of training steps: from the device to the metric writer, and the end of a run whose steps are not finite."""

import math
import resource
import time
from collections import deque
from collections.abc import Callable, Mapping

import jax
import numpy as np
from absl import logging

from calce_jax.checkpoints.manager import Checkpoints
from calce_jax.errors import UserError
from calce_jax.inference.length_grouping import RowInfo
from calce_jax.input_pipeline.row_flags import RowFlagCounter
from calce_jax.training.metric_writer import MetricWriter
from calce_jax.training.utilization import Utilization

# The metrics of the last steps stay on the device when a log is written, so that fetching the others does not wait.
METRICS_LAG_STEPS = 2
# A run ends after so many skipped steps in a row: that is more than one bad batch, and nothing is learnt.
MAX_SKIPPED = 5


class TrainingError(UserError):
    """Training cannot go on; the message names the step and the reason."""


class MetricLog:
    """Collects the metrics of dispatched steps and writes their means.

    Args:
      writer: of scalars.
      query_ids: turns rows of the queries table into query ids, for messages.
      checkpoints: of the run, for messages.
      utilization: relates steps to the peak of the devices; None if that is not known.
    """

    def __init__(
        self,
        writer: MetricWriter,
        query_ids: Callable[[np.ndarray], list[str]],
        checkpoints: Checkpoints,
        utilization: Utilization | None = None,
    ):
        self._writer, self._query_ids, self._checkpoints = writer, query_ids, checkpoints
        self._utilization = utilization
        self._pending: deque[tuple[int, np.ndarray, Mapping[str, jax.Array]]] = deque()
        self._fetched: list[dict[str, float]] = []
        self._skipped: list[tuple[int, list[str]]] = []  # the latest steps and their query ids, if all were skipped
        self._flag_counter, self._num_reported_flags = RowFlagCounter(), 0
        self._num_rows, self._num_flagged_rows = 0, 0
        self._num_frames = 0
        self._written_loss, self._rewards_were_equal = math.nan, False
        self._start_time, self._num_steps = time.perf_counter(), 0

    @property
    def loss(self) -> float:
        """Mean loss of the steps fetched since the last `write`, else the one it wrote; without skipped steps."""
        losses = [values["loss"] for values in self._fetched if not values["skipped"]]
        return float(np.mean(losses)) if losses else self._written_loss

    def add(self, step: int, row_info: RowInfo, metrics: Mapping[str, jax.Array]) -> None:
        """Add a dispatched step; its metrics are not fetched yet.

        Args:
          step: micro-steps including this one.
          row_info: numpy arrays (B,) of this host's rows.
          metrics: float32 scalars, those of `calce_jax.training.train_step.make_step`.
        """
        self._pending.append((step, row_info.example_index, metrics))
        self._flag_counter.add(row_info.example_index, row_info.row_flags)
        self._num_frames += int(np.sum(row_info.num_frames)) * jax.process_count()
        self._num_rows += len(row_info.example_index)
        self._num_flagged_rows += int(np.count_nonzero(row_info.row_flags))
        self._num_steps += 1

    def write(self, step: int) -> dict[str, str]:
        """Write the means since the last call, except of the last `METRICS_LAG_STEPS` steps.

        Returns:
          Loss, learning rate and, if known, reward and MFU for the console; {} if no step was fetched.

        Raises:
          TrainingError: `MAX_SKIPPED` steps in a row were skipped.
        """
        self._fetch_until(METRICS_LAG_STEPS)
        if not self._fetched:
            return {}
        # The loss and the gradient of a skipped step are not finite; its other metrics are valid.
        applied = [values for values in self._fetched if not values["skipped"]]
        steps_of = {name: applied if name in ("loss", "gradient_norm") else self._fetched for name in self._fetched[0]}
        mean = {name: float(np.mean([values[name] for values in steps])) for name, steps in steps_of.items() if steps}
        seconds = time.perf_counter() - self._start_time
        # TensorBoard sorts groups, capitals first: "Loss" is above "data" and "eval".
        scalars = {"Loss/train": mean["loss"]} if "loss" in mean else {}
        scalars |= {f"train/{name}": value for name, value in mean.items() if name not in ("loss", "tokens", "padding")}
        scalars["train/learning_rate"] = self._fetched[-1]["learning_rate"]
        scalars["train/skipped"] = float(len(self._fetched) - len(applied))
        scalars |= {
            "data/tokens": mean["tokens"],
            "data/padding": mean["padding"],
            "data/mended": self._num_flagged_rows / self._num_rows,  # the share of rows with any flag
            "speed/step_seconds": seconds / self._num_steps,
            "speed/frames_per_second": self._num_frames / seconds,
            "speed/tokens_per_second": mean["tokens"] * self._num_steps / seconds,
            "memory/host_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        }
        console = {}
        if "reward" in mean:
            console["reward"] = f"{mean['reward']:.3f}"
            self._warn_of_equal_rewards(step, are_equal=mean["equal"] == 1.0)
        if self._utilization is not None:
            mfu = self._utilization.mfu(
                frames=self._num_frames / self._num_steps, tokens=mean["tokens"], step_seconds=seconds / self._num_steps
            )
            scalars["speed/mfu"], console["mfu"] = mfu, f"{mfu:.1%}"
        if device := jax.local_devices()[0].memory_stats():
            scalars["memory/device_gb"] = device["peak_bytes_in_use"] / 1e9
        self._writer.write_scalars(step, scalars)
        self._written_loss = mean.get("loss", math.nan)
        self._fetched.clear()
        self._num_rows, self._num_flagged_rows = 0, 0
        self.reset_timer()
        return {"loss": f"{self._written_loss:.3f}", "lr": f"{scalars['train/learning_rate']:.2e}"} | console

    def _warn_of_equal_rewards(self, step: int, *, are_equal: bool) -> None:
        """Warn, once for each time it begins, that the rewards of the steps since the last log had no gradient."""
        if are_equal and not self._rewards_were_equal:
            logging.warning(
                "training: no gradient from rewards: in all steps before step %d every sampled answer has the reward "
                "of the true one; raise config.reward.temperature or config.reward.rollouts, or stop",
                step,
            )
        self._rewards_were_equal = are_equal

    def report_row_flags(self) -> None:
        """Log the queries with row flags, by flag, if there are more than at the last call."""
        count = sum(map(len, self._flag_counter.rows.values()))
        if count > self._num_reported_flags:
            for line in self._flag_counter.summary_lines(self._query_ids):
                logging.warning("training: %s", line)
        self._num_reported_flags = count

    def reset_timer(self) -> None:
        """Restart the clock of step time and throughput, so that an evaluation does not count."""
        self._num_frames, self._num_steps, self._start_time = 0, 0, time.perf_counter()

    def fetch_all(self) -> None:
        """Fetch the metrics of all steps; waits for the device.

        Raises:
          TrainingError: `MAX_SKIPPED` steps in a row were skipped.
        """
        self._fetch_until(0)

    def _fetch_until(self, max_pending: int) -> None:
        while len(self._pending) > max_pending:
            step, rows, metrics = self._pending.popleft()
            values = {name: float(value) for name, value in jax.device_get(dict(metrics)).items()}
            self._fetched.append(values)
            if not values["skipped"]:
                self._skipped.clear()
                continue
            query_ids = self._query_ids(rows)
            logging.warning(
                "training: step %d was skipped: its loss is %g and its gradient norm %g; its queries are %s",
                step,
                values["loss"],
                values["gradient_norm"],
                ", ".join(query_ids),
            )
            self._skipped.append((step, query_ids))
            if len(self._skipped) == MAX_SKIPPED:
                raise self._skipped_error()

    def _skipped_error(self) -> TrainingError:
        """Return the error after `MAX_SKIPPED` skipped steps; its remedy depends on the checkpoints there are."""
        steps = "; ".join(f"step {step}: {', '.join(query_ids)}" for step, query_ids in self._skipped)
        latest, workdir = self._checkpoints.latest_step, self._checkpoints.folder.parent
        remedy = "correct their videos, captions and windows; the same command then "
        if latest is None:
            remedy += (
                "starts anew, since no checkpoint was saved. If it ends here again, lower config.schedule.peak in "
                "another --workdir"
            )
        else:
            remedy += f"goes on from step {latest}, whose values are finite. If it ends here again, "
            if (before := self._checkpoints.before(latest)) is not None:
                remedy += f"remove {self._checkpoints.folder / str(latest)} to go on from step {before}, or "
            remedy += f"train in another --workdir with config.weights.start={workdir} and a lower config.schedule.peak"
        return TrainingError(
            f"{MAX_SKIPPED} steps in a row had a loss or a gradient that is not finite and were skipped; their queries "
            f"are {steps}",
            remedy,
        )
