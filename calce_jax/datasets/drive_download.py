"""Download files of Google Drive, which publishes neither size nor hash: a file is checked by its format.

An archive, as every checkpoint is, holds a CRC-32 of each member. gdown does the transfers (6.5), and continues its
partial files; it checks no content.
"""

import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gdown
import requests
from gdown.exceptions import DownloadError

from calce_jax.datasets.fetched_files import (
    CONTINUE,
    NO_SUCH_ANSWER,
    RETRY,
    TIMEOUT_SECONDS,
    FetchedFile,
    FetchError,
    NoNetworkError,
    one_line,
    record_file,
    target_path,
)
from calce_jax.datasets.sources import DriveFolder

DRIVE_RETRIES = 3


def list_drive_folder(part: DriveFolder, out: Path) -> list[tuple[str, str]]:
    """Return (id, path) of each file in a folder on Google Drive."""
    address = f"https://drive.google.com/drive/folders/{part.id}"
    by_hand = f"open it in a browser, and put its files into {out / part.name}"
    with _drive_errors(address, by_hand):
        # gdown's types include shortcuts and Google documents, which have no id.
        entries: Any = gdown.download_folder(
            id=part.id, output=part.name, quiet=True, use_cookies=False, skip_download=True, timeout=TIMEOUT_SECONDS
        )
    if not entries:
        raise FetchError(f"{address} lists no file", by_hand)
    return [(file.id, f"{part.name}/{file.path}") for file in entries]


def drive_name(file_id: str, out: Path) -> str:
    """Return the name of a file on Google Drive."""
    with _drive_errors(_drive_address(file_id), f"open it in a browser, and put the file into {out}"):
        metadata: Any = gdown.download(
            id=file_id, quiet=True, use_cookies=False, skip_download=True, timeout=TIMEOUT_SECONDS
        )
    return metadata.path


def _drive_address(file_id: str) -> str:
    return f"https://drive.google.com/file/d/{file_id}/view"


def fetch_drive_file(file_id: str, name: str, out: Path, record: dict[str, FetchedFile]) -> FetchedFile:
    """Fetch one file from Google Drive, or verify the existing one."""
    target, address = target_path(out, "", name), _drive_address(file_id)
    source = f"drive:{file_id}"
    if target.exists():
        remedy = f"remove it, and {RETRY}"
        fetched = record_file(target, out, source, _verify_content(target, address, remedy))
        recorded = record.get(fetched.file)
        if recorded and recorded.source == source and recorded.sha256 != fetched.sha256:
            raise FetchError(f"{target}: changed since it was fetched", remedy)
        return fetched
    # gdown keeps its partial file in the same folder and continues it.
    new = target.with_name(f"new_{target.name}")
    target.parent.mkdir(parents=True, exist_ok=True)
    by_hand = f"open it in a browser, save it as {target}, and {RETRY}, which verifies it"
    with _drive_errors(address, by_hand):
        gdown.download(
            id=file_id,
            output=str(new),
            use_cookies=False,
            resume=True,
            timeout=TIMEOUT_SECONDS,
            retries=DRIVE_RETRIES,
        )
    try:
        checked = _verify_content(new, address, RETRY)
    except FetchError:
        new.unlink()
        raise
    os.replace(new, target)
    return record_file(target, out, source, checked)


@contextmanager
def _drive_errors(address: str, by_hand: str) -> Iterator[None]:
    """Turn errors of gdown into a FetchError or NoNetworkError of one line."""
    unreachable = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    try:
        yield
    except (DownloadError, requests.RequestException) as error:
        cause = error.__cause__ if isinstance(error, DownloadError) else error
        if isinstance(cause, unreachable):
            raise NoNetworkError(
                f"{address} cannot be reached ({one_line(cause)})", f"check the network, and {CONTINUE}"
            ) from error
        raise FetchError(f"{address}: Google Drive refuses ({one_line(error)})", by_hand) from error
    except OSError as error:
        raise FetchError(f"{address}: {one_line(error)}", f"make room, and {CONTINUE}") from error
    except NO_SUCH_ANSWER as error:
        raise FetchError(
            f"{address}: the answer is not that of Google Drive ({type(error).__name__})", by_hand
        ) from error


def _verify_content(path: Path, address: str, remedy: str) -> str:
    """Verify a file without a published hash; return what it was verified by, see `FetchedFile.checked`.

    Raises:
      FetchError: it is empty or damaged, or a web page instead of a file.
    """
    with path.open("rb") as file:
        head = file.read(512).lstrip().lower()
    if not head:
        raise FetchError(f"{path}: empty", remedy)
    if head.startswith((b"<!doctype html", b"<html")):
        raise FetchError(f"{path}: a web page instead of a file", f"open {address} in a browser to see why")
    if head.startswith(b"pk\x03\x04"):
        try:
            with zipfile.ZipFile(path) as archive:
                corrupt_member = archive.testzip()
        except (zipfile.BadZipFile, EOFError, OSError) as error:
            raise FetchError(f"{path}: a damaged archive ({one_line(error)})", remedy) from error
        if corrupt_member:
            raise FetchError(f"{path}: a damaged archive, the checksum of {corrupt_member} is wrong", remedy)
        return "archive"
    if path.suffix == ".json":
        try:
            json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise FetchError(f"{path}: damaged JSON ({one_line(error)})", remedy) from error
        return "json"
    return ""
