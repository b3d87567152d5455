"""Several hosts that work as one: how they meet, what each reads, what they agree on.

Every host runs the same program. The devices of all are one mesh; a batch is shared between the hosts; results come
back whole to each. Files are written by the first host alone, but for checkpoints, of which each writes its own part.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypedDict

import jax
import numpy as np
from jax.experimental import multihost_utils

from calce_jax.errors import UserError
from calce_jax.storage.locks import FileLock, LockError


class DistributedError(UserError):
    """The hosts cannot be joined as described; the message says what is missing."""


class ProcessInfo(TypedDict):
    """Which host this is, as `input_pipeline.make_iterator` takes it."""

    process_index: int
    process_count: int


def initialize_distributed(coordinator: str, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Wait for the other hosts and become one of them; to be called before anything else is asked of jax.

    Args:
      coordinator: "HOST:PORT" of the first host, which listens there; "auto" asks the cluster (Slurm, Open MPI,
        Kubernetes, Cloud TPU) for all three; "" stays alone.
      num_processes: how many there are.
      process_id: which one this is, from 0.

    Raises:
      HostError: some are given and others not, or there is no such host.
      RuntimeError: the others do not come.
    """
    if coordinator == "auto":
        jax.distributed.initialize()
        return
    if not coordinator:
        if num_processes is not None or process_id is not None:
            raise DistributedError("--coordinator: missing", "give HOST:PORT of the first host, or auto")
        return
    if num_processes is None or process_id is None:
        raise DistributedError(
            f"--coordinator={coordinator} needs --hosts (how many) and --host (which one this is, from 0)"
        )
    if not 0 <= process_id < num_processes:
        raise DistributedError(f"--host={process_id}: there are hosts 0 to {num_processes - 1}")
    jax.distributed.initialize(coordinator, num_processes, process_id)


def process_info() -> ProcessInfo:
    """Return which host this is and how many there are."""
    return ProcessInfo(process_index=jax.process_index(), process_count=jax.process_count())


def is_primary() -> bool:
    """Tell whether this is the host that writes."""
    return jax.process_index() == 0


def broadcast_int(value: int) -> int:
    """Return the first host's number on every host."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(value))) if jax.process_count() > 1 else value


def barrier(name: str) -> None:
    """Wait until every host is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextmanager
def one_writer(path: str | Path) -> Iterator[None]:
    """Hold a lock file for all hosts together; the first one takes it, and all stop where it is refused.

    Raises:
      LockError: another run holds it.
      OSError: the file cannot be written.
    """
    with ExitStack() as held:
        refusal: LockError | OSError | None = None
        if is_primary():
            try:
                held.enter_context(FileLock(path))
            except (LockError, OSError) as error:  # raised on all hosts together, or the others would wait
                refusal = error
        if broadcast_int(int(refusal is not None)):
            raise refusal or LockError(f"{path}: the first host cannot take this lock", "see what it says")
        yield


def preemption_requested(step: int) -> bool:
    """Tell whether, one of several hosts having received SIGTERM, this is the step at which all of them stop.

    To be asked once at every step by every host. The hosts agree on a step that none has passed, and it is that step
    alone that this tells of.
    """
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)
