"""Programs that later processes find without tracing; what is damaged, or of other code, is made anew."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest

from calce_jax.distributed.sharding import build_mesh, put_batch
from calce_jax.storage import installation, program_cache
from calce_jax.storage.disk_cache import DiskCache
from calce_jax.storage.program_cache import ProgramCache


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Result:
    """What the function returns."""

    means: Any
    sums: Any


class Program:
    """A function that counts how often it is traced."""

    def __init__(self, folder: Path, settings: object = 3):
        self.mesh, self.traces, self.made = build_mesh((1, 1, 1), jax.devices()[1:2]), 0, 0

        def scale(weights, x):
            self.traces += 1
            return Result(means=x * weights["w"], sums=jnp.cumsum(x))

        def make():
            self.made += 1
            return scale

        self._run = ProgramCache(DiskCache(folder)).keep("scale", make, settings, self.mesh)

    def __call__(self, x) -> Result:
        return jax.device_get(self._run(*(put_batch(part, self.mesh) for part in ({"w": np.float32([3])}, x))))


X = np.arange(4, dtype=np.float32)


def entries(folder: Path) -> list[Path]:
    return list(folder.glob("executables/*"))


@pytest.fixture
def folder(tmp_path) -> Path:
    first = Program(tmp_path)
    assert first(X).means.tolist() == first(X).means.tolist() == [0, 3, 6, 9]
    assert first.traces == 1
    assert len(entries(tmp_path)) == 1
    return tmp_path


def test_a_later_process_finds_the_program_without_tracing_it(folder):
    program = Program(folder)
    result = program(X)
    assert (program.made, program.traces) == (0, 0)
    assert isinstance(result, Result)
    assert (result.means.tolist(), result.sums.tolist()) == ([0, 3, 6, 9], [0, 1, 3, 6])
    assert program(X + 1).means.tolist() == [3, 6, 9, 12]


def test_other_settings_shapes_and_dtypes_are_other_programs(folder):
    for program, x in ((Program(folder, settings=4), X), (Program(folder), X[:2]), (Program(folder), X.astype("f2"))):
        with jax.numpy_dtype_promotion("standard"):
            assert program(x).means[1] == 3
        assert program.traces == 1
    assert len(entries(folder)) == 4, "none has taken the place of another"


@pytest.mark.parametrize(("module", "name"), [(installation, "code_hash"), (program_cache, "processor")])
def test_other_code_and_other_processors_are_other_programs(folder, monkeypatch, module, name):
    monkeypatch.setattr(module, name, lambda: "another")
    program = Program(folder)
    assert program(X).means.tolist() == [0, 3, 6, 9]
    assert program.traces == 1


def test_another_jax_and_other_settings_of_it_are_other_programs(folder, monkeypatch):
    before = program_cache.environment()
    monkeypatch.setenv("XLA_FLAGS", "")
    assert program_cache.environment() != before
    monkeypatch.undo()
    monkeypatch.setattr(installation, "version", lambda _: "0.0")
    assert program_cache.environment() != before
    monkeypatch.undo()
    jax.config.update("jax_default_matmul_precision", "bfloat16")
    try:
        assert program_cache.environment() != before
    finally:
        jax.config.update("jax_default_matmul_precision", "float32")
    assert program_cache.environment() == before


@pytest.mark.parametrize("damage", ["noise", "pickle", "cut", "code"])
def test_a_damaged_program_is_made_anew(folder, damage):
    (path,) = entries(folder)
    content = DiskCache(folder).read("executables", path.name)
    assert content is not None
    code, *structure = pickle.loads(content)
    damaged = {
        "noise": b"noise",
        "pickle": pickle.dumps("no program"),
        "cut": content[: len(content) // 2],
        "code": pickle.dumps((code[: len(code) // 3], *structure)),
    }[damage]
    DiskCache(folder).write("executables", path.name, damaged)
    anew = Program(folder)
    assert anew(X).means.tolist() == [0, 3, 6, 9]
    assert anew.traces == 1
    assert Program(folder)(X).means.tolist() == [0, 3, 6, 9]
    mended = Program(folder)
    mended(X)
    assert mended.traces == 0


def test_a_program_that_fails_when_it_runs_is_made_anew(folder):
    (path,) = entries(folder)
    Program(folder)(X[:2])
    (other,) = set(entries(folder)) - {path}
    DiskCache(folder).write("executables", path.name, DiskCache(folder).read("executables", other.name) or b"")
    anew = Program(folder)
    assert anew(X).means.tolist() == [0, 3, 6, 9]
    assert anew.traces == 1


def test_threads_that_want_one_program_compile_it_once_and_leave_the_settings_of_jax(tmp_path):
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    programs = [Program(tmp_path, settings=number) for number in range(3)]
    with ThreadPoolExecutor(9) as threads:
        results = list(threads.map(lambda program: program(X).means.tolist(), programs * 3))
    assert results == [[0, 3, 6, 9]] * 9
    assert [program.traces for program in programs] == [1, 1, 1]
    assert jax.config.jax_persistent_cache_min_compile_time_secs == before


def test_without_jit_nothing_is_compiled(tmp_path):
    with jax.disable_jit():
        assert Program(tmp_path)(X).means.tolist() == [0, 3, 6, 9]
    assert not entries(tmp_path)


def test_a_library_without_metadata_and_a_lock_of_an_editor_are_no_hindrance(tmp_path, monkeypatch):
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(installation, "version", absent)
    assert installation.library_version("jaxlib") == jaxlib.__version__
    (tmp_path / "code.py").write_text("code")
    monkeypatch.setattr(installation, "PACKAGE", tmp_path)
    before = installation.code_hash.__wrapped__()
    (tmp_path / ".#code.py").symlink_to("user@host.1234")
    assert installation.code_hash.__wrapped__() == before
    (tmp_path / "code.py").write_text("other")
    assert installation.code_hash.__wrapped__() != before


def test_a_program_that_cannot_be_written_still_runs(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    assert Program(tmp_path / "file")(X).means.tolist() == [0, 3, 6, 9]
    monkeypatch.setattr(program_cache, "store_program", lambda _: 1 / 0)
    program = Program(tmp_path / "cache")
    assert program(X).means.tolist() == [0, 3, 6, 9]
    assert program.traces == 1
    assert not entries(tmp_path / "cache")


def test_what_was_made_is_recalled(tmp_path):
    made = []

    def recall(settings):
        return ProgramCache(DiskCache(tmp_path)).recall("model", settings, lambda: made.append(1) or settings * 2)

    assert [recall(2), recall(2), recall(3)] == [4, 4, 6]
    assert len(made) == 2
    for path in entries(tmp_path):
        DiskCache(tmp_path).write("executables", path.name, b"noise")
    assert recall(2) == 4
    assert len(made) == 3
