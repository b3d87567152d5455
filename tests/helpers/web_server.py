"""The web app on a local port, clients that speak its protocol, and private files that they must not read."""

import gc
import http.client
import importlib
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import jax
import pytest

from calce_jax.models.segment_ranker import init_segment_ranker
from calce_jax.search.library import Library
from calce_jax.search.picture_ranker import PictureRanker
from calce_jax.search.ranking import ScoredWindow
from calce_jax.search.searcher import Searcher
from calce_jax.search.video_result import QueryResult, VideoResult
from calce_jax.storage.disk_cache import DiskCache
from calce_jax.video.decode import VideoError
from tests.helpers.search_stages import MAX_SEGMENT_SECONDS, make_stages
from tests.helpers.video_files import write_clip

SECRET = "seen by nobody"


@contextmanager
def serving(
    folder: Path, searcher: Any = None, names: tuple[str, ...] = (), *, library: bool = False, **limits: Any
) -> Iterator[str]:
    """Start the app with the sample video "ours"; yield its URL.

    Args:
      folder: of the app's files (`app/`) and the sample (`ours.mp4`).
      searcher: a small model with random weights unless given.
      names: host names that are allowed besides local ones.
      library: also offer a library of two videos, "first.mp4" and "second.mp4".
      limits: fields of `Limits`.
    """
    web = pytest.importorskip("calce_jax.search.web.app", reason="gradio is absent: pip install 'calce_jax[web]'")
    uvicorn = pytest.importorskip("uvicorn", reason="gradio is absent: pip install 'calce_jax[web]'")
    sample = web.Sample("ours", write_clip(folder / "ours.mp4", frames=15, rate=5), ["a red circle moves"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("calce_jax.inference.answers.decode_answer", lambda *_: "[[0, 2]]")
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "app" / "gradio"))
        searcher = searcher or Searcher(make_stages(), DiskCache(folder / "cache"), MAX_SEGMENT_SECONDS)
        limits = web.Limits(**{"max_megabytes": 1.0, "max_minutes": 0.5, **limits})
        source = make_library(folder, searcher) if library else None
        app = web.make_app(
            searcher, folder / "app", [sample], "A model for tests.", limits, names=names, library=source
        )
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
        thread = threading.Thread(target=server.run)
        thread.start()
        deadline = time.monotonic() + 60
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.1)
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join(30)
            # Sockets that the server left open warn when they are collected: here, where ResourceWarning is ignored.
            del app, server, thread
            gc.collect()


def make_library(folder: Path, searcher: Searcher) -> Any:
    """Index two videos, and return the `LibrarySource` for a ranker with random weights."""
    web = importlib.import_module("calce_jax.search.web.app")
    config = searcher.predictors["stage 2"].model.model_config
    layers = init_segment_ranker(config.qformer.width, config.t5.width, jax.random.key(0))
    ranker = PictureRanker(searcher, layers, "random")
    (folder / "indexed").mkdir()
    for frames, name in ((15, "first"), (20, "second")):
        write_clip(folder / "indexed" / f"{name}.mp4", frames=frames, rate=5)
    with Library(folder / "library.sqlite", create=True) as library:
        library.index([folder / "indexed"])
        library.index_pictures(ranker.key, ranker.embed_videos)
    return web.LibrarySource(folder / "library.sqlite", ranker)


class Stub(Searcher):
    """A searcher that returns the first second of any video, or raises the error that the query names."""

    def __init__(self):
        self.notice, self.threshold = "", 0.0

    def search(self, video, queries, captions=(), *, max_moments=5):
        for query in queries:
            if query == "crash":
                raise RuntimeError(f"{video}: crashed")
            if query == "disk":
                raise OSError(28, "No space left on device", str(video))
            if query == "damaged":
                raise VideoError(video, "it is damaged", "fetch it again")
        stages = {name: [ScoredWindow(0.0, 1.0, 0.9)] for name in ("stage 1", "stage 2")}
        return VideoResult(Path(video), 4.0, [QueryResult(query, stages, [], [(0.0, "full")], []) for query in queries])


class Visitor:
    """A client with the cookie of one browser."""

    def __init__(self, address):
        httpx = pytest.importorskip("httpx", reason="gradio is absent: pip install 'calce_jax[web]'")
        self.client = httpx.Client(base_url=address, timeout=60)
        self.session = secrets.token_hex(6)
        self.client.get("/")
        config = self.client.get("/config").json()
        functions = config["dependencies"]
        self.functions = [function["id"] for function in functions]
        # The search has four inputs: video, captions, sample, query.
        self.search = next(function["id"] for function in functions if len(function["inputs"]) == 4)

    def upload(self, name: str, content: bytes):
        return self.client.post("/gradio_api/upload", files={"files": (name, content)})

    def uploaded(self, path: Path) -> str:
        answer = self.upload(path.name, path.read_bytes())
        assert answer.status_code == 200, answer.text
        [upload] = answer.json()
        return upload

    def join(self, data: Any, function: int | None = None, **fields: Any):
        function = self.search if function is None else function
        body = {"data": data, "fn_index": function, "session_hash": self.session, "trigger_id": None, **fields}
        return self.client.post("/gradio_api/queue/join", json=body)

    def ask(self, data: Any, function: int | None = None, **fields: Any) -> str:
        """Call a function; return all events of its stream, or the status and text of a refusal."""
        joined = self.join(data, function, **fields)
        if joined.status_code != 200:
            return f"{joined.status_code} {joined.text}"
        said = ""
        with self.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as stream:
            for line in stream.iter_lines():
                said += line + "\n"
                if '"process_completed"' in line or '"close_stream"' in line:
                    break
        return said

    def found(self, *data: Any) -> str:
        """Search; return the path of the result."""
        said = self.ask(data)
        match = re.search(r"/found/[\w-]+", said)
        assert match, said
        return match[0]


class World(NamedTuple):
    """A server, its folder, a private video and private captions, a canary URL, and the paths requested from it."""

    address: str
    folder: Path
    video: Path
    srt: Path
    canary: str
    fetched: list[str]


@contextmanager
def beside_private_files(folder: Path) -> Iterator[World]:
    """Start the app beside private files and a canary: an HTTP server that records what is requested from it."""
    fetched: list[str] = []

    class Canary(BaseHTTPRequestHandler):
        def do_GET(self):
            fetched.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(SECRET.encode())

        do_HEAD = do_GET

        def log_message(self, format, *args):
            pass

    canary = HTTPServer(("127.0.0.1", 0), Canary)
    threading.Thread(target=canary.serve_forever, daemon=True).start()
    private = folder / "private"
    private.mkdir()
    video = write_clip(private / "private.mp4", frames=25, rate=5, noise=True)
    srt = private / "private.srt"
    srt.write_text(f"1\n00:00:00,000 --> 00:00:01,000\n{SECRET}\n")
    with serving(folder / "web", Stub()) as address:
        yield World(address, folder / "web" / "app", video, srt, f"http://127.0.0.1:{canary.server_port}", fetched)
    canary.shutdown()
    canary.server_close()


def raw(address: str, path: str, method: str = "GET", **headers: str):
    """Request a path as it is written; httpx would normalise it first."""
    place = urlsplit(address)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    text = answer.read() if method == "GET" else b""
    connection.close()
    return answer.status, text
