"""Uploads: the route that Gradio's File component posts to, in place of Gradio's own.

Gradio's route stores a file under a path and tells it to the browser, and the browser names the path when it asks for a
search: any path, of any file. Here the browser is told an id that cannot be guessed. The server looks the id up among
the uploads of the visitor who asks; nothing that a browser sends is ever used as a path.
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

from calce_jax.search.inputs import SearchError
from calce_jax.search.web.quota import Limits, Quota, QuotaError
from calce_jax.search.web.visitors import ResultStore, visitor_from_cookies
from calce_jax.video.files import VIDEO_SUFFIXES

ROUTE = "/gradio_api/upload"
PROGRESS_ROUTE = "/gradio_api/upload_progress"
NO_COOKIE = "this page needs its cookie to show your results to you alone; allow it, and reload"
CAPTION_SUFFIXES = frozenset({".srt"})
CAPTION_MEGABYTES = 5.0
# A form around a file: the boundary twice, and the headers of its part.
FORM_BYTES = 16_384
STEM_LENGTH = 50  # characters; file systems allow 255 bytes, and a clip's name is longer than its video's
START_S, PROGRESS_S = 3.0, 0.2


@dataclass
class _Arrival:
    """An upload on its way: the file's name in the form, and the bytes of the form that are here."""

    name: str = ""
    received: int = 0


class Uploads:
    """The uploads of all visitors, each in a folder of its own.

    Args:
      files: one folder an upload, named by its id.
      quota: what a visitor may keep.
      limits: in force.
    """

    def __init__(self, files: ResultStore, quota: Quota, limits: Limits):
        self._files, self._quota, self._limits = files, quota, limits
        self._arrivals: dict[tuple[str, str], _Arrival] = {}  # by visitor and the browser's id of the transfer

    def find(self, upload: str, visitor: str, suffixes: frozenset[str]) -> Path:
        """Return the file of an upload.

        Args:
          upload: its id.
          visitor: who asks.
          suffixes: of the files that are wanted.

        Raises:
          SearchError: the visitor has no such upload, or it is a file of another kind.
        """
        folder = self._files.folder_of(upload, visitor)
        files = [each for each in folder.iterdir() if each.is_file() and not each.is_symlink()] if folder else []
        if not files:
            keep = f"uploads are removed after {self._limits.keep_minutes:g} minutes"
            raise SearchError(f"the upload is not there ({keep})", "upload the file again")
        if files[0].suffix.lower() not in suffixes:
            raise SearchError(
                f"{files[0].name}: expected {', '.join(sorted(suffixes))}", "upload it in the other field"
            )
        return files[0]

    def add_routes(self, app: FastAPI) -> None:
        """Add the routes for uploads, which come before those of a Gradio app that is mounted later."""

        @app.post(ROUTE)
        async def upload(request: Request, upload_id: str = "") -> Response:
            visitor = visitor_from_cookies(request.headers.get("cookie", ""))
            if not visitor:
                return PlainTextResponse(NO_COOKIE, 403)
            size = request.headers.get("content-length", "")
            if not (size.isascii() and size.isdigit()):
                return PlainTextResponse("say how long the upload is (Content-Length)", 411)
            if int(size) > self._limits.megabytes * 1e6 + FORM_BYTES:
                return PlainTextResponse(f"the file is larger than {self._limits.megabytes:g} MB", 413)
            key = (visitor, upload_id)
            arrival = self._arrivals[key] = _Arrival()
            try:
                return await self._receive(request, visitor, int(size), arrival)
            finally:
                self._arrivals.pop(key, None)

        @app.get(PROGRESS_ROUTE)
        async def progress(request: Request, upload_id: str = "") -> Response:
            key = (visitor_from_cookies(request.headers.get("cookie", "")), upload_id)
            return StreamingResponse(self._progress(key), media_type="text/event-stream")

    async def _receive(self, request: Request, visitor: str, size: int, arrival: _Arrival) -> Response:
        counted = Request(request.scope, _counted(request.receive, arrival))
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
                return await run_in_threadpool(self._store, visitor, files[0])
        except HTTPException as error:
            return PlainTextResponse(f"{error.detail}; upload one file", 400)
        except ClientDisconnect:
            return Response(status_code=400)
        finally:
            reserved.__exit__(None, None, None)

    def _store(self, visitor: str, file: UploadFile) -> Response:
        name = safe_name(file.filename or "")
        suffix = Path(name).suffix.lower()
        if suffix not in {*VIDEO_SUFFIXES, *CAPTION_SUFFIXES}:
            return PlainTextResponse(f"{name}: neither a video nor captions (.srt); upload another file", 415)
        if suffix in CAPTION_SUFFIXES and (file.size or 0) > CAPTION_MEGABYTES * 1e6:
            return PlainTextResponse(f"{name}: larger than {CAPTION_MEGABYTES:g} MB; upload captions alone", 413)
        upload, folder = self._files.create(visitor)
        try:
            with (folder / name).open("xb") as stored:
                shutil.copyfileobj(file.file, stored, 1 << 20)
        except BaseException:
            self._files.remove(upload)
            raise
        return JSONResponse([upload])

    async def _progress(self, key: tuple[str, str]) -> AsyncIterator[str]:
        deadline, told = time.monotonic() + START_S, 0
        # The browser asks for progress before it sends the file.
        while key not in self._arrivals and time.monotonic() < deadline:
            await asyncio.sleep(PROGRESS_S)
        while (arrival := self._arrivals.get(key)) is not None:
            if arrival.received > told:
                update = {"msg": "update", "orig_name": arrival.name, "chunk_size": arrival.received - told}
                told = arrival.received
                yield f"data: {json.dumps(update)}\n\n"
            await asyncio.sleep(PROGRESS_S)
        yield 'data: {"msg": "done"}\n\n'


def safe_name(name: str) -> str:
    """Return a name for a file, made of letters, digits, spaces, dots, - and _, from the one that a browser sent."""
    path = PurePosixPath(name.replace("\\", "/"))
    stem = re.sub(r"[^\w. -]", "_", path.stem).strip(". ")[:STEM_LENGTH]
    return f"{stem or 'upload'}{re.sub(r'[^a-zA-Z0-9.]', '', path.suffix)[:8]}"


def _counted(receive: Receive, arrival: _Arrival) -> Receive:
    """Return a `receive` that notes how much of a form is here, and the name of its file."""

    async def counted() -> Message:
        message = await receive()
        body = message.get("body", b"")
        if not arrival.name and (named := re.search(rb'filename="([^"\r\n]*)"', body[:FORM_BYTES])):
            arrival.name = named[1].decode("utf-8", "replace")
        arrival.received += len(body)
        return message

    return counted
