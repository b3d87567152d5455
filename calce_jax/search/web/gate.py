"""What reaches Gradio at all: requests to names that this app is served under, on the routes that its page uses.

Gradio has routes that read files of the server, fetch addresses, and run functions, and it checks paths only in an app
that it launched itself; this one is mounted. It also copies every file that a request for a function names, in whatever
field, into a folder of its own, before the function runs. So the gate lets through what is listed below and nothing
else, and of a request for a function only texts.
"""

import ipaddress
import json
import re
from collections.abc import Collection, Mapping

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from calce_jax.search.web.uploads import PROGRESS_ROUTE
from calce_jax.search.web.uploads import ROUTE as UPLOAD_ROUTE

JOIN_ROUTE = "/gradio_api/queue/join"
BODY_BYTES = 65_536  # of any request but an upload
# With their queries. Those of other routes are dropped: one of the page's would load a saved state from a file.
QUERIED = frozenset({"/gradio_api/queue/data", PROGRESS_ROUTE, UPLOAD_ROUTE})
READ = QUERIED | {"/", "/config", "/gradio_api/app_id", "/theme.css", "/favicon.ico", "/robots.txt"}
READ_BELOW = ("/assets/", "/static/", "/found/")
WRITTEN = frozenset({JOIN_ROUTE, UPLOAD_ROUTE})
LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(?::[0-9]+)?")
WILDCARDS = frozenset({"", "0.0.0.0", "::"})


class Gate:
    """Answers what is not let through. ASGI, so that answers that stream are not held back.

    Args:
      app: behind the gate.
      functions: of the form: the number of fields that each takes, by its number.
      host: the address that is listened on.
      names: others under which the app may be asked for.
    """

    def __init__(self, app: ASGIApp, functions: Mapping[int, int], host: str, names: Collection[str] = ()):
        self.app, self._functions = app, functions
        self._any_address = host in WILDCARDS
        self._names = LOCAL | {_plain(name) for name in (host, *names)} - {""}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:  # a WebSocket; there are none
            await send({"type": "websocket.close", "code": 1008})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, path = Headers(scope=scope), scope["path"]
        if not self._is_ours(headers):
            told = "this app is not served under this name; whoever runs it can allow a name with --allow_host"
            await PlainTextResponse(told, 421)(scope, receive, send)
            return
        if not _is_listed(scope["method"], path):
            await PlainTextResponse("not found", 404)(scope, receive, send)
            return
        if path not in QUERIED:
            scope = {**scope, "query_string": b""}
        if scope["method"] == "POST" and path != UPLOAD_ROUTE:
            body = await _read(receive, BODY_BYTES)
            if body is None:
                await PlainTextResponse("the request is too large; ask for less", 413)(scope, receive, send)
                return
            if path == JOIN_ROUTE:
                try:
                    body = texts_alone(body, self._functions)
                except ValueError as error:
                    await PlainTextResponse(str(error), 400)(scope, receive, send)
                    return
            length = (b"content-length", str(len(body)).encode())
            dropped = (b"content-length", b"transfer-encoding")
            scope = {**scope, "headers": [*(h for h in scope["headers"] if h[0] not in dropped), length]}
            receive = _replay(body, receive)
        await self.app(scope, receive, send)

    def _is_ours(self, headers: Headers) -> bool:
        """Say whether the host asked for is ours, and so is the page that asks, where the browser names it.

        Without this a page anywhere could lead its own name to our address, and read here as if it were ours.
        """
        hosts = headers.getlist("host")
        origins = [origin.partition("://")[2] for origin in headers.getlist("origin")]
        return len(hosts) == 1 and all(self._is_allowed(host) for host in (*hosts, *origins))

    def _is_allowed(self, host: str) -> bool:
        if not (parts := HOST.fullmatch(host)):
            return False
        name = _plain(parts[1])
        return name in self._names or (self._any_address and _is_address(name))


def texts_alone(body: bytes, functions: Mapping[int, int]) -> bytes:
    """Return a request for a function, with what the function needs and nothing else.

    Args:
      body: JSON; `data` holds the fields of the form.
      functions: the number of fields that each takes, by its number.

    Raises:
      ValueError: there is no such function, or a field holds neither a text nor nothing. A file, which Gradio would
        read, is such a field.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError("expected JSON; reload the page") from None
    if not isinstance(asked, dict):
        raise ValueError("expected a JSON object; reload the page")
    data, function, session, trigger = (asked.get(n) for n in ("data", "fn_index", "session_hash", "trigger_id"))
    if not isinstance(data, list) or not all(field is None or isinstance(field, str) for field in data):
        raise ValueError("data: expected texts; reload the page")
    if type(function) is not int or functions.get(function) != len(data):
        raise ValueError("fn_index: there is no such function, or it takes other fields; reload the page")
    if not (trigger is None or type(trigger) is int):
        raise ValueError("trigger_id: expected a number; reload the page")
    if not (isinstance(session, str) and session.isascii() and session.isalnum()):
        raise ValueError("session_hash: expected letters and digits; reload the page")
    kept = {"data": data, "fn_index": function, "session_hash": session, "trigger_id": trigger}
    return json.dumps(kept).encode()


def _is_listed(method: str, path: str) -> bool:
    if method == "POST":
        return path in WRITTEN
    if method not in ("GET", "HEAD") or ".." in path.split("/"):
        return False
    return path in READ or path.startswith(READ_BELOW)


def _plain(name: str) -> str:
    return name.strip("[]").rstrip(".").lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def _read(receive: Receive, most: int) -> bytes | None:
    """Return a request's body, or nothing where it is longer than `most` bytes."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > most:
            return None
        if not message.get("more_body", False):
            return body


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives a body that was read already, and then what else comes."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed
