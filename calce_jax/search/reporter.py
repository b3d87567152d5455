"""Where a search says what it could not do, and what its reader has to know of the results."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from calce_jax.search.paths import SearchError
from calce_jax.storage.file_names import single_line

T = TypeVar("T")


@dataclass(frozen=True)
class Reporter:
    """Two functions that take one line of text each.

    Attributes:
      error: called for each file that cannot be read or written.
      notice: called with what a reader has to know, and may ask to leave out.
    """

    error: Callable[[str], None]
    notice: Callable[[str], None]

    def attempt(self, function: Callable[..., T], *arguments: Any) -> T | None:
        """Return `function(*arguments)`; if it fails for this file, report the error and return None.

        Raises:
          SearchError: the function raised it: no file could be searched.
        """
        try:
            return function(*arguments)
        except SearchError:
            raise
        except (OSError, ValueError) as error:
            self.error(single_line(str(error)))
            return None
