"""A local server with the APIs of the Hugging Face hub and Google Drive, and configurable failures."""

import base64
import hashlib
import json
import random
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeServer:
    """Contents and failures of the server, and the requests it received.

    Attributes:
      url: of the server.
      repos: of the hub, {repo: {file: content}}.
      drive: of Google Drive, {id: (name, content)}; the content of an HTML page is a str.
      folders: of Google Drive, {id: [id of a file]}.
      advertised: {file: content} whose sizes and hashes the hub reports, where it sends other content.
      error_status: {start of a path: HTTP status}.
      truncate_at: {end of a path or query: bytes after which the connection closes}.
      requests: (path with query, Range header) of each request.
      tokens: the Authorization headers of requests that had one.
      private: repositories that were created as private ones.
    """

    url: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    drive: dict[str, tuple[str, bytes | str]] = field(default_factory=dict)
    folders: dict[str, list[str]] = field(default_factory=dict)
    advertised: dict[str, bytes] = field(default_factory=dict)
    error_status: dict[str, int] = field(default_factory=dict)
    truncate_at: dict[str, int] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)

    def content_requests(self) -> list[str]:
        """Return the paths of the requests for file contents."""
        return [path for path, _ in self.requests if "/resolve/" in path or path.startswith("/uc")]


def hub_model(repo: str, files: dict[str, bytes], advertised: dict[str, bytes]) -> dict[str, Any]:
    """Return the hub's model info; .safetensors have a SHA-256, as large files do, and others git's hash."""
    siblings: list[dict[str, Any]] = []
    for name, stored in files.items():
        content = advertised.get(name, stored)
        git = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
        siblings.append({"rfilename": name, "size": len(content), "blobId": git})
        if name.endswith(".safetensors"):
            siblings[-1]["lfs"] = {
                "sha256": hashlib.sha256(content).hexdigest(),
                "size": len(content),
                "pointerSize": 130,
            }
    licence = re.search(r"^license: (.+)$", files.get("README.md", b"").decode(), re.MULTILINE)
    card = {"cardData": {"license": licence[1]}} if licence else {}
    return {"id": repo, "sha": COMMIT, "siblings": siblings} | card


class FakeHandler(BaseHTTPRequestHandler):
    """Answers GET requests from `served`, and takes uploads of files."""

    protocol_version = "HTTP/1.1"
    served: FakeServer

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        served, parts = self.served, urlsplit(self.path)
        served.requests.append((self.path, self.headers["Range"]))
        served.tokens |= {self.headers["Authorization"]} - {None}
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        status = next((status for start, status in served.error_status.items() if self.path.startswith(start)), None)
        is_private = any(parts.path.startswith((f"/{repo}/", f"/api/models/{repo}")) for repo in served.private)
        if status or (is_private and not self.headers["Authorization"]):
            self.respond(b"no", "text/plain", status or 401)
        elif (path_match := re.fullmatch(r"/api/models/(.+)", parts.path)) and path_match[1] not in served.repos:
            self.respond(b"no", "text/plain", 404)
        elif path_match:
            model_info = hub_model(path_match[1], served.repos[path_match[1]], served.advertised)
            self.respond(json.dumps(model_info).encode(), "application/json")
        elif path_match := re.fullmatch(rf"/(.+)/resolve/{COMMIT}/(.+)", parts.path):
            self.respond(served.repos[path_match[1]][path_match[2]], "application/octet-stream")
        elif parts.path == "/embeddedfolderview":
            links = [
                f'<a href="https://drive.google.com/file/d/{file}/view">{served.drive[file][0]}</a>'
                for file in served.folders[query["id"]]
            ]
            self.respond(f"<html><title>files</title>{''.join(links)}</html>".encode(), "text/html")
        else:
            name, content = served.drive[query["id"]]
            if isinstance(content, str):
                self.respond(content.encode(), "text/html; charset=utf-8")
            else:
                self.respond(content, "application/octet-stream", name=name)

    def do_POST(self) -> None:
        """Take what `HfApi.create_repo` and `HfApi.upload_folder` send; every file is a regular one, in the commit."""
        served, path = self.served, urlsplit(self.path).path
        served.requests.append((self.path, None))
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = next((status for start, status in served.error_status.items() if path.startswith(start)), None)
        if status or not self.headers["Authorization"]:
            self.respond(b"no", "text/plain", status or 401)
            return
        served.tokens.add(self.headers["Authorization"])
        answer: dict[str, Any] = {}
        if path == "/api/repos/create":
            sent = json.loads(body)
            repo = f"{sent['organization']}/{sent['name']}"
            served.repos.setdefault(repo, {})
            served.private |= {repo} if sent.get("visibility") == "private" else set()
            answer = {"url": f"{served.url}/{repo}", "name": repo}
        elif path.endswith("/preupload/main"):
            answer["files"] = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
        elif path_match := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    served.repos[path_match[1]][line["value"]["path"]] = content
            answer = {"commitUrl": f"{served.url}/{path_match[1]}/commit/{COMMIT}", "commitOid": COMMIT}
        self.respond(json.dumps(answer).encode(), "application/json")

    def respond(self, content: bytes, kind: str, status: int = 200, name: str = "") -> None:
        """Send content from the start of the requested range, up to where the connection is to close."""
        start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1]) if self.headers["Range"] else 0
        self.send_response(206 if start else status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if name:
            self.send_header("Content-Disposition", f'attachment; filename="{name}"')
        self.end_headers()
        limit = next((limit for end, limit in self.served.truncate_at.items() if self.path.endswith(end)), len(content))
        self.wfile.write(content[start:limit])
        if limit < len(content):
            self.close_connection = True


@contextmanager
def run_server() -> Iterator[FakeServer]:
    """Run the server in a thread, on a free port."""
    served = FakeServer()
    handler = type("ServedHandler", (FakeHandler,), {"served": served})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        served.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()


def lead_drive_to(served: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send requests to Google Drive to the server, and try again without waiting."""
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(random, "uniform", lambda *_: 0.0)
    original = requests.Session.request

    def request(self: requests.Session, method: str, url: str, **more: Any) -> requests.Response:
        return original(self, method, url.replace("https://drive.google.com", served.url), **more)

    monkeypatch.setattr(requests.Session, "request", request)


def set_endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Do what $HF_ENDPOINT does, which huggingface_hub reads when it is imported."""
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
