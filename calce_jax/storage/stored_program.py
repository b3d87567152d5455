"""A compiled program as bytes, which are read without the classes of its arguments and results."""

import pickle
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
from jax.experimental import serialize_executable


@dataclass(frozen=True)
class StoredProgram:
    """A program that can be called with the arguments of the function that it was compiled from.

    Fields:
      compiled: takes the leaves of the arguments, and returns the list of the leaves of the results.
      structure: of the results, pickled: reading it imports their classes.
    """

    compiled: jax.stages.Compiled
    structure: bytes

    def __call__(self, arguments: tuple[Any, ...]) -> Any:
        """Return the results of a call with these arguments."""
        return jax.tree.unflatten(self._results, self.compiled(*jax.tree.leaves(arguments)))

    @cached_property
    def _results(self) -> Any:
        return pickle.loads(self.structure)


def store_program(program: StoredProgram) -> bytes:
    """Return a program as bytes that `load_program` reads."""
    code, arguments, results = serialize_executable.serialize(program.compiled)
    return pickle.dumps((code, arguments.num_leaves, results.num_leaves, program.structure))


def load_program(entry: bytes, devices: Iterable[Any]) -> StoredProgram:
    """Return the program of an entry, for these devices, in their order; errors are of many types."""
    code, num_arguments, num_results, structure = pickle.loads(entry)
    arguments = jax.tree.structure(((0,) * num_arguments, {}))
    results = jax.tree.structure([0] * num_results)
    compiled = serialize_executable.deserialize_and_load(code, arguments, results, execution_devices=list(devices))
    return StoredProgram(compiled, structure)
