"""A lock file that keeps a second process from writing the same output.

The file holds its owner as JSON: host, process id, and when that process started, so that another process to which the
system gave the same id later is not taken for the owner. A lock whose owner is gone is taken over on the owner's host;
from elsewhere that cannot be told, and the message says which file to remove.
"""

import fcntl
import json
import os
import socket
import subprocess
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType

from calce_jax.errors import UserError

# Where a file system knows no hard links, a lock is empty for a moment: seconds that a reader waits for its content.
PATIENCE, PAUSE = 2.0, 0.05


class LockError(UserError):
    """Another process writes here, or nobody can tell; the message names the lock file, its owner and the remedy."""


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock.

    Fields:
      host: its name.
      namespace: of process ids, which a container has for itself; "" where the system does not tell.
      pid: process id.
      started: boot of the machine and start of the process in it, as text; "" where the system does not tell.
      since: local time at which the lock was taken.
      token: random, differs for every lock taken.
    """

    host: str
    namespace: str
    pid: int
    started: str
    since: str
    token: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


class FileLock:
    """A context in which no other process, and no other `FileLock`, holds the same lock file.

    Args:
      path: the lock file, beside what it guards; its folder is made. It is gone when the context ends.

    Raises:
      LockError: on entering: another process holds it.
      OSError: on entering: the file cannot be written; names it and the remedy.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._mine: Owner | None = None

    def __enter__(self) -> "FileLock":
        mine = _this_process()
        new = self.path.with_name(f"{self.path.name}.{mine.token[:8]}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with new.open("w", encoding="utf-8") as file:
                file.write(json.dumps(asdict(mine)) + "\n")
                file.flush()
                os.fsync(file.fileno())
            while not _created(new, self.path):
                owner = self._owner()
                if owner is None:  # released in between
                    continue
                if not _is_gone(owner, mine):
                    raise LockError(_refusal(self.path, owner, mine))
                if _took_over(self.path, owner, new):
                    break
        except LockError:
            raise
        except OSError as error:
            raise OSError(
                error.errno, f"cannot write {self.path} ({error.strerror}); make room, or choose another place"
            ) from error
        finally:
            with suppress(OSError):
                new.unlink()
        self._mine = mine
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        mine, self._mine = self._mine, None
        # A forked child has a copy of this object, and does not own the lock.
        if mine is None or mine.pid != os.getpid():
            return
        with suppress(OSError):
            if _read(self.path) == mine:
                self.path.unlink()

    def _owner(self) -> Owner | None:
        """Return who holds the lock; None if it was released meanwhile.

        Raises:
          LockError: the file does not say.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return _read(self.path)
            except FileNotFoundError:
                return None
            except (ValueError, TypeError):
                if time.monotonic() > deadline:
                    raise LockError(
                        f"{self.path}: this lock does not say who holds it", "remove it if no process writes here"
                    ) from None
            time.sleep(PAUSE)


def _read(path: Path) -> Owner:
    """Read a lock; raises ValueError or TypeError where it is damaged."""
    owner = Owner(**json.loads(path.read_text(encoding="utf-8")))
    if not isinstance(owner.pid, int) or owner.pid < 1:
        raise ValueError(f"pid: {owner.pid!r}")
    return owner


def _created(new: Path, path: Path) -> bool:
    """Give `new` the name `path` as well, unless something has it."""
    try:
        os.link(new, path)
    except FileExistsError:
        return False
    except OSError:
        # No hard links here: then the lock is created first, and filled afterwards.
        try:
            file = path.open("x", encoding="utf-8")
        except FileExistsError:
            return False
        try:
            with file:
                file.write(new.read_text(encoding="utf-8"))
        except OSError:
            path.unlink()  # a lock that nobody holds
            raise
    return True


def _took_over(path: Path, gone: Owner, new: Path) -> bool:
    """Put `new` in the place of a lock whose owner is gone; return False if another process was quicker."""
    try:
        with path.open(encoding="utf-8") as file:
            # Of several that want it, one replaces the file; to the others it is no longer the file they opened.
            fcntl.flock(file, fcntl.LOCK_EX)
            if not os.path.samestat(os.fstat(file.fileno()), os.stat(path)) or _read(path) != gone:
                return False
            os.replace(new, path)
            return True
    except FileNotFoundError:
        return False


def _is_gone(owner: Owner, mine: Owner) -> bool:
    """Tell whether the owner is known to run no more, as seen from this process."""
    if owner.host != mine.host or owner.namespace != mine.namespace:
        return False
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it is there, and another user's
    started = _started(owner.pid)
    return started is not None and bool(owner.started) and started != owner.started


def _refusal(path: Path, owner: Owner, mine: Owner) -> str:
    here = (owner.host, owner.namespace) == (mine.host, mine.namespace)
    remedy = "wait until it ends, or stop it" if here else f"wait until it ends; if it is gone, remove {path}"
    return f"{path}: {owner} writes here; {remedy}"


def _this_process() -> Owner:
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return Owner(
        host=socket.gethostname(),
        namespace=namespace,
        pid=os.getpid(),
        started=_started(os.getpid()) or "",
        since=datetime.now().astimezone().isoformat(timespec="seconds"),
        token=uuid.uuid4().hex,
    )


def _started(pid: int) -> str | None:
    """Return when a process started, "ended" for one that only waits to be reaped, or None where nobody tells."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        # The second field, the program's name in parentheses, may hold anything.
        status = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None if Path("/proc/self/stat").exists() else _from_ps(pid)
    return "ended" if status[0] in (b"Z", b"X") else f"{boot} {int(status[19])}"


def _from_ps(pid: int) -> str | None:
    try:
        command = ["ps", "-o", "lstart=", "-p", str(pid)]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    except OSError:
        return None
