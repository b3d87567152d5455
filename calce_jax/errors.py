"""The base class of errors that a user can mend."""

from typing import Any


class UserError(ValueError):
    """Bad input, a damaged file, or a machine that lacks something; commands print it in one line.

    Its text is "REASON; REMEDY".

    Attributes:
      reason: what is wrong; names the file and the field.
      remedy: what to do about it; may be empty.
    """

    def __init__(self, reason: str, remedy: str = "") -> None:
        self.reason, self.remedy = reason, remedy
        super().__init__(f"{reason}; {remedy}" if remedy else reason)

    def __reduce__(self) -> tuple[Any, ...]:
        # By default an exception that crosses processes is rebuilt from its text alone.
        return type(self), (self.reason, self.remedy)


class UserFileNotFoundError(UserError, FileNotFoundError):
    """A file that was named is not there."""
