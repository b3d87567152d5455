"""One change of the source."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Whose tests, besides those of a room itself, hold what it does.
MORE_TESTS = {
    "": ("tests/test_config.py", "tests/models", "tests/training"),
    "presets": ("tests/test_config.py", "tests/training", "tests/inference"),
    "models": ("tests/test_deviations.py", "tests/training", "tests/inference"),
    "text": ("tests/input_pipeline",),
    "checkpoints": ("tests/training",),
    "distributed": ("tests/training",),
}


@dataclass(frozen=True)
class Mutant:
    """A change of one place.

    Attributes:
      path: of the file, from the checkout.
      old: what is replaced; occurs once, unless `offset` says where.
      new: what takes its place.
      what: in words, for a change that has a name.
      offset: characters before `old` in the file.
      noticed_by: tests that should notice, files or folders; by default those of the file's name.
    """

    path: str
    old: str
    new: str
    what: str = ""
    offset: int | None = None
    noticed_by: tuple[str, ...] = ()

    def apply(self, source: str) -> str:
        """Return the changed source.

        Raises:
          ValueError: `old` is not there, or is there several times.
        """
        if self.offset is not None:
            end = self.offset + len(self.old)
            if source[self.offset : end] != self.old:
                raise ValueError(f"{self.path}: there is no {self.old!r} at {self.offset}")
            return source[: self.offset] + self.new + source[end:]
        if source.count(self.old) != 1:
            raise ValueError(f"{self.path}: {self.old!r} occurs {source.count(self.old)} times; it must occur once")
        return source.replace(self.old, self.new)

    def line(self) -> int:
        """Return the number of the line that changes."""
        source = (ROOT / self.path).read_text()
        return source[: source.index(self.old) if self.offset is None else self.offset].count("\n") + 1

    def nearest_tests(self) -> list[str]:
        """Return the tests to run first: those that should notice, a small part of `tests`."""
        named = sorted((ROOT / "tests" / self._room()).glob(f"**/test_*{Path(self.path).stem}*.py"))
        return [*self.noticed_by] or [str(path.relative_to(ROOT)) for path in named]

    def tests(self) -> list[str]:
        """Return all folders and files of tests of this part."""
        room = self._room()
        own = (f"tests/{room}",) if room and (ROOT / "tests" / room).is_dir() else ()
        return list(dict.fromkeys((*own, *MORE_TESTS.get(room, ()))))

    def _room(self) -> str:
        folder, *rooms = Path(self.path).parts
        return rooms[0] if folder == "calce_jax" and len(rooms) > 1 else ""
