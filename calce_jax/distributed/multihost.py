"""Several hosts (jax processes) in one run: initialisation, barriers, values that all hosts agree on, locks.

Every host runs the same program. The devices of all hosts form one mesh, each host reads its part of a batch, and every
host gets all results. Only the first host writes files, except for checkpoints, of which each host writes its shards.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypedDict

import jax
import numpy as np
from jax.experimental import multihost_utils

from calce_jax.errors import LostHostError, OneHostError, UsageError, UserError
from calce_jax.storage.locks import FileLock, LockError

# JAX ends the others when one host has been silent for so long. Longer than a busy machine delays a heartbeat thread.
HEARTBEAT_TIMEOUT_S = 30
# The end of the first host ends the others at once: if they have an error of their own, they may say it before.
FIRST_HOST_LINGERS_S = 2


class DistributedError(UserError):
    """The description of the hosts is incomplete or contradictory; the message names the flag."""


class ProcessInfo(TypedDict):
    """Index and number of hosts, as keyword arguments of `calce_jax.input_pipeline.batches.make_iterator`."""

    process_index: int
    process_count: int


def initialize_distributed(coordinator: str, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Connect to the other hosts; must be called before any other use of jax.

    Args:
      coordinator: "HOST:PORT" of the first host, which listens there; "auto" reads all three from the cluster (Slurm,
        Open MPI, Kubernetes, Cloud TPU); "" is a single host.
      num_processes: number of hosts.
      process_id: index of this host, from 0.

    Raises:
      DistributedError: some arguments are missing, `process_id` is out of range, or the hosts do not connect in time.
    """
    if coordinator == "auto":
        _connect()
        return
    if not coordinator:
        if num_processes is not None or process_id is not None:
            raise DistributedError("--coordinator: missing", "give HOST:PORT of the first host, or auto")
        return
    if num_processes is None or process_id is None:
        raise DistributedError(
            f"--coordinator={coordinator} needs --hosts (number of hosts) and --host (index of this one, from 0)"
        )
    if not 0 <= process_id < num_processes:
        raise DistributedError(f"--host: must be in [0, {num_processes - 1}], got {process_id}")
    _connect(coordinator, num_processes, process_id)


def _connect(*arguments: Any) -> None:
    try:
        jax.distributed.initialize(*arguments, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S)
    except (RuntimeError, ValueError) as error:
        reason = f"the hosts did not connect: {_first_line(error)}"
        raise DistributedError(reason, "start the same command on every host, and check --coordinator") from error


@contextmanager
def host_errors() -> Iterator[None]:
    """Turn the failure of a computation over several hosts, or of one of them, into an error that ends the process.

    When the first host is lost, JAX ends the others itself, mostly before they could say anything. A process that ends
    in the ordinary way would wait for the others, and they for it.

    Raises:
      LostHostError: a computation failed, and there are other hosts.
      OneHostError: this host has an error, and there are other hosts.
    """
    try:
        yield
    except UsageError:  # of the command line, which is the same on all hosts
        raise
    except (UserError, OSError, ValueError) as error:
        # Of a single host nothing is asked: that would start its devices, in a command that has failed before.
        if not jax.distributed.is_initialized() or jax.process_count() == 1:
            raise
        if is_primary():
            time.sleep(FIRST_HOST_LINGERS_S)
        reason, remedy = (error.reason, error.remedy) if isinstance(error, UserError) else (str(error), "")
        raise OneHostError(reason, remedy) from error
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        raise LostHostError(
            f"a computation over all hosts failed, most likely since another host has ended ({_first_line(error)})",
            "see its messages, and run the same command on every host again",
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def process_info() -> ProcessInfo:
    """Return the index of this host and the number of hosts."""
    return ProcessInfo(process_index=jax.process_index(), process_count=jax.process_count())


def is_primary() -> bool:
    """Return whether this is the first host, the one that writes files."""
    return jax.process_index() == 0


def broadcast_int(value: int) -> int:
    """Return the first host's `value` on every host; every host must call it."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(value))) if jax.process_count() > 1 else value


def barrier(name: str) -> None:
    """Wait until every host has called it with the same name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextmanager
def one_writer(path: str | Path) -> Iterator[None]:
    """Hold a lock file for all hosts: the first host takes it, and every host raises if it cannot.

    Raises:
      LockError: another run holds the lock.
      OSError: the file cannot be written.
    """
    with ExitStack() as stack:
        lock_error: LockError | OSError | None = None
        if is_primary():
            try:
                stack.enter_context(FileLock(path))
            except (LockError, OSError) as error:  # raised on all hosts together, or the others would wait
                lock_error = error
        if broadcast_int(int(lock_error is not None)):
            raise lock_error or LockError(f"{path}: the first host cannot take this lock", "see its error message")
        yield


def preemption_requested(step: int) -> bool:
    """Return whether all hosts stop at this step, because one of them received SIGTERM; False on a single host.

    Every host must call it once at every step. The hosts agree on a step that none has passed, and only for that step
    it returns True.
    """
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)
