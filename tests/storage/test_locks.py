"""One writer at a time: a lock names its owner, outlives no process, and is taken over once."""

import errno
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from calce_jax.distributed import multihost
from calce_jax.distributed.multihost import one_writer
from calce_jax.storage import locks
from calce_jax.storage.locks import FileLock, LockError

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from calce_jax.storage.locks import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new/out.lock"


@pytest.fixture
def other(path):
    """Another process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    with process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def owner_of(path):
    return json.loads(path.read_text())


def write_owner(path, **changes):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(replace(locks._this_process(), **changes))))


def test_a_lock_is_there_while_it_is_held(path):
    with FileLock(path):
        assert owner_of(path)["pid"] == os.getpid()
        assert [each.name for each in path.parent.iterdir()] == ["out.lock"]
        with pytest.raises(LockError, match=f"process {os.getpid()} on .* writes here"), FileLock(path):
            pass
        assert path.exists(), "who is refused leaves the owner's lock"
    assert list(path.parent.iterdir()) == []
    with pytest.raises(ZeroDivisionError), FileLock(path):
        _ = 1 / 0
    assert list(path.parent.iterdir()) == []


def test_a_second_process_is_refused_in_one_line_until_the_first_is_gone(path, other):
    with pytest.raises(LockError) as told, FileLock(path):
        pass
    owner = owner_of(path)
    assert str(told.value) == (
        f"{path}: process {other.pid} on {owner['host']}, since {owner['since']} writes here; "
        "wait until it ends, or stop it"
    )
    # Not reaped yet, and so still in the table of processes.
    other.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
    with FileLock(path):
        assert owner_of(path)["pid"] == os.getpid()
    assert list(path.parent.iterdir()) == []


def test_another_process_with_the_owners_id_is_not_the_owner(path):
    write_owner(path, started="another boot 17", token="old")
    with FileLock(path):
        assert owner_of(path)["token"] != "old"


@pytest.mark.parametrize("elsewhere", [{"host": "elsewhere"}, {"namespace": "pid:[1]"}])
def test_from_elsewhere_nobody_can_tell_that_the_owner_is_gone(path, elsewhere):
    write_owner(path, started="another boot 17", **elsewhere)
    with pytest.raises(LockError, match=f"wait until it ends; if it has ended, remove {path}"), FileLock(path):
        pass


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b"{}", b'{"host": "h"'])
def test_a_lock_that_does_not_say_who_holds_it_stays(path, content, monkeypatch):
    monkeypatch.setattr(locks, "READ_TIMEOUT_S", 0.1)
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(LockError, match="names no owner; remove it if no process"), FileLock(path):
        pass
    assert path.read_bytes() == content
    assert [each.name for each in path.parent.iterdir()] == ["out.lock"]


def test_a_lock_that_is_being_filled_is_waited_for(path, monkeypatch):
    path.parent.mkdir()
    path.touch()
    monkeypatch.setattr(locks.time, "sleep", lambda _: write_owner(path, pid=1, started=""))
    with pytest.raises(LockError, match="process 1 on"), FileLock(path):
        pass


def test_without_hard_links_it_works_as_well(path, monkeypatch):
    def none(*_):
        raise PermissionError

    monkeypatch.setattr(os, "link", none)
    with FileLock(path):
        assert owner_of(path)["pid"] == os.getpid()
        with pytest.raises(LockError), FileLock(path):
            pass
    assert list(path.parent.iterdir()) == []


def test_of_many_that_want_a_dead_owners_lock_one_gets_it(path):
    def attempt(_):
        lock = FileLock(path)
        try:
            lock.__enter__()
        except LockError:
            return 0
        return 1

    for _ in range(20):
        write_owner(path, started="another boot 17", token="old")
        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(attempt, range(8))) == 1
        path.unlink()


def test_a_forked_child_does_not_end_the_lock(path, monkeypatch):
    with FileLock(path) as lock:
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 1)
            lock.__exit__(None, None, None)
        assert path.exists()


def test_a_lock_that_another_took_meanwhile_stays(path):
    with FileLock(path):
        write_owner(path, token="of another")
    assert owner_of(path)["token"] == "of another"


def test_where_there_is_no_proc_ps_is_asked():
    started = locks._from_ps(os.getpid())
    if started is None:
        pytest.skip("no ps here")
    assert started
    assert locks._from_ps(2**22 - 1) is None


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(OSError, match=r"cannot write .*out.lock \(.*\); make room") as told,
        FileLock(tmp_path / "file/out.lock"),
    ):
        pass
    assert not isinstance(told.value, LockError)


def test_of_several_hosts_the_first_locks_for_all(path, monkeypatch):
    monkeypatch.setattr(multihost, "is_primary", lambda: False)
    with one_writer(path):
        assert not path.exists()
    monkeypatch.setattr(multihost, "broadcast_int", lambda value: 1)
    with pytest.raises(LockError, match="the first host cannot take this lock"), one_writer(path):
        pass
    monkeypatch.undo()
    told = []
    monkeypatch.setattr(multihost, "broadcast_int", lambda value: told.append(value) or value)
    with one_writer(path), pytest.raises(LockError, match=f"process {os.getpid()}"), one_writer(path):
        pass
    assert told == [0, 1], "the other hosts hear of the refusal"
    assert not path.exists()


def test_a_full_disk_without_hard_links_leaves_no_lock(path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(Path, "read_text", full)
    with pytest.raises(OSError, match=r"cannot write .*out\.lock \(No space left on device\)"), FileLock(path):
        pass
    assert list(path.parent.iterdir()) == []
