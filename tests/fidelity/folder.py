"""Reading a folder of recordings: arrays, JSON, settings, and the shared files beside it."""

import itertools
import json
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

MAX_NAMED = 6  # unread arrays that a note lists
# Folders, beside the recordings, of files that recordings name.
ANNOTATION_DIRS = ("", "annotations", "annotations/calce", "annotations/qvhighlights")


class RecordedArrays(dict[str, np.ndarray]):
    """The arrays of an .npz file; records which of them are read."""

    def __init__(self, path: Path):
        with np.load(path) as arrays:
            super().__init__(arrays)
        self.path, self.read_names = path, set[str]()

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self:
            raise KeyError(f"{self.path.name} holds no {name!r}")
        self.read_names.add(name)
        return super().__getitem__(name)

    def get_or(self, name: str, default: np.ndarray) -> np.ndarray:
        """Return an array, or `default` if it was not recorded."""
        return self[name] if name in self else default  # noqa: SIM401 - `get` does not record the read

    def with_prefix(self, *prefixes: str) -> dict[str, np.ndarray]:
        """Return the arrays whose names start with one of the prefixes."""
        return {name: self[name] for name in self if name.startswith(prefixes)}

    def unread(self) -> list[str]:
        """Return the names of the arrays that were not read."""
        return [name for name in self if name not in self.read_names]


class RecordingFolder:
    """A folder of recordings.

    Args:
      path: the folder.
      shared: folder of tokenizers, annotations and weights, searched after `path` and its parent.

    Raises:
      NotADirectoryError: `path` does not exist.
    """

    def __init__(self, path: Path, shared: Path | None = None):
        if not path.is_dir():
            raise NotADirectoryError(f"{path}: no such folder of recordings; give --golden=DIR")
        self.path = path
        self.search_paths = [search_path for search_path in (path, path.parent, shared) if search_path is not None]
        self.opened: set[str] = set()
        self._arrays: dict[str, RecordedArrays] = {}

    def arrays(self, name: str) -> RecordedArrays:
        """Return the arrays of `name`.npz."""
        if name not in self._arrays:
            self._arrays[name] = RecordedArrays(self._existing_path(f"{name}.npz"))
        return self._arrays[name]

    def json(self, name: str) -> Any:
        """Return the content of `name`.json."""
        return json.loads(self._existing_path(f"{name}.json").read_text(encoding="utf-8"))

    def files(self, pattern: str) -> list[str]:
        """Return the sorted stems of the files that match a glob pattern.

        Raises:
          FileNotFoundError: no file matches.
        """
        names = sorted(path.stem for path in self.path.glob(pattern))
        if not names:
            raise FileNotFoundError(f"{self.path / pattern}: no such file")
        return names

    @cached_property
    def config(self) -> dict[str, Any]:
        """Settings that do not follow from the shapes of arrays, by group."""
        return self.json("config")

    def settings(self, group: str) -> dict[str, Any]:
        """Return the settings of one group."""
        if group not in self.config:
            raise KeyError(f"config.json has no {group!r}")
        return self.config[group]

    def optional_settings(self, group: str) -> dict[str, Any]:
        """Return the settings of one group that can do without, or {}; the name in config.json may be shorter: "14"."""
        if not (self.path / "config.json").is_file():
            return {}
        return next((settings for name, settings in self.config.items() if name and group.startswith(name)), {})

    def has_any(self, patterns: Sequence[str]) -> bool:
        """Return whether a file of the folder matches one of the glob patterns."""
        return any(any(self.path.glob(pattern)) for pattern in patterns)

    def find_shared(self, *parts: str) -> Path:
        """Return the path of a shared file or folder, such as ("tokenizers", "t5").

        Raises:
          FileNotFoundError: it is in none of the searched folders.
        """
        for search_path in self.search_paths:
            if search_path.joinpath(*parts).exists():
                return search_path.joinpath(*parts)
        relative = os.path.join(*parts)
        raise FileNotFoundError(f"{relative}: in none of {', '.join(map(str, self.search_paths))}; give --beside=DIR")

    def find_named(self, name: str) -> Path:
        """Return the path of a file that a recording names, such as "qvh/val_stage2.json".

        It may lie in the folder of recordings or beside it, in any of `ANNOTATION_DIRS`. The name may begin with
        folders of the machine on which it was recorded.

        Raises:
          FileNotFoundError: it is in none of the searched folders.
        """
        for path in self._named_paths(name):
            if path.parent == self.path:
                self.opened.add(path.name)
            return path
        raise FileNotFoundError(f"{name}: in none of {', '.join(map(str, self.search_paths))}; give --beside=DIR")

    def has_named(self, name: str) -> bool:
        """Return whether `find_named` finds a file."""
        return any(True for _ in self._named_paths(name))

    def rows(self, named: str | list[Any]) -> list[Any]:
        """Return the rows of a JSON or JSON lines file that a recording names, or those that it holds itself."""
        if not isinstance(named, str):
            return named
        path = self.find_named(named)
        text = path.read_text(encoding="utf-8")
        return [json.loads(line) for line in text.split("\n") if line] if path.suffix == ".jsonl" else json.loads(text)

    def not_compared(self, group: str) -> str:
        """Return a note on the unread arrays of a group's files, or ""."""
        files = [arrays for name, arrays in self._arrays.items() if name.startswith(group)]
        unread = [name for arrays in files for name in arrays.unread()]
        omitted = f" and {len(unread) - MAX_NAMED} more" if len(unread) > MAX_NAMED else ""
        return f"not compared: {', '.join(unread[:MAX_NAMED])}{omitted}" if unread else ""

    def unopened(self) -> list[str]:
        """Return the names of the recordings (files that start with a digit) that were not opened."""
        names = {path.name for path in self.path.iterdir() if path.is_file() and path.name[:1].isdigit()}
        return sorted(names - self.opened)

    def _named_paths(self, name: str) -> Iterator[Path]:
        parts = [part for part in Path(name).parts if part != os.sep]
        # The longest remainder of the name first: "val.json" alone may be of another dataset.
        for start, search_path, directory in itertools.product(range(len(parts)), self.search_paths, ANNOTATION_DIRS):
            if (path := search_path.joinpath(directory, *parts[start:])).is_file():
                yield path

    def _existing_path(self, name: str) -> Path:
        path = self.path / name
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        self.opened.add(name)
        return path
