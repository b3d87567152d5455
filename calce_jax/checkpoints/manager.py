"""Checkpoints of a workdir.

A workdir holds `checkpoints/<step>/`, written by Orbax in the background: the arrays of the `TrainState` by name, the
position of the data iterator, and JSON metadata (config, git revision, base weights) with checksums of all of these.
Frozen weights are not saved. The latest two steps and the best by R1_avg are kept; no step holds values that are not
finite. Checkpoints of earlier versions have no checksums, and are read without.
"""

import errno
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from logging import LogRecord
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging

from calce_jax.checkpoints.checksums import (
    CHECKSUMS_KEY,
    array_checksums,
    json_checksum,
    record_checksum,
    record_with_checksums,
)
from calce_jax.checkpoints.params_file import VERIFY_OFF, CheckpointError, compare_shapes
from calce_jax.checkpoints.workdir import BEST_METRIC, CHECKPOINT_DIR, checkpoint_steps
from calce_jax.distributed.param_names import named_leaves, with_leaves
from calce_jax.storage.disk_space import format_bytes, free_bytes
from calce_jax.storage.verification import verification_enabled

TRAINABLE_PREFIX = "trainable/"


class Checkpoints:
    """Saves and restores the checkpoints of a workdir.

    Args:
      workdir: of the run.
      read_only: for restoring alone: nothing is created, and what another process is writing is left in place.

    Attributes:
      folder: `checkpoints` in the workdir.
    """

    def __init__(self, workdir: Path, *, read_only: bool = False):
        self.folder = Path(workdir).absolute() / CHECKPOINT_DIR
        policies = ocp.checkpoint_managers
        preservation = policies.AnyPreservationPolicy(
            [
                # If the latest turns out to be unusable, training can go on from the one before it.
                policies.LatestN(2),
                policies.BestN(get_metric_fn=_metric_order, n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        # Orbax writes metrics only if `best_fn` is given; the policy alone decides which steps are kept.
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation,
            best_fn=_metric_order,
            create=not read_only,
            cleanup_tmp_directories=not read_only,
        )
        handlers = {
            "state": ocp.PyTreeCheckpointHandler(),
            "iterator": grain.checkpoint.CheckpointHandler(),
            "record": ocp.JsonCheckpointHandler(),
        }
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)
        except ValueError as error:  # the only contents that it reads at once are the metrics of every step
            path = self._damaged_metrics_file()
            raise CheckpointError(
                f"{path} is damaged ({error})", f"remove {path.parent}; the step then counts as not evaluated"
            ) from error

    def save(
        self,
        state: Any,
        iterator: grain.DatasetIterator,
        metadata: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Save a state; returns when it is copied to the host, and the files are written in the background.

        Args:
          state: a `TrainState`.
          iterator: data iterator, positioned after the last batch of the state.
          metadata: JSON values.
          metrics: of this state, with R1_avg; None if it was not evaluated. A state whose R1_avg is not finite is saved
            without metrics, so that it never becomes the best.

        Raises:
          CheckpointError: no space is left, or the state holds values that are not finite. Earlier checkpoints are
            untouched.
        """
        step, leaves = int(state.step), named_leaves(state)
        if wrong := not_finite(leaves):
            raise CheckpointError(
                f"{self.folder / str(step)} is not saved: {_list_names(wrong)} are not finite (NaN or infinite)",
                "the same command goes on from "
                + ("the start" if self.latest_step is None else f"step {self.latest_step}"),
            )
        if metrics is not None and not math.isfinite(metrics[BEST_METRIC]):
            metrics = None
        needed = sum(leaf.nbytes for leaf in leaves.values())
        free = free_bytes(self.folder)
        if free < needed:
            raise CheckpointError(
                f"no space left for {self.folder / str(step)}: it takes {format_bytes(needed)}, and "
                f"{format_bytes(free)} are free",
                "make room and run the same command again",
            )
        with self._translate_errors(step, "written"):
            # A state that was saved unevaluated, when a run was stopped, is saved again after its evaluation.
            if step in self._manager.all_steps():
                self._manager.delete(step)
            saved_metrics = None if metrics is None else {BEST_METRIC: float(metrics[BEST_METRIC]), "step": float(step)}
            record = record_with_checksums(metadata, leaves, iterator.get_state(), saved_metrics)
            with _no_warning_of_metrics():
                self._manager.save(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.PyTreeSave(leaves),  # pyright: ignore[reportCallIssue]
                        iterator=grain.checkpoint.CheckpointSave(iterator),  # pyright: ignore[reportCallIssue]
                        record=ocp.args.JsonSave(record),  # pyright: ignore[reportCallIssue]
                    ),
                    metrics=saved_metrics,
                )

    def wait(self) -> None:
        """Wait until all saves are on disk."""
        with self._translate_errors(self.latest_step, "written"):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for all saves, and stop the writing threads."""
        self.wait()
        self._manager.close()

    @property
    def latest_step(self) -> int | None:
        """The last saved step; None if there is none."""
        return self._manager.latest_step()

    @property
    def best_step_and_metric(self) -> tuple[int, float] | None:
        """The step with the highest R1_avg, and that R1_avg; None if none was evaluated. Ties: see `_metric_order`."""
        metrics = {step: self._read_metrics(step) for step in self._manager.all_steps()}
        scored = [(_metric_order(m), step) for step, m in metrics.items() if m and math.isfinite(m[BEST_METRIC])]
        return (max(scored)[1], max(scored)[0][0]) if scored else None

    def before(self, step: int) -> int | None:
        """Return the last saved step before `step`, or None."""
        return max((other for other in self._manager.all_steps() if other < step), default=None)

    def read_metadata(self, step: int) -> dict[str, Any]:
        """Return the metadata saved with a step, as it was written; see `calce_jax.config_compat` for old configs.

        Raises:
          CheckpointError: they are damaged.
        """
        metadata = dict(self._read_record(step))
        metadata.pop(CHECKSUMS_KEY, None)
        return metadata

    def restore(self, step: int, abstract: Any, iterator: grain.DatasetIterator) -> Any:
        """Return the state saved at a step, and move the iterator to its saved position.

        Args:
          step: a saved step.
          abstract: a `TrainState` of `jax.ShapeDtypeStruct`s with the shardings to restore into, on any mesh.
          iterator: built with the same config as the saved one.

        Raises:
          CheckpointError: the checkpoint is of a model of another size (all differing shapes are listed), damaged, or
            holds values that are not finite, which earlier versions could save.
        """
        return with_leaves(abstract, self._restore(step, named_leaves(abstract), iterator=iterator))

    def restore_trainable(self, step: int, abstract: Any) -> Any:
        """Return the trainables saved at a step alone; arguments and errors as for `restore`."""
        restored = self._restore(
            step,
            {TRAINABLE_PREFIX + name: leaf for name, leaf in named_leaves(abstract).items()},
            prefix=TRAINABLE_PREFIX,
        )
        return with_leaves(abstract, {name.removeprefix(TRAINABLE_PREFIX): leaf for name, leaf in restored.items()})

    def _restore(
        self, step: int, abstract_leaves: Mapping[str, Any], *, prefix: str = "", iterator: Any = None
    ) -> dict[str, Any]:
        """Restore the leaves whose names begin with `prefix`, if their shapes are those of `abstract_leaves`."""
        checksums = self._read_record(step).get(CHECKSUMS_KEY, {})
        with self._translate_errors(step, "read"):
            saved = self._manager.item_metadata(step)["state"].tree
            saved_shapes = {name: tuple(leaf.shape) for name, leaf in saved.items() if name.startswith(prefix)}
            compare_shapes(saved_shapes, abstract_leaves, self.folder / str(step))
            items = {}
            if iterator is not None:
                items["iterator"] = grain.checkpoint.CheckpointRestore(iterator)  # pyright: ignore[reportCallIssue]
            state = ocp.args.PyTreeRestore(  # pyright: ignore[reportCallIssue]
                dict(abstract_leaves),
                restore_args=ocp.checkpoint_utils.construct_restore_args(dict(abstract_leaves)),
                partial_restore=bool(prefix),
            )
            restored = self._manager.restore(step, args=ocp.args.Composite(state=state, **items))["state"]
        if verification_enabled():
            expected, actual = checksums.get("state", {}), array_checksums(restored)
            changed = [name for name in actual if expected.get(name, actual[name]) != actual[name]]
            # Each host has a position of its own; the metadata are those of the first.
            if iterator is not None and jax.process_index() == 0 and "iterator" in checksums:
                changed += [] if json_checksum(iterator.get_state()) == checksums["iterator"] else ["iterator"]
            self._refuse_changed(step, changed)
        if wrong := not_finite(restored):
            path = self.folder / str(step)
            raise CheckpointError(
                f"{path} cannot be used: {_list_names(wrong)} are not finite (NaN or infinite), which earlier versions "
                "could save",
                f"remove {path} {self._without(step)}",
            )
        return restored

    def _read_record(self, step: int) -> dict[str, Any]:
        """Return the metadata saved with a step, and the checksums; {} for what other programs saved without."""
        with self._translate_errors(step, "read"):
            record = self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]
            if not isinstance(record, dict):
                raise ValueError(f"record/metadata holds no JSON object but {record!r:.60}")
        checksums = record.get(CHECKSUMS_KEY)
        if verification_enabled() and checksums is not None and checksums.get("record") != record_checksum(record):
            self._refuse_changed(step, ["record"])
        return record

    def _read_metrics(self, step: int) -> dict[str, Any] | None:
        with self._translate_errors(step, "read"):
            metrics = self._manager.metrics(step)
        if verification_enabled():
            expected = self._read_record(step).get(CHECKSUMS_KEY, {}).get("metrics")
            if expected not in (None, json_checksum(metrics)):
                self._refuse_changed(step, ["metrics"])
        return metrics

    def _refuse_changed(self, step: int, parts: list[str]) -> None:
        """Raise if there are parts of a checkpoint, arrays or others, that are not what was saved."""
        if parts:
            path = self.folder / str(step)
            raise CheckpointError(
                f"{path} is damaged: {_list_names(parts)} differ from the checksums that were saved with them",
                f"remove it {self._without(step)} ({VERIFY_OFF})",
            )

    def _damaged_metrics_file(self) -> Path:
        """Return the first file of metrics that is not a JSON object; the folder if all are."""
        for path in sorted(self.folder.glob("*/metrics/metrics")):
            try:
                if isinstance(json.loads(path.read_bytes()), dict):
                    continue
            except ValueError:
                pass
            return path
        return self.folder

    @contextmanager
    def _translate_errors(self, step: int | None, action: str) -> Iterator[None]:
        """Raise errors of Orbax, TensorStore and the file system as CheckpointError with a remedy."""
        try:
            yield
        except CheckpointError:
            raise
        except Exception as error:
            if jax.process_count() > 1 and isinstance(error, jax.errors.JaxRuntimeError):
                raise  # another host was lost while all wait for each other; nothing is damaged
            path = self.folder / str(step)
            if getattr(error, "errno", None) == errno.ENOSPC or "no space left" in str(error).lower():
                reason, remedy = f"no space left while {path} was {action}", "make room and run the same command again"
            else:
                reason = f"{path} cannot be {action}: it is damaged or incomplete"
                # TensorStore describes itself on many lines.
                remedy = f"remove it {self._without(step)} ({' '.join(str(error).split()):.200})"
            raise CheckpointError(reason, remedy) from error

    def _without(self, step: int | None) -> str:
        """Return, for messages, what happens after a checkpoint is removed."""
        others = [other for other in checkpoint_steps(self.folder.parent) if other != step]
        return f"to go on from step {others[-1]}" if others else "to start over"


def not_finite(leaves: Mapping[str, Any]) -> list[str]:
    """Return the names of the floating-point arrays that hold NaN or infinity; waits for the device."""
    floats = {name: leaf for name, leaf in leaves.items() if jnp.issubdtype(leaf.dtype, jnp.inexact)}
    return [name for name, finite in jax.device_get(_all_finite(floats)).items() if not finite]


@jax.jit
def _all_finite(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: jnp.isfinite(leaf).all() for name, leaf in leaves.items()}


def _list_names(names: list[str]) -> str:
    """Return the first three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more arrays" if len(names) > 3 else "")


@contextmanager
def _no_warning_of_metrics() -> Iterator[None]:
    """Leave out Orbax's warning of a step without metrics, which is one that was not evaluated."""

    def is_other(record: LogRecord) -> bool:
        return "did not provide metrics" not in record.getMessage()

    logger = logging.get_absl_logger()
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def _metric_order(metrics: Mapping[str, float]) -> Any:
    """Return a sort key: R1_avg, then the earlier step, since the original saves only on improvement.

    Of steps that got nothing right, R1_avg 0, the later is better: it has learnt more. An R1_avg of NaN, which earlier
    versions could save, sorts lowest.
    """
    score, step = metrics[BEST_METRIC], metrics["step"]
    return score if math.isfinite(score) else -math.inf, -step if score > 0 else step
