"""The base class of errors that a user can correct."""

from typing import Any


class UserError(ValueError):
    """Bad input, a damaged file, or something missing on this machine; commands print it in one line.

    str() is "REASON; REMEDY".

    Attributes:
      reason: what is wrong; names the file and the field.
      remedy: what to do about it; may be empty.
    """

    def __init__(self, reason: str, remedy: str = "") -> None:
        self.reason, self.remedy = reason, remedy
        super().__init__(f"{reason}; {remedy}" if remedy else reason)

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled by default as type(self)(*self.args), which would pass the whole text as the reason.
        return type(self), (self.reason, self.remedy)


class OneHostError(UserError):
    """An error on one of several hosts, for which others may wait: this process must end at once, so that they do."""


class LostHostError(OneHostError):
    """Another host of the run has ended; this process must end too, without waiting for that one."""


class UsageError(UserError):
    """A wrong command line, such as a value that a flag cannot have; a command exits with 2."""


class UserFileNotFoundError(UserError, FileNotFoundError):
    """A file given by the user does not exist."""
