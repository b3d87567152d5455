"""The flag of commands that use a library: `--library_file=FILE`."""

from pathlib import Path

from absl import flags


class LibraryFlag:
    """--library_file of a command."""

    def __init__(self, flag_values: flags.FlagValues) -> None:
        self._file = flags.DEFINE_string(
            "library_file",
            None,
            "the library; ~/.local/share/calce/library.sqlite unless given",
            flag_values=flag_values,
        )

    def path(self) -> Path:
        """Return the file."""
        from calce_jax.search.library import default_library

        return Path(self._file.value) if self._file.value else default_library()
