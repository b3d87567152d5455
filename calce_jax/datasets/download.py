"""Download published files: resume interrupted downloads, verify checksums, never unpickle.

`OUT/fetched.json` lists the sha256 of every file, to be compared with that of another copy. Files are written only
below the output folder: no cache and no cookies. A token is sent only if the caller gives one.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from huggingface_hub import HfApi

from calce_jax.datasets.drive_download import drive_name, fetch_drive_file, list_drive_folder
from calce_jax.datasets.fetched_files import RECORD_FILE, FetchedFile, FetchError, read_record
from calce_jax.datasets.hub_download import fetch_repo
from calce_jax.datasets.sources import DriveFile, DriveFolder, HubRepo, Publication
from calce_jax.storage.atomic_files import write_atomic


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
    record = read_record(out)
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
        yield from fetch_repo(part, out, api, record)
        return
    drive_files = (
        [(part.id, part.name or drive_name(part.id, out))]
        if isinstance(part, DriveFile)
        else list_drive_folder(part, out)
    )
    for file_id, name in drive_files:
        try:
            yield fetch_drive_file(file_id, name, out, record)
        except FetchError as error:
            errors.append(error)
