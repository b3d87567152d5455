"""What a run leaves on disk and how it is found again.

A workdir holds `checkpoints/<step>/`, written by Orbax while training goes on: what was trained and the optimizer's
state by name, the data iterator, and a JSON record (config, git revision, base weights). Frozen weights are not in it.
The latest two steps are kept, and the best by R1_avg; no step holds values that are not finite. Whole models and
adapters also travel as one safetensors file.
"""

import dataclasses
import errno
import math
import os
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
from calce_jax.storage.disk_space import free_bytes

FOLDER = "checkpoints"
CRITERION = "R1_avg"
PART = "trainable/"


class CheckpointError(UserError):
    """A checkpoint cannot be written or read; the message names it and says what to do."""


@dataclasses.dataclass(frozen=True)
class Start:
    """Where the trainables come from, and the folder or file that holds them."""

    kind: Literal["resumed", "given", "base", "fresh"]
    path: Path | None


def starting_point(workdir: Path, given: str = "", base: str = "") -> Start:
    """Decide where to start: this run's latest checkpoint > the given run's > the base weights > fresh ones.

    Args:
      workdir: of this run.
      given: workdir of another run, or "".
      base: safetensors file of the whole model, or "". The frozen weights come from it wherever the trainables do.

    Raises:
      CheckpointError: what is asked for is not there.
    """
    if steps_in(workdir):
        return Start("resumed", workdir)
    if given:
        if not steps_in(Path(given)):
            raise CheckpointError(
                f"config.weights.start: no checkpoint in {Path(given) / FOLDER}",
                "give the workdir of a run that trained",
            )
        return Start("given", Path(given))
    if base:
        if not packaged_path(base).is_file():
            raise CheckpointError(
                f"config.weights.base: no file {base}",
                "put the converted weights there, or leave it out (--config.weights.base=)",
            )
        return Start("base", packaged_path(base))
    return Start("fresh", None)


def steps_in(workdir: Path) -> list[int]:
    """Return the steps of the complete checkpoints in a workdir, ascending."""
    folder = Path(workdir) / FOLDER
    names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal())


class Checkpoints:
    """The checkpoints of one workdir."""

    def __init__(self, workdir: Path):
        self.folder = Path(workdir).absolute() / FOLDER
        policies = ocp.checkpoint_managers
        keep = policies.AnyPreservationPolicy(
            [
                # The one before the latest stays until training has gone on from the latest to another checkpoint.
                policies.LatestN(2),
                policies.BestN(get_metric_fn=_merit, n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        # Orbax writes metrics only where `best_fn` is given; what is kept is up to the policy alone.
        options = ocp.CheckpointManagerOptions(preservation_policy=keep, best_fn=_merit, cleanup_tmp_directories=True)
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
        record: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Save a state; return as soon as it is copied to the host.

        Args:
          state: a `TrainState`.
          iterator: the data iterator, which stands after the state's last batch.
          record: what JSON can hold.
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
                "the same command goes on from " + ("the start" if self.latest is None else f"step {self.latest}"),
            )
        if metrics is not None and not math.isfinite(metrics[CRITERION]):
            metrics = None
        needed = sum(leaf.nbytes for leaf in leaves.values())
        free = free_bytes(self.folder)
        if free < needed:
            raise CheckpointError(
                f"no space left for {self.folder / str(step)}: it takes {needed / 1e6:.1f} MB and {free / 1e6:.1f} MB "
                "are free",
                "make room and run the same command again",
            )
        with self._naming(step, "written"):
            # A state that was saved when a run was stopped is evaluated by the next one and then saved anew.
            if step in self._manager.all_steps():
                self._manager.delete(step)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(leaves),  # pyright: ignore[reportCallIssue]
                    iterator=grain.checkpoint.CheckpointSave(iterator),  # pyright: ignore[reportCallIssue]
                    record=ocp.args.JsonSave(dict(record)),  # pyright: ignore[reportCallIssue]
                ),
                metrics=None if metrics is None else {CRITERION: float(metrics[CRITERION]), "step": float(step)},
            )

    def wait(self) -> None:
        """Wait until what was saved is on disk."""
        with self._naming(self.latest, "written"):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, and stop the writing threads."""
        self.wait()
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """The last saved step."""
        return self._manager.latest_step()

    @property
    def best(self) -> tuple[int, float] | None:
        """The step with the highest R1_avg and its value; the earlier of equals."""
        metrics = {step: self._manager.metrics(step) for step in self._manager.all_steps()}
        scored = [(_merit(m), step) for step, m in metrics.items() if m and math.isfinite(m[CRITERION])]
        return (max(scored)[1], max(scored)[0][0]) if scored else None

    def before(self, step: int) -> int | None:
        """Return the last saved step before another."""
        return max((other for other in self._manager.all_steps() if other < step), default=None)

    def record(self, step: int) -> dict[str, Any]:
        """Return what was recorded with a step."""
        with self._naming(step, "read"):
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
        restored = self._restore(step, {PART + name: leaf for name, leaf in named_leaves(abstract).items()}, part=PART)
        return with_leaves(abstract, {name.removeprefix(PART): leaf for name, leaf in restored.items()})

    def _restore(self, step: int, wanted: Mapping[str, Any], *, part: str = "", **items: Any) -> dict[str, Any]:
        """Restore the leaves whose names begin with `part`, after a look at their shapes."""
        with self._naming(step, "read"):
            saved = self._manager.item_metadata(step)["state"].tree
            there = {name: tuple(leaf.shape) for name, leaf in saved.items() if name.startswith(part)}
            _compare_shapes(there, wanted, self.folder / str(step))
            state = ocp.args.PyTreeRestore(  # pyright: ignore[reportCallIssue]
                dict(wanted),
                restore_args=ocp.checkpoint_utils.construct_restore_args(dict(wanted)),
                partial_restore=bool(part),
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
    def _naming(self, step: int | None, deed: str) -> Iterator[None]:
        """Answer the many errors of the layers below with one that says what to do."""
        try:
            yield
        except CheckpointError:
            raise
        except Exception as error:
            path = self.folder / str(step)
            if getattr(error, "errno", None) == errno.ENOSPC or "no space left" in str(error).lower():
                text = f"no space left while {path} was {deed}; make room and run the same command again"
            else:
                remedy = self._without(step)
                text = f"{path} cannot be {deed}: it is damaged or incomplete; remove it {remedy} ({error})"
            raise CheckpointError(text) from error

    def _without(self, step: int | None) -> str:
        """Return, for messages, what removing a checkpoint leads to."""
        others = [other for other in steps_in(self.folder.parent) if other != step]
        return f"to go on from step {others[-1]}" if others else "to start over"


def save_params(path: Path, params: Any, about: Mapping[str, str] | None = None) -> None:
    """Write parameters to one safetensors file, named by their paths, in the dtypes they have.

    Args:
      path: the file; it is written under another name first.
      params: a pytree of arrays.
      about: strings to keep in the file's header.

    Raises:
      CheckpointError: no space is left.
    """
    path, part = Path(path), Path(f"{path}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        # safetensors writes the memory as it lies, and a device may give arrays whose rows are not one after the other.
        host = {name: np.asarray(jax.device_get(leaf), order="C") for name, leaf in named_leaves(params).items()}
        save_file(host, part, dict(about or {}))
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise CheckpointError(f"{path} cannot be written ({error})", "make room, or choose another place") from error


def load_params(path: Path, abstract: Any) -> Any:
    """Read what `save_params` wrote.

    Args:
      path: the file.
      abstract: a pytree with the same names; its leaves give dtypes and, where they have one, shardings.

    Raises:
      CheckpointError: the file is missing or damaged, or holds other names or shapes (all are listed).
    """
    wanted = named_leaves(abstract)
    loaded = {}
    try:
        with safe_open(path, framework="flax") as file:
            there = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            _compare_shapes(there, wanted, Path(path))
            for name, leaf in wanted.items():
                loaded[name] = _placed(file.get_tensor(name).astype(leaf.dtype), getattr(leaf, "sharding", None))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: it is missing or damaged ({error})", "make it again") from error
    return with_leaves(abstract, loaded)


def _placed(array: jax.Array, sharding: Any) -> jax.Array:
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


def _merit(metrics: Mapping[str, float]) -> Any:
    """Order by R1_avg; of equals the earlier is better, as in the original, which saves only on improvement.

    Earlier versions could save an R1_avg of NaN, which no order holds; it comes last.
    """
    return metrics[CRITERION] if math.isfinite(metrics[CRITERION]) else -math.inf, -metrics["step"]


def _compare_shapes(there: Mapping[str, tuple[int, ...]], wanted: Mapping[str, Any], path: Path) -> None:
    here = {name: tuple(np.shape(leaf)) for name, leaf in wanted.items()}
    wrong = [
        f"{name}: {there.get(name, 'absent')} there, {here.get(name, 'absent')} here"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]
    if wrong:
        raise CheckpointError(
            f"{path} was saved from a model of another size; use the config.model and config.lora that it was "
            "made with:\n  " + "\n  ".join(wrong)
        )
