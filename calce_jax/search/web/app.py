"""The app: a form of Gradio's, a search at a time, and the page of the result in a frame below it."""

import html
import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calce_jax.video.files import VIDEO_SUFFIXES

# Before Gradio is imported: nothing is told to anybody.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
from absl import logging
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, Response
from gradio.themes import Base

from calce_jax.errors import UserError
from calce_jax.search.inputs import SearchError, load_captions
from calce_jax.search.results import break_ties_across_videos, link_or_copy, write_results
from calce_jax.search.samples import Sample
from calce_jax.search.searcher import MAX_MOMENTS, Searcher
from calce_jax.search.segments import searchable_duration
from calce_jax.search.web.gate import Gate
from calce_jax.search.web.quota import Limits, Quota, QuotaError
from calce_jax.search.web.uploads import CAPTION_SUFFIXES, NO_COOKIE, Uploads
from calce_jax.search.web.visitors import ResultStore, VisitorCookieMiddleware, visitor_from_cookies
from calce_jax.storage.atomic_files import write_atomic
from calce_jax.text.captions import Caption, CaptionError
from calce_jax.video.decode import VideoError

TITLE = "Moments in videos"
MAX_QUEUED = 20  # searches at most
CLEAR_EVERY_S = 60.0
FRAME_HEIGHT = "max(70vh, 44rem)"
MOST_QUERIES = 20  # of a search
QUERY_CHARACTERS = 8000  # of all queries; a request is bounded, too
FAILED = "the search failed, and not through anything you did; whoever runs this app finds the reason in its log"


class WebError(UserError):
    """The app cannot be started; the message says why and the remedy."""


def make_app(
    searcher: Searcher,
    folder: Path,
    samples: Sequence[Sample],
    description: str,
    limits: Limits,
    *,
    host: str = "127.0.0.1",
    names: Sequence[str] = (),
) -> FastAPI:
    """Make the app.

    Args:
      searcher: with the models.
      folder: for uploads and results; nobody else's.
      samples: to pick from.
      description: what the model can and cannot do, a paragraph.
      limits: what a visitor may ask for.
      host: the address that the app is going to listen on.
      names: others under which browsers may ask for it.
    """
    # Gradio makes a folder there for every component; no upload comes into it.
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "gradio")
    results = ResultStore(folder / "results", limits.keep_minutes * 60)
    files = ResultStore(folder / "uploads", limits.keep_minutes * 60)
    for sample in (results, files):
        sample.start_cleanup(CLEAR_EVERY_S)
    quota = Quota(files, results, limits)
    uploads = Uploads(files, quota, limits)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/found/{name}/{path:path}")
    def found(name: str, path: str, request: Request) -> Response:
        file = results.find(name, path, visitor_from_cookies(request.headers.get("cookie", "")))
        headers = {"cache-control": "private", "x-content-type-options": "nosniff"}
        return FileResponse(file, headers=headers) if file else Response("not found", 404)

    uploads.add_routes(app)
    search = SearchHandler(searcher, results, uploads, quota, {each.name: each for each in samples}, limits)
    form = _form(search, samples, description, limits)
    form.queue(max_size=MAX_QUEUED, default_concurrency_limit=1, api_open=False)
    mounted = gr.mount_gradio_app(
        app,
        form,
        path="/",
        max_file_size=int(limits.megabytes * 1e6),
        footer_links=[],
        run_history=False,
        show_error=False,  # of exceptions that are not meant for visitors
        ssr_mode=False,
        theme=Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    )
    mounted.add_middleware(VisitorCookieMiddleware)
    # The last one is asked first.
    functions = {number: len(each.inputs) for number, each in form.fns.items() if each.fn is not None}
    mounted.add_middleware(Gate, functions=functions, host=host, names=names)
    return mounted


class SearchHandler:
    """What the button does."""

    def __init__(  # noqa: PLR0917  the parts of the app, in their order
        self,
        searcher: Searcher,
        results: ResultStore,
        uploads: Uploads,
        quota: Quota,
        samples: dict[str, Sample],
        limits: Limits,
    ):
        self.searcher, self.results, self.uploads, self.quota = searcher, results, uploads, quota
        self.samples, self.limits = samples, limits

    def __call__(  # noqa: PLR0917  one argument a field, in their order
        self,
        upload: str | None,
        srt: str | None,
        sample: str | None,
        query: str | None,
        request: gr.Request,
        progress: Any = gr.Progress(track_tqdm=True),  # noqa: B008  Gradio finds it by its default
    ) -> str:
        """Search, and return what shows the result.

        Args:
          upload: the id of a video that this visitor uploaded.
          srt: the id of its captions, likewise.
          sample: the name of one of ours, where nothing is uploaded.
          query: sentences, one a line.
          request: tells the visitor.
          progress: shown while the search runs.

        Raises:
          gr.Error: whatever goes wrong. The message names no file of the server.
        """
        visitor = visitor_from_cookies(request.headers.get("cookie", ""))
        if not visitor:
            raise _user_error(NO_COOKIE)
        name, folder = self.results.create(visitor)
        try:
            self.quota.check(visitor)
            video, srt_file = self._inputs(visitor, upload, srt, sample, folder / "source")
            self._check_limits(video)
            captions = _captions(video, srt_file)
            queries = [line for line in (query or "").splitlines() if line.strip()]
            if len(queries) > MOST_QUERIES:
                raise SearchError(f"{len(queries)} queries, and {MOST_QUERIES} are searched at once", "ask for fewer")
            video_result = self.searcher.search(video, queries, captions)
            write_results(folder, break_ties_across_videos([video_result]), max_moments=MAX_MOMENTS, clips=True)
            _name_videos(folder / "moments.json")
            self.quota.check(visitor)
        except Exception as error:
            self.results.remove(name)
            raise _user_error(_message(error)) from error
        return _result_html(f"/found/{name}")

    def _inputs(
        self, visitor: str, upload: str | None, srt: str | None, sample: str | None, folder: Path
    ) -> tuple[Path, Path]:
        """Return a video and the file of its captions, which need not be there."""
        if not upload:
            if sample in self.samples:
                video = self.samples[sample].video
                return video, video.with_suffix(".srt")
            raise SearchError("no video", "upload one, or pick one of ours")
        video = self.uploads.find(upload, visitor, frozenset(VIDEO_SUFFIXES))
        captions = self.uploads.find(srt, visitor, CAPTION_SUFFIXES) if srt else None
        # Second names for the same files: an upload can be searched again, and may be removed while it is searched.
        for file in (video, captions):
            if file:
                link_or_copy(file, folder / file.name)
        return folder / video.name, folder / (captions.name if captions else "none.srt")

    def _check_limits(self, video: Path) -> None:
        if video.stat().st_size > self.limits.megabytes * 1e6:
            raise VideoError(video, f"it is larger than {self.limits.megabytes:g} MB", "make it smaller with ffmpeg")
        if (minutes := searchable_duration(video) / 60) > self.limits.minutes:
            reason = f"it lasts {minutes:.1f} minutes, and {self.limits.minutes:g} are searched here"
            raise VideoError(video, reason, "upload a part of it, or use `calce search`")


def _form(search: SearchHandler, samples: Sequence[Sample], description: str, limits: Limits) -> gr.Blocks:
    def picked(name: str | None) -> str:
        return search.samples[name].queries[0] if name in search.samples else ""

    with gr.Blocks(title=TITLE, analytics_enabled=False) as form:
        gr.Markdown(f"# {TITLE}\n\n{description}")
        with gr.Row():
            with gr.Column():
                upload = gr.File(
                    label=f"Video: up to {limits.minutes:g} minutes and {limits.megabytes:g} MB",
                    file_types=list(VIDEO_SUFFIXES),
                    elem_id="upload",
                )
                srt = gr.File(
                    label="Its captions (.srt), if there are any", file_types=[".srt"], height=150, elem_id="captions"
                )
            with gr.Column():
                sample = gr.Dropdown(
                    [item.name for item in samples], value=None, label="Or one of ours", elem_id="sample"
                )
                query = gr.Textbox(
                    label="What to look for: a sentence, or one a line",
                    lines=2,
                    max_lines=6,
                    max_length=QUERY_CHARACTERS,
                    elem_id="query",
                )
                button = gr.Button("Search", variant="primary", elem_id="search")
        result = gr.HTML(elem_id="result")
        gr.Markdown(
            f"Searches run one at a time. Only this browser can open your results, and what you upload and what is "
            f"found are removed after {limits.keep_minutes:g} minutes."
        )
        sample.change(picked, sample, query, api_visibility="private", show_progress="hidden")
        # The browser keeps the ids of the uploads in texts. Gradio would open a file that a request names, any file of
        # the server's, so no file is among the inputs; what is no text does not pass the gate.
        ids = []
        for file in (upload, srt):
            ids.append(gr.Textbox(visible="hidden"))
            file.change(None, file, ids[-1], js="file => file ? file.path : ''", api_visibility="private")
        inputs = [*ids, sample, query]
        for event in (button.click, query.submit):
            event(search, inputs, result, api_visibility="private", concurrency_id="search", trigger_mode="once")
    return form


def _captions(video: Path, srt: Path) -> list[Caption]:
    """Return what is said in a video, nothing where there is no such file.

    Raises:
      SearchError: they cannot be read; the message names the file without its folder.
    """
    try:
        return load_captions(video, srt) if srt.is_file() else []
    except CaptionError as error:
        raise SearchError(str(error).replace(str(srt), srt.name)) from error


def _message(error: Exception) -> str:
    """Return what a visitor is told of an error: nothing of the server's files, and the reason where it is theirs."""
    match error:
        case VideoError():
            return f"{error.path.name}: {error.reason}; {error.remedy}"
        case SearchError() | QuotaError():
            return str(error)
    logging.error("a search failed", exc_info=error)
    return FAILED


def _name_videos(moments: Path) -> None:
    """Put names in place of the server's paths in a result."""
    entries = json.loads(moments.read_text(encoding="utf-8"))
    for entry in entries:
        entry["video"] = Path(entry["video"]).name
    write_atomic(moments, json.dumps(entries, indent=2, ensure_ascii=False) + "\n")


def _user_error(message: str) -> gr.Error:
    """Return what is shown until the visitor closes it; the program's own log is not for a visitor's mistakes."""
    return gr.Error(message, duration=None, print_exception=False)


def _result_html(address: str) -> str:
    escaped = html.escape(address, quote=True)
    return (
        f'<p><a href="{escaped}/index.html" target="_blank">open the result in a tab of its own</a> · '
        f'<a href="{escaped}/moments.json" download>moments.json</a></p>'
        f'<iframe src="{escaped}/index.html" title="result" '
        f'style="width: 100%; height: {FRAME_HEIGHT}; border: 0; border-radius: 10px"></iframe>'
    )


def check_port(host: str, port: int) -> None:
    """Refuse a port that cannot be listened on, before the models are opened.

    Raises:
      WebError: it is in use, or not ours to use.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise WebError(f"port {port} of {host}: {error.strerror}", "choose another with --port") from error
