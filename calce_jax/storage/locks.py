"""A lock file that keeps a second process from writing the same output.

The file holds its owner as JSON: host, process id, and the start time of that process, so that a later process with the
same id is not taken for the owner. A lock whose owner has ended is taken over on the owner's host; another host cannot
check that, and the message says which file to remove.
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
from calce_jax.storage.atomic_files import write_error

# On a file system without hard links a new lock is empty for a moment: for so long a reader waits for its content.
READ_TIMEOUT_S, POLL_INTERVAL_S = 2.0, 0.05


class LockError(UserError):
    """Another process holds the lock, or its owner is unknown; the message names the file, the owner and the remedy."""


@dataclass(frozen=True)
class Owner:
    """The process that holds a lock.

    Fields:
      host: host name.
      namespace: of process ids (a container has its own); "" if the system has none.
      pid: process id.
      started: id of the machine's boot and start time of the process after it; "" if unknown.
      since: local time at which the lock was taken.
      token: random, another for every lock taken.
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
      path: the lock file, beside what it guards; its folder is created, and the file is removed at the end.

    Raises:
      LockError: on entering, if another process holds it.
      OSError: on entering, if the file cannot be written; names it and the remedy.
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
            while not _create_lock(new, self.path):
                owner = self._read_owner()
                if owner is None:  # released in between
                    continue
                if not _has_ended(owner, mine):
                    raise _lock_error(self.path, owner, mine)
                if _take_over(self.path, owner, new):
                    break
        except LockError:
            raise
        except OSError as error:
            raise write_error(self.path, error) from error
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

    def _read_owner(self) -> Owner | None:
        """Return the owner of the lock, or None if it was released meanwhile.

        Raises:
          LockError: the file names no owner.
        """
        deadline = time.monotonic() + READ_TIMEOUT_S
        while True:
            try:
                return _read(self.path)
            except FileNotFoundError:
                return None
            except (ValueError, TypeError):
                if time.monotonic() > deadline:
                    raise LockError(
                        f"{self.path}: this lock file names no owner", "remove it if no process writes here"
                    ) from None
            time.sleep(POLL_INTERVAL_S)


def _read(path: Path) -> Owner:
    """Read a lock file.

    Raises:
      ValueError, TypeError: it is damaged.
      FileNotFoundError: it does not exist.
    """
    owner = Owner(**json.loads(path.read_text(encoding="utf-8")))
    if not isinstance(owner.pid, int) or owner.pid < 1:
        raise ValueError(f"pid: {owner.pid!r}")
    return owner


def _create_lock(new: Path, path: Path) -> bool:
    """Link `new` to `path` as well; return False if `path` exists."""
    try:
        os.link(new, path)
    except FileExistsError:
        return False
    except OSError:
        # No hard links here: the lock is created first and filled afterwards.
        try:
            file = path.open("x", encoding="utf-8")
        except FileExistsError:
            return False
        try:
            with file:
                file.write(new.read_text(encoding="utf-8"))
        except OSError:
            path.unlink()  # otherwise an empty lock without an owner would stay
            raise
    return True


def _take_over(path: Path, ended: Owner, new: Path) -> bool:
    """Replace the lock of a process that has ended by `new`; return False if another process did so first."""
    try:
        with path.open(encoding="utf-8") as file:
            # Of several processes one replaces the file; for the others `path` is then not the file they opened.
            fcntl.flock(file, fcntl.LOCK_EX)
            if not os.path.samestat(os.fstat(file.fileno()), os.stat(path)) or _read(path) != ended:
                return False
            os.replace(new, path)
            return True
    except FileNotFoundError:
        return False


def _has_ended(owner: Owner, mine: Owner) -> bool:
    """Return whether this process can know that the owner has ended."""
    if owner.host != mine.host or owner.namespace != mine.namespace:
        return False
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # it runs, as another user
    started = _start_time(owner.pid)
    return started is not None and bool(owner.started) and started != owner.started


def _lock_error(path: Path, owner: Owner, mine: Owner) -> LockError:
    same_host = (owner.host, owner.namespace) == (mine.host, mine.namespace)
    remedy = "wait until it ends, or stop it" if same_host else f"wait until it ends; if it has ended, remove {path}"
    return LockError(f"{path}: {owner} writes here", remedy)


def _this_process() -> Owner:
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return Owner(
        host=socket.gethostname(),
        namespace=namespace,
        pid=os.getpid(),
        started=_start_time(os.getpid()) or "",
        since=datetime.now().astimezone().isoformat(timespec="seconds"),
        token=uuid.uuid4().hex,
    )


def _start_time(pid: int) -> str | None:
    """Return when a process started as text, "ended" for a zombie, or None if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        # The second field, the program's name in parentheses, may contain any character.
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
