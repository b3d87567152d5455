"""Download published files: resume interrupted downloads, verify checksums, never unpickle.

The Hugging Face hub publishes the size and a hash of each file. Google Drive publishes neither, so a file from there is
checked by its format: an archive, as every checkpoint is, holds a CRC-32 of each member. `OUT/fetched.json` lists the
sha256 of every file, to be compared with that of another copy.

huggingface_hub and gdown do the transfers. What is here, they do not do (huggingface_hub 2.4, gdown 6.5): the hub's
`hf_hub_download` deletes a partial file when its process ends, and neither library checks the content. Files are
written only below the output folder: no cache and no cookies. A token is sent only if the caller gives one.
"""

import errno
import fnmatch
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import gdown
import requests
from gdown.exceptions import DownloadError
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import build_hf_headers

from calce_jax.datasets.sources import DriveFile, DriveFolder, HubRepo, Publication
from calce_jax.errors import UserError
from calce_jax.storage.atomic_files import write_atomic
from calce_jax.storage.disk_space import format_bytes, free_bytes
from calce_jax.storage.provenance import file_hash

# The base class of errors of the hub's HTTP library, which differs between versions of huggingface_hub.
HubNetworkError = cast(type[Exception], HfHubHTTPError.__mro__[1])

# Raised by the clients for pages that are not what they expect, such as that of a captive portal.
NO_SUCH_ANSWER = (ValueError, TypeError, LookupError, AttributeError, RecursionError)
ENDPOINT_VARIABLE = "HF_ENDPOINT"
RECORD_FILE = "fetched.json"
TIMEOUT_SECONDS = 60  # without a byte received
DRIVE_RETRIES = 3
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


def fetch(
    publication: Publication,
    out: str | Path,
    *,
    endpoint: str | None = None,
    token: str | None = None,
    log: Callable[[str], None] = print,
) -> tuple[list[FetchedFile], list[FetchError]]:
    """Fetch all parts of a publication; one that a server refuses does not stop the others.

    Args:
      publication: see `calce_jax.datasets.sources`.
      out: output folder; complete files in it are verified and not fetched again.
      endpoint: of the hub; by default `$HF_ENDPOINT`, or https://huggingface.co.
      token: of the hub, for repositories that are not public; none is sent unless given.
      log: called with one line for each file.

    Returns:
      The files, and an error for each part that could not be fetched, with instructions to do so by hand.

    Raises:
      NoNetworkError: a server cannot be reached.
      OSError: the folder cannot be written.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    files: list[FetchedFile] = []
    errors: list[FetchError] = []
    record = _read_record(out)
    # No token unless given: our sources are public, and `endpoint` may be anybody's server.
    api = HfApi(endpoint=endpoint, token=token or False)
    try:
        for part in publication.parts:
            try:
                for fetched in _fetch_part(part, out, api, record, errors):
                    files.append(fetched)
                    record[fetched.file] = fetched
                    log(f"{fetched.file}  {fetched.size / 1e6:.1f} MB  sha256 {fetched.sha256}")
            except FetchError as error:
                errors.append(error)
    finally:
        if files:
            rows = [asdict(record[name]) for name in sorted(record)]
            write_atomic(out / RECORD_FILE, json.dumps(rows, indent=2) + "\n")
    return files, errors


def _fetch_part(
    part: HubRepo | DriveFile | DriveFolder,
    out: Path,
    api: HfApi,
    record: dict[str, FetchedFile],
    errors: list[FetchError],
) -> Iterator[FetchedFile]:
    """Yield the files of a part; errors of single files on Google Drive are added to `errors`."""
    if isinstance(part, HubRepo):
        yield from _fetch_repo(part, out, api, record)
        return
    drive_files = (
        [(part.id, part.name or _drive_name(part.id, out))]
        if isinstance(part, DriveFile)
        else _list_drive_folder(part, out)
    )
    for file_id, name in drive_files:
        try:
            yield _fetch_drive_file(file_id, name, out, record)
        except FetchError as error:
            errors.append(error)


def _fetch_repo(part: HubRepo, out: Path, api: HfApi, record: dict[str, FetchedFile]) -> Iterator[FetchedFile]:
    """Yield the selected files of a repository on the hub.

    Raises:
      FetchError: the hub refuses, lacks a required file or sends other content than published; or the disk is too full.
    """
    page = f"{api.endpoint}/{part.repo}"
    by_hand = f"open it in a browser, and put {', '.join(part.required)} into {out / part.folder}"
    with hub_errors(page, by_hand):
        info = api.model_info(part.repo, files_metadata=True, timeout=TIMEOUT_SECONDS)
    siblings = info.siblings or []
    missing = [pattern for pattern in part.required if not _matching(siblings, (pattern,))]
    if missing:
        raise FetchError(f"{page} has no {', '.join(missing)}", by_hand)
    targets = {
        _target_path(out, part.folder, sibling.rfilename): sibling
        for sibling in _matching(siblings, part.required + part.optional)
    }
    pending = {target: s for target, s in targets.items() if not target.is_file() or _describe_mismatch(target, s)}
    _check_free_space(out, pending)
    for target, sibling in targets.items():
        name = target.relative_to(out).as_posix()
        if target in pending:
            if target.exists() and (name not in record or record[name].source.split("@")[0] != part.repo):
                raise FetchError(
                    f"{target} exists and is not from {part.repo}", "choose another --out, or remove the file"
                )
            with hub_errors(page, by_hand):
                address = hf_hub_url(part.repo, sibling.rfilename, revision=info.sha, endpoint=api.endpoint)
                _download(address, target, sibling, api)
        yield _file_record(target, out, f"{part.repo}@{info.sha}", "sha256" if sibling.lfs else "git")


def describe_repo(part: HubRepo, *, endpoint: str | None = None, token: str | None = None) -> tuple[int, str]:
    """Return the bytes of the selected files of a repository on the hub, and the licence that its model card states.

    Args:
      part: the repository, and patterns of its files.
      endpoint, token: as for `fetch`.

    Returns:
      Bytes, and the licence's identifier; "" where the card has none.

    Raises:
      FetchError: the hub refuses, or lacks a required file.
      NoNetworkError: it cannot be reached.
    """
    api = HfApi(endpoint=endpoint, token=token or False)
    page = f"{api.endpoint}/{part.repo}"
    with hub_errors(page, "correct the name; a private one needs $HF_TOKEN, or `hf auth login`"):
        info = api.model_info(part.repo, files_metadata=True, timeout=TIMEOUT_SECONDS)
        licence = info.card_data.get("license") if info.card_data else None
    siblings = info.siblings or []
    if missing := [pattern for pattern in part.required if not _matching(siblings, (pattern,))]:
        raise FetchError(f"{page} has no {', '.join(missing)}", "choose a model that `calce push` published")
    selected = _matching(siblings, part.required + part.optional)
    return sum(sibling.size or 0 for sibling in selected), str(licence or "")


def _matching(siblings: Sequence[RepoSibling], patterns: Sequence[str]) -> list[RepoSibling]:
    return [s for s in siblings if any(fnmatch.fnmatchcase(s.rfilename, pattern) for pattern in patterns)]


def _partial_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _download(address: str, target: Path, sibling: RepoSibling, api: HfApi) -> None:
    """Download to a partial file, continuing one of an earlier process; verify it, then rename it to `target`."""
    partial = _partial_path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    if sibling.size is not None and partial.exists() and partial.stat().st_size > sibling.size:
        partial.unlink()
    with _BoundedFile(partial, sibling.size, address) as file:
        http_get(
            address,
            file,
            resume_size=file.tell(),
            # Offsets in the file must be offsets in the content.
            headers=build_hf_headers(token=api.token) | {"Accept-Encoding": "identity"},
            expected_size=sibling.size,
            displayed_filename=target.name,
        )
    if mismatch := _describe_mismatch(partial, sibling):
        partial.unlink()
        raise FetchError(f"{address}: {mismatch}: damaged in transfer, or changed there", RETRY)
    os.replace(partial, target)


class _BoundedFile(io.FileIO):
    """A file to append to, up to the size that the hub published; a server that sends more would fill the disk."""

    def __init__(self, path: Path, max_bytes: int | None, address: str):
        super().__init__(path, "ab")
        self._max_bytes, self._path, self._address = max_bytes, path, address

    def write(self, data: Any, /) -> int:
        """Write all bytes.

        Raises:
          FetchError: there are more than were published; the file is removed.
        """
        if self._max_bytes is not None and self.tell() + len(data) > self._max_bytes:
            self._path.unlink()
            raise FetchError(
                f"{self._address}: the server sends more than the published {self._max_bytes} bytes", "try again later"
            )
        rest = memoryview(data)
        while rest:
            rest = rest[super().write(rest) or 0 :]
        return len(data)


def _describe_mismatch(path: Path, sibling: RepoSibling) -> str:
    """Return how a file differs from what the hub published, or ""."""
    size = path.stat().st_size
    if sibling.size is not None and size != sibling.size:
        return f"it has {size} bytes, not the published {sibling.size}"
    if sibling.lfs:
        hash_name, expected, actual = "sha256", sibling.lfs.sha256, file_hash(path)
    else:
        # Git hashes a header and the content.
        hash_name, expected = "git hash", sibling.blob_id
        header = f"blob {size}\0".encode()
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, lambda: hashlib.sha1(header, usedforsecurity=False)).hexdigest()
    return "" if actual == expected else f"its {hash_name} is {actual}, not the published {expected}"


def _check_free_space(out: Path, pending: dict[Path, RepoSibling]) -> None:
    partials = [partial for partial in map(_partial_path, pending) if partial.exists()]
    needed = sum(sibling.size or 0 for sibling in pending.values()) - sum(p.stat().st_size for p in partials)
    free = free_bytes(out)
    if needed > free:
        raise FetchError(
            f"{out} needs {format_bytes(needed)} more and {format_bytes(free)} are free",
            "make room, or choose another --out",
        )


@contextmanager
def hub_errors(address: str, by_hand: str) -> Iterator[None]:
    """Turn errors of the hub's client into a FetchError or NoNetworkError of one line."""
    try:
        yield
    except UserError:
        raise
    except HfHubHTTPError as error:
        status = error.response.status_code
        remedy = "try again later" if status >= 500 or status == 429 else by_hand
        raise FetchError(f"{address}: the server answers {status}", remedy) from error
    except OfflineModeIsEnabled as error:
        raise NoNetworkError(f"{address}: HF_HUB_OFFLINE forbids connections", "unset it") from error
    except HubNetworkError as error:
        raise NoNetworkError(
            f"{address} cannot be reached ({_one_line(error)})",
            f"check the network, or set HF_ENDPOINT to a mirror, and {CONTINUE}",
        ) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise FetchError(f"{address}: {error.strerror}", f"make room, and {CONTINUE}") from error
        raise NoNetworkError(f"{address}: {_one_line(error)}", CONTINUE) from error
    except NO_SUCH_ANSWER as error:
        raise FetchError(
            f"{address}: the answer is not that of the hub ({type(error).__name__})",
            f"open it in a browser: a network may want a login first, or {ENDPOINT_VARIABLE} be wrong; then {RETRY}",
        ) from error


def _list_drive_folder(part: DriveFolder, out: Path) -> list[tuple[str, str]]:
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


def _drive_name(file_id: str, out: Path) -> str:
    """Return the name of a file on Google Drive."""
    with _drive_errors(_drive_address(file_id), f"open it in a browser, and put the file into {out}"):
        metadata: Any = gdown.download(
            id=file_id, quiet=True, use_cookies=False, skip_download=True, timeout=TIMEOUT_SECONDS
        )
    return metadata.path


def _drive_address(file_id: str) -> str:
    return f"https://drive.google.com/file/d/{file_id}/view"


def _fetch_drive_file(file_id: str, name: str, out: Path, record: dict[str, FetchedFile]) -> FetchedFile:
    """Fetch one file from Google Drive, or verify the existing one."""
    target, address = _target_path(out, "", name), _drive_address(file_id)
    source = f"drive:{file_id}"
    if target.exists():
        remedy = f"remove it, and {RETRY}"
        fetched = _file_record(target, out, source, _verify_content(target, address, remedy))
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
    return _file_record(target, out, source, checked)


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
                f"{address} cannot be reached ({_one_line(cause)})", f"check the network, and {CONTINUE}"
            ) from error
        raise FetchError(f"{address}: Google Drive refuses ({_one_line(error)})", by_hand) from error
    except OSError as error:
        raise FetchError(f"{address}: {_one_line(error)}", f"make room, and {CONTINUE}") from error
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
            raise FetchError(f"{path}: a damaged archive ({_one_line(error)})", remedy) from error
        if corrupt_member:
            raise FetchError(f"{path}: a damaged archive, the checksum of {corrupt_member} is wrong", remedy)
        return "archive"
    if path.suffix == ".json":
        try:
            json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise FetchError(f"{path}: damaged JSON ({_one_line(error)})", remedy) from error
        return "json"
    return ""


def _target_path(out: Path, folder: str, name: str) -> Path:
    """Return the path of a file in the output folder; `name` comes from a server and must not lead outside."""
    target = out / folder / name
    if not target.resolve().is_relative_to(out.resolve()):
        raise FetchError(f"{name}: a file of this name would be written outside {out}", "fetch it by hand")
    return target


def _file_record(target: Path, out: Path, source: str, checked: str) -> FetchedFile:
    return FetchedFile(target.relative_to(out).as_posix(), target.stat().st_size, file_hash(target), source, checked)


def _read_record(out: Path) -> dict[str, FetchedFile]:
    """Return the files that earlier runs recorded, by name; an unreadable record counts as empty."""
    try:
        return {row["file"]: FetchedFile(**row) for row in json.loads((out / RECORD_FILE).read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
