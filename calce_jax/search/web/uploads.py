"""The upload route of Gradio's File component, in place of Gradio's own.

Gradio's route returns the path of the stored file, and a search request contains that path: a client can name any file
of the server. This route returns a random id, which the server looks up among the uploads of the same visitor; nothing
that a browser sends is used as a path.
"""

import asyncio
import json
import re
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from calce_jax.search.paths import SearchError
from calce_jax.search.web.quota import Limits, Quota, QuotaError
from calce_jax.search.web.visitors import ResultStore, visitor_from_cookies
from calce_jax.video.files import VIDEO_SUFFIXES

ROUTE = "/gradio_api/upload"
PROGRESS_ROUTE = "/gradio_api/upload_progress"
NO_COOKIE = "this page needs a cookie, so that only you can open your results; allow cookies and reload"
CAPTION_SUFFIXES = frozenset({".srt"})
MAX_CAPTION_MEGABYTES = 5.0
MAX_FORM_BYTES = 16_384  # of a form without the file: the boundary twice, and the headers of the part
MAX_STEM_CHARACTERS = 50  # file systems allow 255 bytes, and the name of a clip is longer than that of its video
START_TIMEOUT_S, POLL_S = 3.0, 0.2


@dataclass
class _Progress:
    """An upload in progress: the file name in the form, and the number of bytes received."""

    name: str = ""
    received: int = 0


class Uploads:
    """The uploads of all visitors.

    Args:
      store: has one folder for each upload, named by its id.
      quota: checks the limits during an upload.
      limits: the settings.
    """

    def __init__(self, store: ResultStore, quota: Quota, limits: Limits):
        self._store, self._quota, self._limits = store, quota, limits
        self._in_progress: dict[tuple[str, str], _Progress] = {}  # by visitor and the browser's id of the upload

    def find(self, upload: str, visitor: str, suffixes: frozenset[str]) -> Path:
        """Return the file of an upload.

        Args:
          upload: its id.
          visitor: the visitor of the request.
          suffixes: the allowed suffixes.

        Raises:
          SearchError: the visitor has no such upload, or its file has another suffix.
        """
        folder = self._store.folder_of(upload, visitor)
        files = [file for file in folder.iterdir() if file.is_file() and not file.is_symlink()] if folder else []
        if not files:
            raise SearchError(
                f"no such upload (files are deleted after {self._limits.retention_minutes:g} minutes)",
                "upload the file again",
            )
        if files[0].suffix.lower() not in suffixes:
            raise SearchError(
                f"{files[0].name}: expected {', '.join(sorted(suffixes))}", "upload it in the other field"
            )
        return files[0]

    def add_routes(self, app: FastAPI) -> None:
        """Add the routes; those of a Gradio app that is mounted later come after them."""

        @app.post(ROUTE)
        async def upload(request: Request, upload_id: str = "") -> Response:
            visitor = visitor_from_cookies(request.headers.get("cookie", ""))
            if not visitor:
                return PlainTextResponse(NO_COOKIE, 403)
            size = request.headers.get("content-length", "")
            if not (size.isascii() and size.isdigit()):
                return PlainTextResponse("the header Content-Length is missing", 411)
            if int(size) > self._limits.max_megabytes * 1e6 + MAX_FORM_BYTES:
                return PlainTextResponse(f"the file is larger than {self._limits.max_megabytes:g} MB", 413)
            upload_key = (visitor, upload_id)
            progress = self._in_progress[upload_key] = _Progress()
            try:
                return await self._receive(request, visitor, int(size), progress)
            finally:
                self._in_progress.pop(upload_key, None)

        @app.get(PROGRESS_ROUTE)
        async def upload_progress(request: Request, upload_id: str = "") -> Response:
            upload_key = (visitor_from_cookies(request.headers.get("cookie", "")), upload_id)
            return StreamingResponse(self._progress_events(upload_key), media_type="text/event-stream")

    async def _receive(self, request: Request, visitor: str, size: int, progress: _Progress) -> Response:
        """Parse the form and store its file; the quota counts `size` bytes meanwhile."""
        counted = Request(request.scope, _count_bytes(request.receive, progress))
        reserved = self._quota.reserve(visitor, size)
        try:
            await run_in_threadpool(reserved.__enter__)
        except QuotaError as error:
            return PlainTextResponse(str(error), 413)
        try:
            async with counted.form(max_files=1, max_fields=0) as form:
                files = [value for value in form.values() if isinstance(value, UploadFile)]
                if not files or not files[0].filename:
                    return PlainTextResponse("no file; upload one", 400)
                return await run_in_threadpool(self._save, visitor, files[0])
        except HTTPException as error:
            return PlainTextResponse(f"{error.detail}; upload one file", 400)
        except ClientDisconnect:
            return Response(status_code=400)
        finally:
            reserved.__exit__(None, None, None)

    def _save(self, visitor: str, file: UploadFile) -> Response:
        """Write an uploaded file to the store; the response is a JSON list with its id."""
        name = safe_name(file.filename or "")
        suffix = Path(name).suffix.lower()
        if suffix not in {*VIDEO_SUFFIXES, *CAPTION_SUFFIXES}:
            return PlainTextResponse(f"{name}: neither a video nor captions (.srt); upload another file", 415)
        if suffix in CAPTION_SUFFIXES and (file.size or 0) > MAX_CAPTION_MEGABYTES * 1e6:
            return PlainTextResponse(
                f"{name}: captions are larger than {MAX_CAPTION_MEGABYTES:g} MB; upload another file", 413
            )
        upload, folder = self._store.create(visitor)
        try:
            with (folder / name).open("xb") as stored:
                shutil.copyfileobj(file.file, stored, 1 << 20)
        except BaseException:
            self._store.remove(upload)
            raise
        return JSONResponse([upload])

    async def _progress_events(self, upload_key: tuple[str, str]) -> AsyncIterator[str]:
        """Yield server-sent events with the bytes received since the last event, until the upload ends."""
        deadline, reported = time.monotonic() + START_TIMEOUT_S, 0
        # The browser requests the progress before it sends the file.
        while upload_key not in self._in_progress and time.monotonic() < deadline:
            await asyncio.sleep(POLL_S)
        while (progress := self._in_progress.get(upload_key)) is not None:
            if progress.received > reported:
                update = {"msg": "update", "orig_name": progress.name, "chunk_size": progress.received - reported}
                reported = progress.received
                yield f"data: {json.dumps(update)}\n\n"
            await asyncio.sleep(POLL_S)
        yield 'data: {"msg": "done"}\n\n'


def safe_name(name: str) -> str:
    """Return a file name of letters, digits, spaces, dots, - and _, made from one that a browser sent."""
    path = PurePosixPath(name.replace("\\", "/"))
    stem = re.sub(r"[^\w. -]", "_", path.stem).strip(". ")[:MAX_STEM_CHARACTERS]
    return f"{stem or 'upload'}{re.sub(r'[^a-zA-Z0-9.]', '', path.suffix)[:8]}"


def _count_bytes(receive: Receive, progress: _Progress) -> Receive:
    """Return a `receive` that updates `progress` with the bytes of a form and its file name."""

    async def receive_and_count() -> Message:
        message = await receive()
        body = message.get("body", b"")
        if not progress.name and (match := re.search(rb'filename="([^"\r\n]*)"', body[:MAX_FORM_BYTES])):
            progress.name = match[1].decode("utf-8", "replace")
        progress.received += len(body)
        return message

    return receive_and_count
