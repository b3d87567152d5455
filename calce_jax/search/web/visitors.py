"""Who may read what: each browser has a cookie, each result a folder, and only the browser that asked gets its files.

Results are not served by Gradio, whose addresses anyone may open. What is uploaded is served to nobody.
"""

import secrets
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COOKIE = "calce_visitor"


@dataclass(frozen=True)
class Result:
    """The files of one search: whose they are, where, and since when (seconds of a clock that only goes on)."""

    visitor: str
    folder: Path
    created_at: float


class ResultStore:
    """The folders of all results, until they are too old.

    Args:
      folder: of the folders.
      retention_seconds: seconds that a result is kept.
      clock: tells seconds.
    """

    def __init__(self, folder: Path, retention_seconds: float, clock: Callable[[], float] = time.monotonic):
        self.folder, self.retention_seconds, self._clock = folder, retention_seconds, clock
        self._results: dict[str, Result] = {}
        self._lock = threading.Lock()

    def create(self, visitor: str) -> tuple[str, Path]:
        """Make a folder for a visitor's result; return its name, which cannot be guessed, and the folder."""
        name = secrets.token_urlsafe(16)
        folder = self.folder / name
        folder.mkdir(parents=True)
        with self._lock:
            self._results[name] = Result(visitor, folder, self._clock())
        return name, folder

    def find(self, name: str, path: str, visitor: str) -> Path | None:
        """Return a file of a result, or nothing where there is none, or it is another visitor's."""
        folder = self.folder_of(name, visitor)
        if folder is None or "\0" in path:
            return None
        file = (folder / path).resolve()
        return file if file.is_relative_to(folder.resolve()) and file.is_file() else None

    def folder_of(self, name: str, visitor: str) -> Path | None:
        """Return the folder of a result, or nothing where there is none, or it is another visitor's."""
        with self._lock:
            result = self._results.get(name)
        if result is None or not visitor or not secrets.compare_digest(result.visitor.encode(), visitor.encode()):
            return None
        return result.folder

    def kept(self, visitor: str | None) -> list[Path]:
        """Return the folders of a visitor's results, or of everybody's where no visitor is named."""
        with self._lock:
            return [each.folder for each in self._results.values() if visitor in (None, each.visitor)]

    def remove(self, name: str) -> None:
        """Remove a result before its time."""
        with self._lock:
            gone = self._results.pop(name, None)
        if gone:
            shutil.rmtree(gone.folder, ignore_errors=True)

    def remove_expired(self) -> None:
        """Remove what is too old."""
        with self._lock:
            expired_names = [
                name
                for name, result in self._results.items()
                if self._clock() - result.created_at >= self.retention_seconds
            ]
            expired = [self._results.pop(name) for name in expired_names]
        for result in expired:
            shutil.rmtree(result.folder, ignore_errors=True)

    def start_cleanup(self, seconds: float) -> None:
        """Do so again and again, in a thread that ends with the program."""

        def run() -> None:
            while True:
                time.sleep(seconds)
                self.remove_expired()

        threading.Thread(target=run, daemon=True).start()


class VisitorCookieMiddleware:
    """Gives every browser its cookie. ASGI, so that answers that stream are not held back."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        visitor = visitor_from_cookies(dict(scope["headers"]).get(b"cookie", b"").decode("latin-1"))

        async def with_cookie(message: Any) -> None:
            if message["type"] == "http.response.start" and not visitor:
                cookie = f"{COOKIE}={secrets.token_urlsafe(32)}; HttpOnly; SameSite=Strict; Path=/"
                message = {**message, "headers": [*message["headers"], (b"set-cookie", cookie.encode())]}
            await send(message)

        await self.app(scope, receive, with_cookie)


def visitor_from_cookies(cookies: str) -> str:
    """Return the visitor that a Cookie header names, or nothing."""
    named = (cookie.strip().partition("=") for cookie in cookies.split(";"))
    return next((value for name, _, value in named if name == COOKIE), "")
