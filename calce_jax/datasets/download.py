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
from calce_jax.storage.atomic_files import write_output
from calce_jax.storage.disk_space import free_bytes

# The base of what the hub's HTTP library raises; which library that is changes with the hub's version.
HubNetworkError = cast(type[Exception], HfHubHTTPError.__mro__[1])

RECORD = "fetched.json"
SECONDS = 60  # without a byte, after which a connection is given up
DRIVE_RETRIES = 3
BLOCK = 2**20  # bytes


class FetchError(UserError):
    """Something cannot be fetched; the message, one line, names it, what is wrong and the remedy."""


class NoNetworkError(UserError):
    """A server cannot be reached, or the connection breaks again and again; the message, one line, tells which."""


@dataclass(frozen=True)
class Fetched:
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
    publication: Publication, out: str | Path, *, endpoint: str | None = None, say: Callable[[str], None] = print
) -> tuple[list[Fetched], list[str]]:
    """Fetch all parts; one that a source refuses does not stop the others.

    Args:
      publication: what, see `calce_jax.datasets.sources`.
      out: the folder; files that are there and whole are not fetched again.
      endpoint: of the hub; `$HF_ENDPOINT`, or https://huggingface.co, unless given.
      say: is told of each file that is there.

    Returns:
      The files, and a line for each part that could not be fetched, with what to do by hand.

    Raises:
      NoNetworkError: a server cannot be reached.
      OSError: the folder cannot be written.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    files: list[Fetched] = []
    faults: list[str] = []
    record = _read_record(out)
    try:
        for part in publication.parts:
            try:
                for fetched in _fetch_part(part, out, endpoint, record, faults):
                    files.append(fetched)
                    record[fetched.file] = fetched
                    say(f"{fetched.file}  {fetched.size / 1e6:.1f} MB  sha256 {fetched.sha256}")
            except FetchError as error:
                faults.append(str(error))
    finally:
        if files:
            rows = [asdict(record[name]) for name in sorted(record)]
            write_output(out / RECORD, json.dumps(rows, indent=2) + "\n")
    return files, faults


def _fetch_part(
    part: HubRepo | DriveFile | DriveFolder,
    out: Path,
    endpoint: str | None,
    record: dict[str, Fetched],
    faults: list[str],
) -> Iterator[Fetched]:
    if isinstance(part, HubRepo):
        yield from _fetch_repo(part, out, endpoint, record)
        return
    listed = [(part.id, part.name or _drive_name(part.id, out))] if isinstance(part, DriveFile) else _listed(part, out)
    for file_id, name in listed:
        try:
            yield _fetch_drive_file(file_id, name, out, record)
        except FetchError as error:
            faults.append(str(error))


def _fetch_repo(part: HubRepo, out: Path, endpoint: str | None, record: dict[str, Fetched]) -> Iterator[Fetched]:
    """Fetch the wanted files of a model on the hub.

    Raises:
      FetchError: the hub refuses, lacks a file, or gives another than it promised; or there is not enough room.
    """
    # No token: everything here is public, and `endpoint` may be anybody's.
    api = HfApi(endpoint=endpoint, token=False)
    page = f"{api.endpoint}/{part.repo}"
    by_hand = f"open it in a browser, and put {', '.join(part.required)} into {out / part.folder}"
    with _hub_faults(page, by_hand):
        info = api.model_info(part.repo, files_metadata=True, timeout=SECONDS)
    siblings = info.siblings or []
    wanted = _matching(siblings, part.required + part.optional)
    missing = [pattern for pattern in part.required if not _matching(siblings, (pattern,))]
    if missing:
        raise FetchError(f"{page} has no {', '.join(missing)}", f"{by_hand}")

    places = [_place(out, part.folder, sibling.rfilename) for sibling in wanted]
    there = [_is_there(place, sibling) for place, sibling in zip(places, wanted, strict=True)]
    _check_room(out, [(place, s) for place, s, whole in zip(places, wanted, there, strict=True) if not whole])
    for place, sibling, whole in zip(places, wanted, there, strict=True):
        name = place.relative_to(out).as_posix()
        address = hf_hub_url(part.repo, sibling.rfilename, revision=info.sha, endpoint=api.endpoint)
        if not whole:
            if place.exists() and (name not in record or record[name].source.split("@")[0] != part.repo):
                raise FetchError(
                    f"{place} is there and is not that of {part.repo}", "choose another --out, or remove the file"
                )
            with _hub_faults(page, by_hand):
                _download(address, place, sibling)
        yield _fetched(place, out, f"{part.repo}@{info.sha}", "sha256" if sibling.lfs else "git")


def _matching(siblings: Sequence[RepoSibling], patterns: Sequence[str]) -> list[RepoSibling]:
    return [s for s in siblings if any(fnmatch.fnmatchcase(s.rfilename, pattern) for pattern in patterns)]


def _download(address: str, place: Path, promised: RepoSibling) -> None:
    """Download to a name of its own, going on with what an earlier attempt left there; check, then rename."""
    # The hub's own `hf_hub_download` goes on within one call; what a stopped process has fetched it throws away.
    part = place.with_name(f"{place.name}.part")
    place.parent.mkdir(parents=True, exist_ok=True)
    if promised.size is not None and part.exists() and part.stat().st_size > promised.size:
        part.unlink()
    with part.open("ab") as file:
        # Places in the file must be places in the content.
        headers = {"Accept-Encoding": "identity"}
        http_get(
            address,
            file,
            resume_size=file.tell(),
            headers=headers,
            expected_size=promised.size,
            displayed_filename=place.name,
        )
    if fault := _differs(part, promised):
        part.unlink()
        raise FetchError(f"{address}: {fault}: damaged on the way, or changed there", "run the same command again")
    os.replace(part, place)


def _differs(path: Path, promised: RepoSibling) -> str:
    """Return in what a file differs from what the hub promised; "" where it is the same."""
    size = path.stat().st_size
    if promised.size is not None and size != promised.size:
        return f"{size} bytes came and {promised.size} were promised"
    if promised.lfs:
        kind, expected, found = "sha256", promised.lfs.sha256, _digest(path, hashlib.sha256())
    else:
        # What git calls a file: the sha1 of a header and the content.
        kind, expected = "git hash", promised.blob_id
        found = _digest(path, hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False))
    return "" if found == expected else f"its {kind} is {found} and {expected} was promised"


def _is_there(place: Path, promised: RepoSibling) -> bool:
    return place.is_file() and not _differs(place, promised)


def _check_room(out: Path, wanted: Sequence[tuple[Path, RepoSibling]]) -> None:
    needed = sum(promised.size or 0 for _, promised in wanted)
    parts = [place.with_name(f"{place.name}.part") for place, _ in wanted]
    needed -= sum(part.stat().st_size for part in parts if part.exists())
    free = free_bytes(out)
    if needed > free:
        raise FetchError(
            f"{out} needs {needed / 1e9:.2f} GB more and {free / 1e9:.2f} GB are free",
            "make room, or choose another --out",
        )


@contextmanager
def _hub_faults(address: str, by_hand: str) -> Iterator[None]:
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
            f"{address} cannot be reached ({_line(error)})",
            "check the network, or name a mirror by HF_ENDPOINT. The same command goes on with what has arrived",
        ) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise FetchError(f"{address}: {error.strerror}", "make room, and the same command goes on") from error
        raise NoNetworkError(f"{address}: {_line(error)}", "the same command goes on with what has arrived") from error


def _listed(part: DriveFolder, out: Path) -> list[tuple[str, str]]:
    """Return the ids and places of the files in a folder on Google Drive."""
    address = f"https://drive.google.com/drive/folders/{part.id}"
    with _drive_faults(address, f"open it in a browser, and put its files into {out / part.name}"):
        # Its types allow for links and for Google's own documents, which have no id.
        found: Any = gdown.download_folder(
            id=part.id, output=part.name, quiet=True, use_cookies=False, skip_download=True, timeout=SECONDS
        )
    if not found:
        raise FetchError(f"{address} shows no file", f"open it in a browser, and put its files into {out / part.name}")
    return [(file.id, f"{part.name}/{file.path}") for file in found]


def _drive_name(file_id: str, out: Path) -> str:
    """Ask for the name of a file on Google Drive."""
    address = _drive_address(file_id)
    with _drive_faults(address, f"open it in a browser, and put the file into {out}"):
        found: Any = gdown.download(id=file_id, quiet=True, use_cookies=False, skip_download=True, timeout=SECONDS)
    return found.path


def _drive_address(file_id: str) -> str:
    return f"https://drive.google.com/file/d/{file_id}/view"


def _fetch_drive_file(file_id: str, name: str, out: Path, record: dict[str, Fetched]) -> Fetched:
    """Fetch one file of Google Drive, unless it is there and whole."""
    place, address = _place(out, "", name), _drive_address(file_id)
    source = f"drive:{file_id}"
    by_hand = f"open it in a browser, save it as {place}, and run the same command, which checks it"
    again = "run the same command again"
    if place.exists():
        fetched = _fetched(place, out, source, _check_whole(place, address, f"remove it, and {again}"))
        known = record.get(fetched.file)
        if known and known.source == source and known.sha256 != fetched.sha256:
            raise FetchError(f"{place}: changed since it was fetched", f"remove it, and {again}")
        return fetched
    # gdown keeps what has arrived beside it, and goes on with that.
    new = place.with_name(f"new_{place.name}")
    place.parent.mkdir(parents=True, exist_ok=True)
    with _drive_faults(address, by_hand):
        gdown.download(
            id=file_id, output=str(new), use_cookies=False, resume=True, timeout=SECONDS, retries=DRIVE_RETRIES
        )
    try:
        checked = _check_whole(new, address, again)
    except FetchError:
        new.unlink()
        raise
    os.replace(new, place)
    return _fetched(place, out, source, checked)


@contextmanager
def _drive_faults(address: str, by_hand: str) -> Iterator[None]:
    """Tell in a line what goes wrong with Google Drive."""
    unreachable = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    try:
        yield
    except (DownloadError, requests.RequestException) as error:
        cause = error.__cause__ if isinstance(error, DownloadError) else error
        if isinstance(cause, unreachable):
            raise NoNetworkError(
                f"{address} cannot be reached ({_line(cause)})",
                "check the network. The same command goes on with what has arrived",
            ) from error
        raise FetchError(f"{address}: Google Drive refuses ({_line(error)})", f"{by_hand}") from error
    except OSError as error:
        raise FetchError(f"{address}: {_line(error)}", "make room, and the same command goes on") from error


def _check_whole(path: Path, address: str, remedy: str) -> str:
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
                broken = archive.testzip()
        except (zipfile.BadZipFile, EOFError, OSError) as error:
            raise FetchError(f"{path}: a damaged archive ({_line(error)})", f"{remedy}") from error
        if broken:
            raise FetchError(f"{path}: a damaged archive, the checksum of {broken} is wrong", f"{remedy}")
        return "archive"
    if path.suffix == ".json":
        try:
            json.loads(path.read_bytes())
        except ValueError as error:
            raise FetchError(f"{path}: not whole JSON ({_line(error)})", f"{remedy}") from error
        return "json"
    return ""


def _place(out: Path, folder: str, name: str) -> Path:
    """Return where a file goes; its name comes from elsewhere, and must not lead out of the folder."""
    place = out / folder / name
    if not place.resolve().is_relative_to(out.resolve()):
        raise FetchError(f"{name}: a file of this name would be written outside {out}", "fetch it by hand")
    return place


def _fetched(place: Path, out: Path, source: str, checked: str) -> Fetched:
    name = place.relative_to(out).as_posix()
    return Fetched(name, place.stat().st_size, _digest(place, hashlib.sha256()), source, checked)


def _digest(path: Path, running: Any) -> str:
    """Return the hexadecimal hash of a file, on top of what `running` has taken in."""
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            running.update(block)
    return running.hexdigest()


def _read_record(out: Path) -> dict[str, Fetched]:
    """Return what earlier runs fetched; a record that cannot be read is as good as none."""
    try:
        return {row["file"]: Fetched(**row) for row in json.loads((out / RECORD).read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _line(error: BaseException) -> str:
    """Return an error's message in one line."""
    return " ".join(str(error).split()) or type(error).__name__
