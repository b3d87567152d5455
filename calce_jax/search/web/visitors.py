"""Access control: each browser gets a random cookie, and only the browser that ran a search can read its result.

Results are not served by Gradio, whose URLs are open to anyone. Uploads are not served at all.
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
    """The folder of one search result or upload: its visitor, and its creation time in seconds of a monotonic clock."""

    visitor: str
    folder: Path
    created_at: float


class ResultStore:
    """The folders of all search results, or of all uploads; thread-safe.

    Args:
      folder: the parent folder.
      retention_seconds: age at which a result is deleted.
      clock: returns seconds, and never goes back.
    """

    def __init__(self, folder: Path, retention_seconds: float, clock: Callable[[], float] = time.monotonic):
        self.folder, self.retention_seconds, self._clock = folder, retention_seconds, clock
        self._results: dict[str, Result] = {}
        self._lock = threading.Lock()

    def create(self, visitor: str) -> tuple[str, Path]:
        """Create a folder for a visitor; return its random name and the folder."""
        name = secrets.token_urlsafe(16)
        folder = self.folder / name
        folder.mkdir(parents=True)
        with self._lock:
            self._results[name] = Result(visitor, folder, self._clock())
        return name, folder

    def find(self, name: str, path: str, visitor: str) -> Path | None:
        """Return a file of a result; None if it does not exist, or belongs to another visitor."""
        folder = self.folder_of(name, visitor)
        if folder is None or "\0" in path:
            return None
        file = (folder / path).resolve()
        return file if file.is_relative_to(folder.resolve()) and file.is_file() else None

    def folder_of(self, name: str, visitor: str) -> Path | None:
        """Return the folder of a result; None if it does not exist, or belongs to another visitor."""
        with self._lock:
            result = self._results.get(name)
        if result is None or not visitor or not secrets.compare_digest(result.visitor.encode(), visitor.encode()):
            return None
        return result.folder

    def folders(self, visitor: str | None) -> list[Path]:
        """Return the folders of a visitor, or of all visitors for None."""
        with self._lock:
            return [result.folder for result in self._results.values() if visitor in (None, result.visitor)]

    def remove(self, name: str) -> None:
        """Delete a result; does nothing if there is none of that name."""
        with self._lock:
            result = self._results.pop(name, None)
        if result:
            shutil.rmtree(result.folder, ignore_errors=True)

    def remove_expired(self) -> None:
        """Delete the results that are older than `retention_seconds`."""
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
        """Call `remove_expired` every so many seconds, in a daemon thread."""

        def run() -> None:
            while True:
                time.sleep(seconds)
                self.remove_expired()

        threading.Thread(target=run, daemon=True).start()


class VisitorCookieMiddleware:
    """Sets the cookie of new browsers. Pure ASGI, which does not buffer streamed responses."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle one ASGI connection."""
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
    """Return the visitor's id from a Cookie header, or ""."""
    pairs = (cookie.strip().partition("=") for cookie in cookies.split(";"))
    return next((value for name, _, value in pairs if name == COOKIE), "")
