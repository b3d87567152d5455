"""Reading the programs of the last run while this one still imports libraries.

XLA reads a program without Python's lock, in about the time that the imports take, so on two cores it costs no time.
"""

import json
from concurrent.futures import ThreadPoolExecutor

import jax

from calce_jax.storage.disk_cache import DiskCache, make_cache_key
from calce_jax.storage.installation import installation
from calce_jax.storage.processor import processor
from calce_jax.storage.stored_program import StoredProgram, load_program


class ProgramsAhead:
    """The programs that the last run with the same settings used, read in a thread, for the first device.

    Args:
      cache: of the programs; has the list of those of the last run too.
      settings: the list is of runs with the same `repr` of them.

    Attributes:
      cache: as given.
    """

    def __init__(self, cache: DiskCache, settings: object):
        self.cache = cache
        self._key = make_cache_key(
            name="programs of the last run",
            settings=repr(settings),
            installation=installation(),
            processor=processor(),
        )
        self._last, self._used = self._read_list(), []
        executor = ThreadPoolExecutor(1, "programs")
        self._programs = {key: executor.submit(self._load, key) for key in self._last}
        executor.shutdown(wait=False)

    def take(self, key: str) -> StoredProgram | None:
        """Return the program of an entry as soon as it is read, once.

        None if it is not among them, or cannot be read, such as a program for another device.
        """
        if key not in self._programs:
            return None
        try:
            return self._programs.pop(key).result()
        except Exception:  # whoever asks reads the entry again, and reports what is wrong with it
            return None

    def note(self, key: str) -> None:
        """Note that this run has used a program, for the next one."""
        self._used.append(key)
        if self._last[: len(self._used)] != self._used:
            self._last = list(self._used)
            self.cache.write("executables", self._key, json.dumps(self._last).encode())

    def _load(self, key: str) -> StoredProgram | None:
        entry = self.cache.read("executables", key)
        return None if entry is None else load_program(entry, jax.devices()[:1])

    def _read_list(self) -> list[str]:
        content = self.cache.read("executables", self._key)
        try:
            return [] if content is None else [str(key) for key in json.loads(content)]
        except (ValueError, TypeError) as error:
            self.cache.refuse("executables", self._key, error)
            return []
