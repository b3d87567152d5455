"""Files that were fetched: where they lie, what is recorded of them, and the errors of fetching."""

import json
from dataclasses import dataclass
from pathlib import Path

from calce_jax.errors import UserError
from calce_jax.storage.provenance import file_hash

# Raised by the clients for pages that are not what they expect, such as that of a captive portal.
NO_SUCH_ANSWER = (ValueError, TypeError, LookupError, AttributeError, RecursionError)
RECORD_FILE = "fetched.json"
TIMEOUT_SECONDS = 60  # without a byte received
RETRY = "run the same command again"
CONTINUE = f"{RETRY} to continue"


class FetchError(UserError):
    """A file cannot be fetched; a message of one line names it, the reason and the remedy."""


class NoNetworkError(UserError):
    """A server cannot be reached, or the connection breaks repeatedly; a message of one line names the address."""


@dataclass(frozen=True)
class FetchedFile:
    """A complete file in the output folder.

    Attributes:
      file: path relative to the output folder.
      size: bytes.
      sha256: of its content, hexadecimal.
      source: "REPO@COMMIT" of the hub, or "drive:ID".
      checked: what it was verified by: "sha256", "git" (hash), "archive", "json", or "" if there is nothing to verify.
    """

    file: str
    size: int
    sha256: str
    source: str
    checked: str


def target_path(out: Path, folder: str, name: str) -> Path:
    """Return the path of a file in the output folder; `name` comes from a server and must not lead outside."""
    target = out / folder / name
    if not target.resolve().is_relative_to(out.resolve()):
        raise FetchError(f"{name}: a file of this name would be written outside {out}", "fetch it by hand")
    return target


def record_file(target: Path, out: Path, source: str, checked: str) -> FetchedFile:
    """Return the record of a file that is complete and verified."""
    return FetchedFile(target.relative_to(out).as_posix(), target.stat().st_size, file_hash(target), source, checked)


def read_record(out: Path) -> dict[str, FetchedFile]:
    """Return the files that earlier runs recorded, by name; an unreadable record counts as empty."""
    try:
        return {row["file"]: FetchedFile(**row) for row in json.loads((out / RECORD_FILE).read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}


def one_line(error: BaseException) -> str:
    """Return the message of an error without line breaks, or its name if it has none."""
    return " ".join(str(error).split()) or type(error).__name__
