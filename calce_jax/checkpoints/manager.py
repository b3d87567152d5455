"""What a run leaves on disk and how it is found again.

A workdir holds `checkpoints/<step>/`, written by Orbax while training goes on: what was trained and the optimizer's
state by name, the data iterator, and a JSON record (config, git revision, base weights). Frozen weights are not in it.
The latest two steps are kept, and the best by R1_avg; no step holds values that are not finite. Whole models and
adapters also travel as one safetensors file.
"""

import dataclasses
import errno
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import grain
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from calce_jax.config import packaged_path
from calce_jax.distributed.param_names import named_leaves, with_leaves
from calce_jax.errors import UserError
from calce_jax.storage.atomic_files import atomic_write
from calce_jax.storage.disk_space import free_bytes

CHECKPOINT_DIR = "checkpoints"
BEST_METRIC = "R1_avg"
TRAINABLE_PREFIX = "trainable/"


class CheckpointError(UserError):
    """A checkpoint cannot be written or read; the message names it and says what to do."""


@dataclasses.dataclass(frozen=True)
class InitSource:
    """Where the trainables come from, and the folder or file that holds them."""

    kind: Literal["resumed", "given", "base", "fresh"]
    path: Path | None


def resolve_init(workdir: Path, other_run: str = "", base: str = "") -> InitSource:
    """Decide where to start: this run's latest checkpoint > the given run's > the base weights > fresh ones.

    Args:
      workdir: of this run.
      other_run: workdir of another run, or "".
      base: safetensors file of the whole model, or "". The frozen weights come from it wherever the trainables do.

    Raises:
      CheckpointError: what is asked for is not there.
    """
    if checkpoint_steps(workdir):
        return InitSource("resumed", workdir)
    if other_run:
        if not checkpoint_steps(Path(other_run)):
            raise CheckpointError(
                f"config.weights.start: no checkpoint in {Path(other_run) / CHECKPOINT_DIR}",
                "give the workdir of a run that trained",
            )
        return InitSource("given", Path(other_run))
    if base:
        if not packaged_path(base).is_file():
            raise CheckpointError(
                f"config.weights.base: no file {base}",
                "put the converted weights there, or leave it out (--config.weights.base=)",
            )
        return InitSource("base", packaged_path(base))
    return InitSource("fresh", None)


def checkpoint_steps(workdir: Path) -> list[int]:
    """Return the steps of the complete checkpoints in a workdir, ascending."""
    folder = Path(workdir) / CHECKPOINT_DIR
    names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal())


class Checkpoints:
    """The checkpoints of one workdir."""

    def __init__(self, workdir: Path):
        self.folder = Path(workdir).absolute() / CHECKPOINT_DIR
        policies = ocp.checkpoint_managers
        preservation = policies.AnyPreservationPolicy(
            [
                # The one before the latest stays until training has gone on from the latest to another checkpoint.
                policies.LatestN(2),
                policies.BestN(get_metric_fn=_metric_order, n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        # Orbax writes metrics only where `best_fn` is given; what is kept is up to the policy alone.
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation, best_fn=_metric_order, cleanup_tmp_directories=True
        )
        handlers = {
            "state": ocp.PyTreeCheckpointHandler(),
            "iterator": grain.checkpoint.CheckpointHandler(),
            "record": ocp.JsonCheckpointHandler(),
        }
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def save(
        self,
        state: Any,
        iterator: grain.DatasetIterator,
        metadata: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Save a state; return as soon as it is copied to the host.

        Args:
          state: a `TrainState`.
          iterator: the data iterator, which stands after the state's last batch.
          metadata: what JSON can hold.
          metrics: of this state, with R1_avg; none where it was not evaluated. An R1_avg that is not finite counts as
            none, so that such a state never becomes the best.

        Raises:
          CheckpointError: no space is left, or the state holds values that are not finite. The checkpoints that were
            complete before are untouched.
        """
        step, leaves = int(state.step), named_leaves(state)
        if wrong := not_finite(leaves):
            raise CheckpointError(
                f"{self.folder / str(step)} is not saved: {_first(wrong)} are not finite (NaN or infinite)",
                "the same command goes on from "
                + ("the start" if self.latest_step is None else f"step {self.latest_step}"),
            )
        if metrics is not None and not math.isfinite(metrics[BEST_METRIC]):
            metrics = None
        needed = sum(leaf.nbytes for leaf in leaves.values())
        free = free_bytes(self.folder)
        if free < needed:
            raise CheckpointError(
                f"no space left for {self.folder / str(step)}: it takes {needed / 1e6:.1f} MB and {free / 1e6:.1f} MB "
                "are free",
                "make room and run the same command again",
            )
        with self._translate_errors(step, "written"):
            # A state that was saved when a run was stopped is evaluated by the next one and then saved anew.
            if step in self._manager.all_steps():
                self._manager.delete(step)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(leaves),  # pyright: ignore[reportCallIssue]
                    iterator=grain.checkpoint.CheckpointSave(iterator),  # pyright: ignore[reportCallIssue]
                    record=ocp.args.JsonSave(dict(metadata)),  # pyright: ignore[reportCallIssue]
                ),
                metrics=None if metrics is None else {BEST_METRIC: float(metrics[BEST_METRIC]), "step": float(step)},
            )

    def wait(self) -> None:
        """Wait until what was saved is on disk."""
        with self._translate_errors(self.latest_step, "written"):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, and stop the writing threads."""
        self.wait()
        self._manager.close()

    @property
    def latest_step(self) -> int | None:
        """The last saved step."""
        return self._manager.latest_step()

    @property
    def best_step_and_metric(self) -> tuple[int, float] | None:
        """The step with the highest R1_avg and its value; the earlier of equals."""
        metrics = {step: self._manager.metrics(step) for step in self._manager.all_steps()}
        scored = [(_metric_order(m), step) for step, m in metrics.items() if m and math.isfinite(m[BEST_METRIC])]
        return (max(scored)[1], max(scored)[0][0]) if scored else None

    def before(self, step: int) -> int | None:
        """Return the last saved step before another."""
        return max((other for other in self._manager.all_steps() if other < step), default=None)

    def read_metadata(self, step: int) -> dict[str, Any]:
        """Return what was recorded with a step."""
        with self._translate_errors(step, "read"):
            return self._manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore()))["record"]

    def restore(self, step: int, abstract: Any, iterator: grain.DatasetIterator) -> Any:
        """Return the state saved at a step, on the devices that `abstract` names, and move the iterator to its place.

        Args:
          step: one of the saved steps.
          abstract: a `TrainState` of `jax.ShapeDtypeStruct`s with shardings, on whatever mesh.
          iterator: built as the saved one was.

        Raises:
          CheckpointError: it was saved from a model of another size (all differing shapes are listed), is damaged, or
            holds values that are not finite, which earlier versions could save.
        """
        restored = self._restore(
            step,
            named_leaves(abstract),
            iterator=grain.checkpoint.CheckpointRestore(iterator),  # pyright: ignore[reportCallIssue]
        )
        return with_leaves(abstract, restored)

    def restore_trainable(self, step: int, abstract: Any) -> Any:
        """Return only what was trained, for another stage or for inference; arguments and errors as for `restore`."""
        restored = self._restore(
            step,
            {TRAINABLE_PREFIX + name: leaf for name, leaf in named_leaves(abstract).items()},
            prefix=TRAINABLE_PREFIX,
        )
        return with_leaves(abstract, {name.removeprefix(TRAINABLE_PREFIX): leaf for name, leaf in restored.items()})

    def _restore(
        self, step: int, abstract_leaves: Mapping[str, Any], *, prefix: str = "", **items: Any
    ) -> dict[str, Any]:
        """Restore the leaves whose names begin with `prefix`, after a look at their shapes."""
        with self._translate_errors(step, "read"):
            saved = self._manager.item_metadata(step)["state"].tree
            saved_shapes = {name: tuple(leaf.shape) for name, leaf in saved.items() if name.startswith(prefix)}
            _compare_shapes(saved_shapes, abstract_leaves, self.folder / str(step))
            state = ocp.args.PyTreeRestore(  # pyright: ignore[reportCallIssue]
                dict(abstract_leaves),
                restore_args=ocp.checkpoint_utils.construct_restore_args(dict(abstract_leaves)),
                partial_restore=bool(prefix),
            )
            restored = self._manager.restore(step, args=ocp.args.Composite(state=state, **items))["state"]
        if wrong := not_finite(restored):
            path = self.folder / str(step)
            raise CheckpointError(
                f"{path} cannot be used: {_first(wrong)} are not finite (NaN or infinite), which earlier versions could "
                "save",
                f"remove {path} {self._without(step)}",
            )
        return restored

    @contextmanager
    def _translate_errors(self, step: int | None, action: str) -> Iterator[None]:
        """Answer the many errors of the layers below with one that says what to do."""
        try:
            yield
        except CheckpointError:
            raise
        except Exception as error:
            path = self.folder / str(step)
            if getattr(error, "errno", None) == errno.ENOSPC or "no space left" in str(error).lower():
                text = f"no space left while {path} was {action}; make room and run the same command again"
            else:
                remedy = self._without(step)
                text = f"{path} cannot be {action}: it is damaged or incomplete; remove it {remedy} ({error})"
            raise CheckpointError(text) from error

    def _without(self, step: int | None) -> str:
        """Return, for messages, what removing a checkpoint leads to."""
        others = [other for other in checkpoint_steps(self.folder.parent) if other != step]
        return f"to go on from step {others[-1]}" if others else "to start over"


def save_params(path: Path, params: Any, metadata: Mapping[str, str] | None = None) -> None:
    """Write parameters to one safetensors file, named by their paths, in the dtypes they have.

    Args:
      path: the file; it is written under another name, then renamed.
      params: a pytree of arrays.
      metadata: strings to keep in the file's header.

    Raises:
      CheckpointError: no space is left.
    """
    # safetensors writes memory as it is, and arrays from a device may not be in C order.
    host = {name: np.asarray(jax.device_get(leaf), order="C") for name, leaf in named_leaves(params).items()}
    try:
        with atomic_write(path) as partial_path:
            save_file(host, partial_path, dict(metadata or {}))
    except (OSError, SafetensorError) as error:
        reason = f"{path} cannot be written ({error.__cause__ or error})"
        raise CheckpointError(reason, "make room, or choose another place") from error


def load_params(path: Path, abstract: Any) -> Any:
    """Read what `save_params` wrote.

    Args:
      path: the file.
      abstract: a pytree with the same names; its leaves give dtypes and, where they have one, shardings.

    Raises:
      CheckpointError: the file is missing or damaged, or holds other names or shapes (all are listed).
    """
    abstract_leaves = named_leaves(abstract)
    loaded = {}
    try:
        with safe_open(path, framework="flax") as file:
            saved_shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            _compare_shapes(saved_shapes, abstract_leaves, Path(path))
            for name, leaf in abstract_leaves.items():
                loaded[name] = _put_on_devices(
                    file.get_tensor(name).astype(leaf.dtype), getattr(leaf, "sharding", None)
                )
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: it is missing or damaged ({error})", "make it again") from error
    return with_leaves(abstract, loaded)


def _put_on_devices(array: jax.Array, sharding: Any) -> jax.Array:
    """Put an array that every host has onto the devices of all; each host puts only its own parts."""
    if sharding is None:
        return array
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, sharding, lambda part: host[part])


def not_finite(leaves: Mapping[str, Any]) -> list[str]:
    """Return the names of the floating-point arrays that hold NaN or an infinity; waits for the device."""
    floats = {name: leaf for name, leaf in leaves.items() if jnp.issubdtype(leaf.dtype, jnp.inexact)}
    return [name for name, finite in jax.device_get(_all_finite(floats)).items() if not finite]


@jax.jit
def _all_finite(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: jnp.isfinite(leaf).all() for name, leaf in leaves.items()}


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more arrays" if len(names) > 3 else "")


def _metric_order(metrics: Mapping[str, float]) -> Any:
    """Order by R1_avg; of equals the earlier is better, as in the original, which saves only on improvement.

    Earlier versions could save an R1_avg of NaN, which no order holds; it comes last.
    """
    return metrics[BEST_METRIC] if math.isfinite(metrics[BEST_METRIC]) else -math.inf, -metrics["step"]


def _compare_shapes(saved: Mapping[str, tuple[int, ...]], abstract_leaves: Mapping[str, Any], path: Path) -> None:
    expected = {name: tuple(np.shape(leaf)) for name, leaf in abstract_leaves.items()}
    mismatches = [
        f"{name}: {saved.get(name, 'absent')} there, {expected.get(name, 'absent')} here"
        for name in sorted(saved.keys() | expected.keys())
        if saved.get(name) != expected.get(name)
    ]
    if mismatches:
        raise CheckpointError(
            f"{path} was saved from a model of another size; use the config.model and config.lora that it was "
            "made with:\n  " + "\n  ".join(mismatches)
        )
