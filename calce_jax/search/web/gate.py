"""A filter before Gradio: it passes requests to allowed host names, on the routes that the page uses.

Gradio has routes that read files of the server, fetch URLs and run functions; it checks paths only in apps that it
launched itself, and this one is mounted. Before a function runs, Gradio also copies every file that its arguments name
into a folder of its own. So only the routes below are passed, and arguments of functions must be strings.
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
MAX_BODY_BYTES = 65_536  # of any request except an upload
# Query strings of other routes are removed: `/?deep_link=` would load a saved state from a file.
QUERY_ROUTES = frozenset({"/gradio_api/queue/data", PROGRESS_ROUTE, UPLOAD_ROUTE})
READ_ROUTES = QUERY_ROUTES | {"/", "/config", "/gradio_api/app_id", "/theme.css", "/favicon.ico", "/robots.txt"}
READ_PREFIXES = ("/assets/", "/static/", "/found/")
WRITE_ROUTES = frozenset({JOIN_ROUTE, UPLOAD_ROUTE})
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(?::[0-9]+)?")
ALL_INTERFACES = frozenset({"", "0.0.0.0", "::"})


class Gate:
    """Pure ASGI middleware, which does not buffer streamed responses.

    Args:
      app: the app behind it.
      functions: the number of inputs of each function of the form, by its index.
      host: the address that the app listens on; its name, and those of this machine, are allowed.
      names: other allowed host names.
    """

    def __init__(self, app: ASGIApp, functions: Mapping[int, int], host: str, names: Collection[str] = ()):
        self.app, self._functions = app, functions
        self._any_address = host in ALL_INTERFACES
        self._names = LOCAL_NAMES | {_normalise_host(name) for name in (host, *names)} - {""}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:  # a WebSocket, which the page does not use
            await send({"type": "websocket.close", "code": 1008})

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, path = Headers(scope=scope), scope["path"]
        if not self._has_allowed_host(headers):
            message = "this app is not served under this host name; start it with --allow_host=NAME"
            await PlainTextResponse(message, 421)(scope, receive, send)
            return
        if not _is_allowed_route(scope["method"], path):
            await PlainTextResponse("not found", 404)(scope, receive, send)
            return
        if path not in QUERY_ROUTES:
            scope = {**scope, "query_string": b""}
        if scope["method"] == "POST" and path != UPLOAD_ROUTE:
            body = await _read_body(receive, MAX_BODY_BYTES)
            if body is None:
                await PlainTextResponse("the request is too large; shorten the query", 413)(scope, receive, send)
                return
            if path == JOIN_ROUTE:
                try:
                    body = check_function_call(body, self._functions)
                except ValueError as error:
                    await PlainTextResponse(str(error), 400)(scope, receive, send)
                    return
            length = (b"content-length", str(len(body)).encode())
            replaced = (b"content-length", b"transfer-encoding")
            scope = {**scope, "headers": [*(h for h in scope["headers"] if h[0] not in replaced), length]}
            receive = _replay(body, receive)
        await self.app(scope, receive, send)

    def _has_allowed_host(self, headers: Headers) -> bool:
        """Return whether the Host header, and the Origin header if there is one, name an allowed host.

        This prevents DNS rebinding: a page of another site whose name resolves to our address could read our responses.
        """
        hosts = headers.getlist("host")
        origins = [origin.partition("://")[2] for origin in headers.getlist("origin")]
        return len(hosts) == 1 and all(self._is_allowed_host(host) for host in (*hosts, *origins))

    def _is_allowed_host(self, host: str) -> bool:
        if not (parts := HOST.fullmatch(host)):
            return False
        name = _normalise_host(parts[1])
        return name in self._names or (self._any_address and _is_address(name))


def check_function_call(body: bytes, functions: Mapping[int, int]) -> bytes:
    """Return the JSON of a function call, reduced to the four fields that are needed.

    Args:
      body: JSON; `data` is the list of arguments.
      functions: the number of inputs of each function, by its index.

    Raises:
      ValueError: the body is malformed, there is no such function, or an argument is neither a string nor null, such
        as a file, which Gradio would read.
    """
    try:
        call = json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError("expected JSON; reload the page") from None
    if not isinstance(call, dict):
        raise ValueError("expected a JSON object; reload the page")
    data, function, session, trigger = (call.get(name) for name in ("data", "fn_index", "session_hash", "trigger_id"))
    if not isinstance(data, list) or not all(argument is None or isinstance(argument, str) for argument in data):
        raise ValueError("data: expected strings; reload the page")
    if type(function) is not int or functions.get(function) != len(data):
        raise ValueError("fn_index: no such function, or another number of inputs; reload the page")
    if not (trigger is None or type(trigger) is int):
        raise ValueError("trigger_id: expected a number; reload the page")
    if not (isinstance(session, str) and session.isascii() and session.isalnum()):
        raise ValueError("session_hash: expected letters and digits; reload the page")
    return json.dumps({"data": data, "fn_index": function, "session_hash": session, "trigger_id": trigger}).encode()


def _is_allowed_route(method: str, path: str) -> bool:
    if method == "POST":
        return path in WRITE_ROUTES
    if method not in ("GET", "HEAD") or ".." in path.split("/"):
        return False
    return path in READ_ROUTES or path.startswith(READ_PREFIXES)


def _normalise_host(name: str) -> str:
    return name.strip("[]").rstrip(".").lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def _read_body(receive: Receive, max_bytes: int) -> bytes | None:
    """Return the body of a request, or None if it is longer than `max_bytes`."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > max_bytes:
            return None
        if not message.get("more_body", False):
            return body


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that first returns a body that was read before, and then further messages."""
    body_messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return body_messages.pop() if body_messages else await receive()

    return replayed
