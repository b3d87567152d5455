"""Compiled programs on disk, found without tracing them.

JAX's own compilation cache is asked with the text of a program, so every process traces and lowers it first, which
takes longer than a search at the tiny size. Here a program is found by what its text depends on: its settings, the
shapes of its arguments, the code of this package, versions, settings of JAX, and the machine.

Entries are pickles with machine code: whoever can write the cache's folder can run code, as with JAX's own cache. They
are only read from there, never from a file that was downloaded.
"""

import pickle
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from absl import logging
from jax.sharding import Mesh

from calce_jax.storage.disk_cache import DiskCache, make_cache_key
from calce_jax.storage.installation import installation
from calce_jax.storage.processor import processor
from calce_jax.storage.programs_ahead import ProgramsAhead
from calce_jax.storage.stored_program import StoredProgram, load_program, store_program

Result = TypeVar("Result")

# Threads that want the same program wait for one to compile it; and compiling changes a setting of JAX for a while.
FIRST_RUNS = threading.RLock()


class ProgramCache:
    """Programs, and what tracing has found out about a model, kept in a `DiskCache`.

    An entry that cannot be read, of another machine or of other code, is made anew without an error.

    Args:
      cache: where entries are kept.
      ahead: has programs that are being read already, and learns which are used.
      on_compile: called before a program is compiled.
    """

    def __init__(
        self, cache: DiskCache, ahead: ProgramsAhead | None = None, on_compile: Callable[[], object] = lambda: None
    ):
        self._cache, self._ahead, self._on_compile = cache, ahead, on_compile

    def recall(self, name: str, settings: object, make: Callable[[], Result]) -> Result:
        """Return what `make` returned, in this or in an earlier process.

        Args:
          name: of what is made, for people.
          settings: `make` depends on their `repr`, and on nothing else but code and versions.
          make: its result can be pickled.
        """
        key = make_cache_key(name=name, settings=repr(settings), environment=environment())
        entry = self._cache.read("executables", key)
        if entry is not None:
            try:
                return pickle.loads(entry)
            except Exception as error:  # pickle has no error of its own for what a damaged entry raises
                self._cache.refuse("executables", key, error)
        result = make()
        self._cache.write("executables", key, pickle.dumps(result))
        return result

    def keep(
        self,
        name: str,
        make: Callable[[], Callable[..., Any]],
        settings: object,
        mesh: Mesh,
        options: dict[str, str] | None = None,
    ) -> Callable[..., Any]:
        """Return `jax.jit(make())`, which is made, traced and compiled only if the cache does not have it.

        Args:
          name: of the function; not its text but the name and the settings say which it is.
          make: returns the function, of pytrees of arrays; it may import what the function needs.
          settings: the program depends on their `repr`, beside the shapes of its arguments.
          mesh: the devices of all arguments.
          options: of the compiler, as `jax.jit` takes them.
        """
        programs: dict[str, Callable[..., Any]] = {}

        def run(*arguments: Any) -> Any:
            if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
                return make()(*arguments)
            description = describe(arguments)
            if description in programs:
                return programs[description](arguments)
            key = make_cache_key(
                name=name,
                settings=repr((settings, options)),
                arguments=description,
                environment=environment(),
                devices=describe_devices(mesh),
            )
            with FIRST_RUNS:
                if description not in programs:
                    programs[description], results = self._first_run(make, key, mesh, arguments, options)
                    return results
            return programs[description](arguments)

        return run

    def _first_run(
        self,
        make: Callable[[], Callable[..., Any]],
        key: str,
        mesh: Mesh,
        arguments: tuple[Any, ...],
        options: dict[str, str] | None,
    ) -> tuple[StoredProgram, Any]:
        """Return a program and its results: the program of the cache, or a new one that is kept."""
        program = self._find(key, mesh)
        if program is not None:
            try:
                results = run_and_wait(program, arguments)
            except Exception as error:  # damaged machine code is found in many ways, some of them when it runs
                self._refuse(key, error)
            else:
                self._note(key)
                return program, results
        self._on_compile()
        function = make()
        program = compile_anew(function, arguments, options)
        try:
            entry = store_program(program)
            # A program that XLA itself read from a cache is written without some of its code, and fails when it runs.
            loaded = load_program(entry, mesh.devices.flat)
            results = run_and_wait(loaded, arguments)
        except Exception as error:  # a backend may not be able to write programs
            logging.info("%s is not kept: %s", function.__name__, error)
            return program, program(arguments)
        self._cache.write("executables", key, entry)
        self._note(key)
        return loaded, results

    def _find(self, key: str, mesh: Mesh) -> StoredProgram | None:
        """Return the program of an entry, or None if there is none that can be read."""
        if self._ahead and (program := self._ahead.take(key)):
            return program
        entry = self._cache.read("executables", key)
        if entry is None:
            return None
        try:
            return load_program(entry, mesh.devices.flat)
        except Exception as error:
            self._refuse(key, error)
            return None

    def _refuse(self, key: str, error: Exception) -> None:
        self._cache.refuse("executables", key, f"{type(error).__name__}: {error}"[:200])

    def _note(self, key: str) -> None:
        if self._ahead:
            self._ahead.note(key)


def run_and_wait(program: StoredProgram, arguments: tuple[Any, ...]) -> Any:
    """Return the results of a program, for which it waits: some damage of its code shows only then."""
    return jax.block_until_ready(program(arguments))


def compile_anew(
    function: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, str] | None = None
) -> StoredProgram:
    """Compile a function for the leaves of its arguments; JAX's own cache does not get what is kept here.

    A program from leaves to leaves can be written, and read, without the classes of arguments and results.
    """
    from jax.extend.mlir.passmanager import PassManager  # noqa: PLC0415  (40 ms, which kept programs do without)

    structure = jax.tree.structure(arguments)
    results: list[Any] = []

    def kept(*leaves: Any) -> Any:
        returned, of_results = jax.tree.flatten(function(*jax.tree.unflatten(structure, leaves)))
        results.append(of_results)
        return returned

    # Another name than the function's: what JAX's cache may have of it from elsewhere cannot be written again.
    kept.__name__ = f"kept_{function.__name__}"
    lowered = jax.jit(kept, compiler_options=options).lower(*jax.tree.leaves(arguments))
    # The names of operations and the lines of code they come from, a fifth of a program of the tiny model; they are of
    # use in a profile alone. Reading a program takes as much longer.
    module: Any = lowered.compiler_ir("stablehlo")
    with module.context:
        PassManager.parse("builtin.module(strip-debuginfo)").run(module.operation)
    seconds = jax.config.jax_persistent_cache_min_compile_time_secs  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_persistent_cache_min_compile_time_secs", float("inf"))
    try:
        return StoredProgram(lowered.compile(), pickle.dumps(results[0]))
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)


def describe(arguments: Any) -> str:
    """Return the names, shapes, dtypes and shardings of the leaves of a pytree, and its structure."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(arguments)
    return "\n".join(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype} {leaf.sharding}" for path, leaf in leaves)


def describe_devices(mesh: Mesh) -> list[Any]:
    """Return what a compiled program depends on of the devices of a mesh."""
    devices = list(mesh.devices.flat)
    client = devices[0].client
    return [
        [client.platform, client.platform_version, jax.device_count(), jax.process_count()],
        [[device.id, device.device_kind] for device in devices],
        processor(),
    ]


def environment() -> list[Any]:
    """Return what the text of a program, and how it is compiled, depend on: code, versions, settings of JAX and XLA."""
    settings = {name: repr(value) for name, value in jax.config.values.items() if "cache" not in name}  # pyright: ignore
    return [*installation(), settings]
