"""File names that a file system takes: appended endings never make one too long."""

import hashlib
import unicodedata

# Of a name, without its folder, in the encoding of the file system.
MAX_NAME_BYTES = 255
_HASH_DIGITS = 8
_NOT_PRINTED = ("Cc", "Cs", "Zl", "Zp")  # control characters, halves of characters, separators of lines


def fit_name(stem: str, ending: str = "") -> str:
    """Return `stem` + `ending`, with a stem that is too long cut and marked with its hash, so that names stay distinct.

    Raises:
      ValueError: the ending alone is too long.
    """
    name = f"{stem}{ending}"
    if len(name.encode()) <= MAX_NAME_BYTES:
        return name
    mark = f"~{hashlib.sha256(stem.encode()).hexdigest()[:_HASH_DIGITS]}{ending}"
    room = MAX_NAME_BYTES - len(mark.encode())
    if room < 1:
        raise ValueError(f"ending: {ending!r:.40} leaves no byte of {MAX_NAME_BYTES} for a name")
    # Cut between characters.
    return stem.encode()[:room].decode(errors="ignore") + mark


def single_line(text: str) -> str:
    r"""Return a text that prints as one line: "\n" and other control characters as a "?", as `ls` does."""
    return "".join("?" if unicodedata.category(character) in _NOT_PRINTED else character for character in text)
