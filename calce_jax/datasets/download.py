"""Fetching what others published: interrupted downloads go on, what arrived is checked, and nothing is unpickled.

The hub tells the size and the hash of each file. Google Drive tells neither, so there a file is checked by what it is:
an archive, as every checkpoint is, carries a checksum of each of its members. `OUT/fetched.json` keeps the sha256 of
everything, for comparison with another machine's.

Files are written below the output folder alone: no cache, no cookies, no token is read or left behind.
"""

import errno
import fnmatch
import hashlib
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

from calce_jax.datasets.sources import DriveFile, DriveFolder, HubRepo, Publication
from calce_jax.errors import UserError
from calce_jax.storage.atomic_files import write_atomic
from calce_jax.storage.disk_space import free_bytes

# The base of what the hub's HTTP library raises; which library that is changes with the hub's version.
HubNetworkError = cast(type[Exception], HfHubHTTPError.__mro__[1])

RECORD_FILE = "fetched.json"
TIMEOUT_SECONDS = 60  # without a byte, after which a connection is given up
DRIVE_RETRIES = 3
HASH_BLOCK_BYTES = 2**20  # bytes


class FetchError(UserError):
    """Something cannot be fetched; the message, one line, names it, what is wrong and the remedy."""


class NoNetworkError(UserError):
    """A server cannot be reached, or the connection breaks again and again; the message, one line, tells which."""


@dataclass(frozen=True)
class FetchedFile:
    """A file that is there.

    Attributes:
      file: its place in the output folder.
      size: bytes.
      sha256: of its content, hexadecimal.
      source: where it came from.
      checked: against what: "sha256", "git", "archive", "json", or "" where there is nothing to check it against.
    """

    file: str
    size: int
    sha256: str
    source: str
    checked: str


def fetch(
    publication: Publication, out: str | Path, *, endpoint: str | None = None, log: Callable[[str], None] = print
) -> tuple[list[FetchedFile], list[str]]:
    """Fetch all parts; one that a source refuses does not stop the others.

    Args:
      publication: what, see `calce_jax.datasets.sources`.
      out: the folder; files that are there and whole are not fetched again.
      endpoint: of the hub; `$HF_ENDPOINT`, or https://huggingface.co, unless given.
      log: is told of each file that is there.

    Returns:
      The files, and a line for each part that could not be fetched, with what to do by hand.

    Raises:
      NoNetworkError: a server cannot be reached.
      OSError: the folder cannot be written.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    files: list[FetchedFile] = []
    errors: list[str] = []
    record = _read_record(out)
    try:
        for part in publication.parts:
            try:
                for fetched in _fetch_part(part, out, endpoint, record, errors):
                    files.append(fetched)
                    record[fetched.file] = fetched
                    log(f"{fetched.file}  {fetched.size / 1e6:.1f} MB  sha256 {fetched.sha256}")
            except FetchError as error:
                errors.append(str(error))
    finally:
        if files:
            rows = [asdict(record[name]) for name in sorted(record)]
            write_atomic(out / RECORD_FILE, json.dumps(rows, indent=2) + "\n")
    return files, errors


def _fetch_part(
    part: HubRepo | DriveFile | DriveFolder,
    out: Path,
    endpoint: str | None,
    record: dict[str, FetchedFile],
    errors: list[str],
) -> Iterator[FetchedFile]:
    if isinstance(part, HubRepo):
        yield from _fetch_repo(part, out, endpoint, record)
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
            errors.append(str(error))


def _fetch_repo(
    part: HubRepo, out: Path, endpoint: str | None, record: dict[str, FetchedFile]
) -> Iterator[FetchedFile]:
    """Fetch the wanted files of a model on the hub.

    Raises:
      FetchError: the hub refuses, lacks a file, or gives another than it promised; or there is not enough room.
    """
    # No token: everything here is public, and `endpoint` may be anybody's.
    api = HfApi(endpoint=endpoint, token=False)
    page = f"{api.endpoint}/{part.repo}"
    by_hand = f"open it in a browser, and put {', '.join(part.required)} into {out / part.folder}"
    with _hub_errors(page, by_hand):
        info = api.model_info(part.repo, files_metadata=True, timeout=TIMEOUT_SECONDS)
    siblings = info.siblings or []
    selected = _matching(siblings, part.required + part.optional)
    missing = [pattern for pattern in part.required if not _matching(siblings, (pattern,))]
    if missing:
        raise FetchError(f"{page} has no {', '.join(missing)}", f"{by_hand}")

    targets = [_target_path(out, part.folder, sibling.rfilename) for sibling in selected]
    are_complete = [_is_complete(target, sibling) for target, sibling in zip(targets, selected, strict=True)]
    _check_free_space(
        out,
        [
            (target, s)
            for target, s, is_complete in zip(targets, selected, are_complete, strict=True)
            if not is_complete
        ],
    )
    for target, sibling, is_complete in zip(targets, selected, are_complete, strict=True):
        name = target.relative_to(out).as_posix()
        address = hf_hub_url(part.repo, sibling.rfilename, revision=info.sha, endpoint=api.endpoint)
        if not is_complete:
            if target.exists() and (name not in record or record[name].source.split("@")[0] != part.repo):
                raise FetchError(
                    f"{target} is there and is not that of {part.repo}", "choose another --out, or remove the file"
                )
            with _hub_errors(page, by_hand):
                _download(address, target, sibling)
        yield _file_record(target, out, f"{part.repo}@{info.sha}", "sha256" if sibling.lfs else "git")


def _matching(siblings: Sequence[RepoSibling], patterns: Sequence[str]) -> list[RepoSibling]:
    return [s for s in siblings if any(fnmatch.fnmatchcase(s.rfilename, pattern) for pattern in patterns)]


def _download(address: str, target: Path, sibling: RepoSibling) -> None:
    """Download to a name of its own, going on with what an earlier attempt left there; check, then rename."""
    # The hub's own `hf_hub_download` goes on within one call; what a stopped process has fetched it throws away.
    partial = target.with_name(f"{target.name}.part")
    target.parent.mkdir(parents=True, exist_ok=True)
    if sibling.size is not None and partial.exists() and partial.stat().st_size > sibling.size:
        partial.unlink()
    with partial.open("ab") as file:
        # Places in the file must be places in the content.
        headers = {"Accept-Encoding": "identity"}
        http_get(
            address,
            file,
            resume_size=file.tell(),
            headers=headers,
            expected_size=sibling.size,
            displayed_filename=target.name,
        )
    if fault := _describe_mismatch(partial, sibling):
        partial.unlink()
        raise FetchError(f"{address}: {fault}: damaged on the way, or changed there", "run the same command again")
    os.replace(partial, target)


def _describe_mismatch(path: Path, sibling: RepoSibling) -> str:
    """Return in what a file differs from what the hub promised; "" where it is the same."""
    size = path.stat().st_size
    if sibling.size is not None and size != sibling.size:
        return f"{size} bytes came and {sibling.size} were promised"
    if sibling.lfs:
        hash_name, expected, actual = "sha256", sibling.lfs.sha256, _digest(path, hashlib.sha256())
    else:
        # What git calls a file: the sha1 of a header and the content.
        hash_name, expected = "git hash", sibling.blob_id
        actual = _digest(path, hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False))
    return "" if actual == expected else f"its {hash_name} is {actual} and {expected} was promised"


def _is_complete(target: Path, sibling: RepoSibling) -> bool:
    return target.is_file() and not _describe_mismatch(target, sibling)


def _check_free_space(out: Path, downloads: Sequence[tuple[Path, RepoSibling]]) -> None:
    num_bytes = sum(sibling.size or 0 for _, sibling in downloads)
    partials = [target.with_name(f"{target.name}.part") for target, _ in downloads]
    num_bytes -= sum(partial.stat().st_size for partial in partials if partial.exists())
    free = free_bytes(out)
    if num_bytes > free:
        raise FetchError(
            f"{out} needs {num_bytes / 1e9:.2f} GB more and {free / 1e9:.2f} GB are free",
            "make room, or choose another --out",
        )


@contextmanager
def _hub_errors(address: str, by_hand: str) -> Iterator[None]:
    """Tell in a line what goes wrong with the hub."""
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        remedy = "try again later" if status >= 500 or status == 429 else by_hand
        raise FetchError(f"{address}: the server answers {status}", f"{remedy}") from error
    except OfflineModeIsEnabled as error:
        raise NoNetworkError(f"{address}: HF_HUB_OFFLINE forbids to look", "unset it") from error
    except HubNetworkError as error:
        raise NoNetworkError(
            f"{address} cannot be reached ({_one_line(error)})",
            "check the network, or name a mirror by HF_ENDPOINT. The same command goes on with what has arrived",
        ) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise FetchError(f"{address}: {error.strerror}", "make room, and the same command goes on") from error
        raise NoNetworkError(
            f"{address}: {_one_line(error)}", "the same command goes on with what has arrived"
        ) from error


def _list_drive_folder(part: DriveFolder, out: Path) -> list[tuple[str, str]]:
    """Return the ids and places of the files in a folder on Google Drive."""
    address = f"https://drive.google.com/drive/folders/{part.id}"
    with _drive_errors(address, f"open it in a browser, and put its files into {out / part.name}"):
        # Its types allow for links and for Google's own documents, which have no id.
        entries: Any = gdown.download_folder(
            id=part.id, output=part.name, quiet=True, use_cookies=False, skip_download=True, timeout=TIMEOUT_SECONDS
        )
    if not entries:
        raise FetchError(f"{address} shows no file", f"open it in a browser, and put its files into {out / part.name}")
    return [(file.id, f"{part.name}/{file.path}") for file in entries]


def _drive_name(file_id: str, out: Path) -> str:
    """Ask for the name of a file on Google Drive."""
    address = _drive_address(file_id)
    with _drive_errors(address, f"open it in a browser, and put the file into {out}"):
        metadata: Any = gdown.download(
            id=file_id, quiet=True, use_cookies=False, skip_download=True, timeout=TIMEOUT_SECONDS
        )
    return metadata.path


def _drive_address(file_id: str) -> str:
    return f"https://drive.google.com/file/d/{file_id}/view"


def _fetch_drive_file(file_id: str, name: str, out: Path, record: dict[str, FetchedFile]) -> FetchedFile:
    """Fetch one file of Google Drive, unless it is there and whole."""
    target, address = _target_path(out, "", name), _drive_address(file_id)
    source = f"drive:{file_id}"
    by_hand = f"open it in a browser, save it as {target}, and run the same command, which checks it"
    retry_hint = "run the same command again"
    if target.exists():
        fetched = _file_record(target, out, source, _verify_content(target, address, f"remove it, and {retry_hint}"))
        recorded = record.get(fetched.file)
        if recorded and recorded.source == source and recorded.sha256 != fetched.sha256:
            raise FetchError(f"{target}: changed since it was fetched", f"remove it, and {retry_hint}")
        return fetched
    # gdown keeps what has arrived beside it, and goes on with that.
    partial = target.with_name(f"new_{target.name}")
    target.parent.mkdir(parents=True, exist_ok=True)
    with _drive_errors(address, by_hand):
        gdown.download(
            id=file_id,
            output=str(partial),
            use_cookies=False,
            resume=True,
            timeout=TIMEOUT_SECONDS,
            retries=DRIVE_RETRIES,
        )
    try:
        checked = _verify_content(partial, address, retry_hint)
    except FetchError:
        partial.unlink()
        raise
    os.replace(partial, target)
    return _file_record(target, out, source, checked)


@contextmanager
def _drive_errors(address: str, by_hand: str) -> Iterator[None]:
    """Tell in a line what goes wrong with Google Drive."""
    unreachable = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    try:
        yield
    except (DownloadError, requests.RequestException) as error:
        cause = error.__cause__ if isinstance(error, DownloadError) else error
        if isinstance(cause, unreachable):
            raise NoNetworkError(
                f"{address} cannot be reached ({_one_line(cause)})",
                "check the network. The same command goes on with what has arrived",
            ) from error
        raise FetchError(f"{address}: Google Drive refuses ({_one_line(error)})", f"{by_hand}") from error
    except OSError as error:
        raise FetchError(f"{address}: {_one_line(error)}", "make room, and the same command goes on") from error


def _verify_content(path: Path, address: str, remedy: str) -> str:
    """Return what a file whose hash nobody tells was checked against.

    Raises:
      FetchError: it is empty or damaged, or a page in the place of a file.
    """
    with path.open("rb") as file:
        head = file.read(512).lstrip().lower()
    if not head:
        raise FetchError(f"{path}: empty", f"{remedy}")
    if head.startswith((b"<!doctype html", b"<html")):
        raise FetchError(f"{path}: a web page came in the place of a file", f"open {address} in a browser to see why")
    if head.startswith(b"pk\x03\x04"):
        try:
            with zipfile.ZipFile(path) as archive:
                corrupt_member = archive.testzip()
        except (zipfile.BadZipFile, EOFError, OSError) as error:
            raise FetchError(f"{path}: a damaged archive ({_one_line(error)})", f"{remedy}") from error
        if corrupt_member:
            raise FetchError(f"{path}: a damaged archive, the checksum of {corrupt_member} is wrong", f"{remedy}")
        return "archive"
    if path.suffix == ".json":
        try:
            json.loads(path.read_bytes())
        except ValueError as error:
            raise FetchError(f"{path}: not whole JSON ({_one_line(error)})", f"{remedy}") from error
        return "json"
    return ""


def _target_path(out: Path, folder: str, name: str) -> Path:
    """Return where a file goes; its name comes from elsewhere, and must not lead out of the folder."""
    target = out / folder / name
    if not target.resolve().is_relative_to(out.resolve()):
        raise FetchError(f"{name}: a file of this name would be written outside {out}", "fetch it by hand")
    return target


def _file_record(target: Path, out: Path, source: str, checked: str) -> FetchedFile:
    name = target.relative_to(out).as_posix()
    return FetchedFile(name, target.stat().st_size, _digest(target, hashlib.sha256()), source, checked)


def _digest(path: Path, hasher: Any) -> str:
    """Return the hexadecimal hash of a file, on top of what `hasher` has taken in."""
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            hasher.update(block)
    return hasher.hexdigest()


def _read_record(out: Path) -> dict[str, FetchedFile]:
    """Return what earlier runs fetched; a record that cannot be read is as good as none."""
    try:
        return {row["file"]: FetchedFile(**row) for row in json.loads((out / RECORD_FILE).read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _one_line(error: BaseException) -> str:
    """Return an error's message in one line."""
    return " ".join(str(error).split()) or type(error).__name__
