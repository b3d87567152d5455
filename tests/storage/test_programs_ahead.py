"""Programs of the last run, which the next one reads before it asks for them."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calce_jax.distributed.sharding import build_mesh, put_batch
from calce_jax.storage import installation, program_cache, programs_ahead, stored_program
from calce_jax.storage.disk_cache import DiskCache
from calce_jax.storage.program_cache import ProgramCache
from calce_jax.storage.programs_ahead import ProgramsAhead

X = np.arange(4, dtype=np.float32)
RESULTS = {"double": [0, 2, 4, 6], "total": [0, 1, 3, 6]}


class Run:
    """A run that uses programs, and counts those that it traces."""

    def __init__(self, folder: Path, settings: object = "model"):
        self.cache, self.mesh, self.traced = DiskCache(folder), build_mesh((1, 1, 1), jax.devices()[:1]), []
        self.ahead = ProgramsAhead(self.cache, settings)
        self.programs = ProgramCache(self.cache, self.ahead)

    def __call__(self, *names: str) -> "Run":
        for name in names:
            assert self.use(name, self.mesh) == RESULTS[name]
        return self

    def use(self, name: str, mesh: jax.sharding.Mesh) -> list[float]:
        def double(x):
            self.traced.append("double")
            return {"result": x + x}

        def total(x):
            self.traced.append("total")
            return {"result": jnp.cumsum(x)}

        function = {"double": double, "total": total}[name]
        return self.programs.keep("function", lambda: function, name, mesh)(put_batch(X, mesh))["result"].tolist()


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Returns the number of programs read in the thread, and by whoever asked, as they are read."""
    read = []

    def count(module, who):
        def load(*arguments):
            read.append(who)
            return stored_program.load_program(*arguments)

        monkeypatch.setattr(module, "load_program", load)

    count(programs_ahead, "thread")
    count(program_cache, "asked")
    return read


def test_the_programs_of_the_last_run_are_read_before_they_are_asked_for(tmp_path, reads):
    assert Run(tmp_path)("double", "total").traced == ["double", "total"]
    reads.clear()
    assert not Run(tmp_path)("double", "total").traced
    assert reads == ["thread", "thread"]


def test_a_program_that_is_no_longer_used_is_not_read(tmp_path, reads):
    Run(tmp_path)("double", "total")
    Run(tmp_path)("total")
    reads.clear()
    later = Run(tmp_path)("total", "double")
    assert not later.traced
    assert reads == ["thread", "asked"]
    reads.clear()
    Run(tmp_path)("total", "double")
    assert reads == ["thread", "thread"]


def test_a_run_like_the_last_one_writes_nothing(tmp_path, monkeypatch):
    Run(tmp_path)("double", "total")
    run = Run(tmp_path)
    monkeypatch.setattr(run.cache, "write", lambda *_: pytest.fail("an entry was written"))
    run("double", "total")


@pytest.mark.parametrize("other", ["settings", "code", "processor"])
def test_runs_of_other_settings_code_or_processors_have_other_programs(tmp_path, reads, monkeypatch, other):
    Run(tmp_path)("double")
    reads.clear()
    if other == "code":
        monkeypatch.setattr(installation, "code_hash", lambda: "another")
    if other == "processor":
        monkeypatch.setattr(programs_ahead, "processor", lambda: "another")
    Run(tmp_path, "another model" if other == "settings" else "model")("double")
    assert "thread" not in reads


def test_a_program_for_another_device_is_read_again_for_that_one(tmp_path, reads):
    second = build_mesh((1, 1, 1), jax.devices()[1:2])
    assert Run(tmp_path).use("double", second) == RESULTS["double"]
    reads.clear()
    run = Run(tmp_path)
    assert run.use("double", second) == RESULTS["double"]
    assert not run.traced
    assert sorted(reads) == ["asked", "thread"]


@pytest.mark.parametrize("damage", [b"noise", b"3", b'["", "../key", 5]', b'{"keys": 1}'])
def test_a_damaged_list_is_made_anew(tmp_path, reads, damage):
    run = Run(tmp_path)("double")
    assert json.loads(run.cache.read("executables", run.ahead._key) or b"")
    run.cache.write("executables", run.ahead._key, damage)
    assert not Run(tmp_path)("double").traced
    reads.clear()
    Run(tmp_path)("double")
    assert reads == ["thread"]


@pytest.mark.parametrize("damage", ["gone", "noise", "cut"])
def test_a_damaged_program_of_the_list_is_made_anew(tmp_path, reads, damage):
    run = Run(tmp_path)("double")
    (key,) = json.loads(run.cache.read("executables", run.ahead._key) or b"")
    content = run.cache.read("executables", key) or b""
    if damage == "gone":
        (tmp_path / "executables" / key).unlink()
    else:
        run.cache.write("executables", key, b"noise" if damage == "noise" else content[: len(content) // 2])
    assert Run(tmp_path)("double").traced == ["double"]
    reads.clear()
    assert not Run(tmp_path)("double").traced
    assert reads == ["thread"]
