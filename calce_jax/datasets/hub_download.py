"""Download files of the Hugging Face hub, which publishes the size and a hash of each.

huggingface_hub does the transfers. What is here, it does not do (2.4): its `hf_hub_download` deletes a partial file
when its process ends, and does not check the content.
"""

import errno
import fnmatch
import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import build_hf_headers

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
from calce_jax.datasets.sources import HubRepo
from calce_jax.errors import UserError
from calce_jax.storage.disk_space import format_bytes, free_bytes
from calce_jax.storage.provenance import file_hash

# The base class of errors of the hub's HTTP library, which differs between versions of huggingface_hub.
HubNetworkError = cast(type[Exception], HfHubHTTPError.__mro__[1])
ENDPOINT_VARIABLE = "HF_ENDPOINT"


def fetch_repo(part: HubRepo, out: Path, api: HfApi, record: dict[str, FetchedFile]) -> Iterator[FetchedFile]:
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
        target_path(out, part.folder, sibling.rfilename): sibling
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
        yield record_file(target, out, f"{part.repo}@{info.sha}", "sha256" if sibling.lfs else "git")


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
    with BoundedFile(partial, sibling.size, address) as file:
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


class BoundedFile(io.FileIO):
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
            f"{address} cannot be reached ({one_line(error)})",
            f"check the network, or set HF_ENDPOINT to a mirror, and {CONTINUE}",
        ) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise FetchError(f"{address}: {error.strerror}", f"make room, and {CONTINUE}") from error
        raise NoNetworkError(f"{address}: {one_line(error)}", CONTINUE) from error
    except NO_SUCH_ANSWER as error:
        raise FetchError(
            f"{address}: the answer is not that of the hub ({type(error).__name__})",
            f"open it in a browser: a network may want a login first, or {ENDPOINT_VARIABLE} be wrong; then {RETRY}",
        ) from error
