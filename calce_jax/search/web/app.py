"""The web app: a Gradio form that runs one search at a time, and shows the result page in an iframe below it."""

import base64
import html
import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from absl import logging
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, Response
from gradio.themes import Base

from calce_jax.errors import UserError
from calce_jax.search.inputs import QueryError, check_queries, load_captions
from calce_jax.search.library import Library
from calce_jax.search.library_search import search_library
from calce_jax.search.paths import SearchError
from calce_jax.search.picture_ranker import PictureRanker
from calce_jax.search.results import break_ties_across_videos, drop_absent, write_results
from calce_jax.search.samples import Sample
from calce_jax.search.searcher import MAX_MOMENTS, Searcher
from calce_jax.search.segments import searchable_duration
from calce_jax.search.video_result import VideoResult
from calce_jax.search.web.gate import Gate
from calce_jax.search.web.quota import Limits, Quota, QuotaError
from calce_jax.search.web.uploads import NO_COOKIE, Uploads
from calce_jax.search.web.visitors import ResultStore, VisitorCookieMiddleware, visitor_from_cookies
from calce_jax.storage.atomic_files import link_or_copy, write_atomic
from calce_jax.text.caption import Caption
from calce_jax.text.caption_files import CAPTION_SUFFIXES
from calce_jax.text.captions import CaptionError
from calce_jax.video.clips import thumbnails_at
from calce_jax.video.decode import VideoError
from calce_jax.video.files import VIDEO_SUFFIXES

TITLE = "Moments in videos"
MAX_QUEUED = 60  # waiting searches
CLEANUP_SECONDS = 60.0
NUM_PREVIEWS, PREVIEW_HEIGHT = 6, 72  # pictures of a sample, pixels
# An error stays until it is closed; a new search closes it. Runs in the browser, and passes the inputs on.
CLOSE_ERRORS = "(...inputs) => { document.querySelectorAll('.toast-close').forEach((x) => x.click()); return inputs; }"
IFRAME_HEIGHT = "max(70vh, 44rem)"
LIBRARY = "all videos of the library"
MAX_QUERIES = 20  # of one search
MAX_TEXT_CHARACTERS = 8000  # of all queries of a search; `gate.MAX_BODY_BYTES` bounds the request
INTERNAL_ERROR = "the search failed because of an error in the app; its log has the reason"


@dataclass(frozen=True)
class LibrarySource:
    """A library that can be searched: its file, and the ranker of the app's model."""

    path: Path
    ranker: PictureRanker


class WebError(UserError):
    """The app cannot listen on its port."""


def make_app(
    searcher: Searcher,
    folder: Path,
    samples: Sequence[Sample],
    description: str,
    limits: Limits,
    *,
    host: str = "127.0.0.1",
    names: Sequence[str] = (),
    library: LibrarySource | None = None,
) -> FastAPI:
    """Return the ASGI app.

    Set $GRADIO_TEMP_DIR to a folder of this app before: Gradio creates a folder there for every component.

    Args:
      searcher: runs the searches.
      folder: of uploads and results, private to this app.
      samples: sample videos that the form offers.
      description: a paragraph of Markdown about the model, below the heading.
      limits: of each visitor, and of all together.
      host: the address that the app will listen on.
      names: other host names that browsers may use, see `Gate`.
      library: videos that every visitor may search, and see where something is found in them.
    """
    results = ResultStore(folder / "results", limits.retention_minutes * 60)
    upload_store = ResultStore(folder / "uploads", limits.retention_minutes * 60)
    for store in (results, upload_store):
        store.start_cleanup(CLEANUP_SECONDS)
    quota = Quota(upload_store, results, limits)
    uploads = Uploads(upload_store, quota, limits)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/found/{name}/{path:path}")
    def serve_result(name: str, path: str, request: Request) -> Response:
        file = results.find(name, path, visitor_from_cookies(request.headers.get("cookie", "")))
        headers = {"cache-control": "private", "x-content-type-options": "nosniff"}
        return FileResponse(file, headers=headers) if file else Response("not found", 404)

    uploads.add_routes(app)
    search = SearchHandler(
        searcher, results, uploads, quota, {sample.name: sample for sample in samples}, limits, library
    )
    form = _form(search, samples, description, limits)
    form.queue(max_size=MAX_QUEUED, default_concurrency_limit=1, api_open=False)
    mounted = gr.mount_gradio_app(
        app,
        form,
        path="/",
        max_file_size=int(limits.max_megabytes * 1e6),
        footer_links=[],
        run_history=False,
        show_error=False,  # of exceptions other than gr.Error
        ssr_mode=False,
        theme=Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    )
    mounted.add_middleware(VisitorCookieMiddleware)
    # The middleware that is added last runs first.
    functions = {number: len(function.inputs) for number, function in form.fns.items() if function.fn is not None}
    mounted.add_middleware(Gate, functions=functions, host=host, names=names)
    return mounted


class SearchHandler:
    """The function of the Search button."""

    def __init__(  # noqa: PLR0917  parts of the app
        self,
        searcher: Searcher,
        results: ResultStore,
        uploads: Uploads,
        quota: Quota,
        samples: dict[str, Sample],
        limits: Limits,
        library: LibrarySource | None = None,
    ):
        self.searcher, self.results, self.uploads, self.quota = searcher, results, uploads, quota
        self.samples, self.limits, self.library = samples, limits, library

    def __call__(  # noqa: PLR0917  Gradio passes one argument for each field
        self,
        upload: str | None,
        srt: str | None,
        sample: str | None,
        query: str | None,
        request: gr.Request,
        progress: Any = gr.Progress(track_tqdm=True),  # noqa: B008  Gradio recognises it by its default
    ) -> str:
        """Run a search, and return HTML with links to the result and the page in an iframe.

        Args:
          upload: the id of a video that this visitor uploaded, or empty.
          srt: the id of an uploaded .srt or .vtt file, or empty.
          sample: the name of a sample video, used if `upload` is empty.
          query: sentences, one per line.
          request: has the visitor's cookie.
          progress: shows the progress bars of tqdm.

        Raises:
          gr.Error: the search failed. The message contains no path of the server.
        """
        visitor = visitor_from_cookies(request.headers.get("cookie", ""))
        if not visitor:
            raise _user_error(NO_COOKIE)
        try:
            return _result_html(f"/found/{self._search(visitor, upload, srt, sample, query or '')}")
        except Exception as error:
            raise _user_error(_message(error)) from error

    def _search(self, visitor: str, upload: str | None, srt: str | None, sample: str | None, query: str) -> str:
        """Search, and return the name of the result; nothing is left of a search that fails."""
        name, folder = self.results.create(visitor)
        try:
            self.quota.check(visitor)
            queries = [line for line in query.splitlines() if line.strip()]
            if len(queries) > MAX_QUERIES:
                raise SearchError(f"{len(queries)} queries, the maximum is {MAX_QUERIES}", "remove some")
            if self.library is not None and sample == LIBRARY and not upload:
                results = _search_library(self.library, self.searcher, queries)
            else:
                video, srt_file = self._resolve_inputs(visitor, upload, srt, sample, folder / "source")
                self._check_limits(video)
                results = [self.searcher.search(video, queries, _captions(video, srt_file))]
            results = break_ties_across_videos(drop_absent(results, self.searcher.threshold))
            for failure in write_results(
                folder, results, max_moments=MAX_MOMENTS, clips=True, notice=self.searcher.notice
            ):
                logging.warning("a part of a result is missing: %s", failure.reason)
            if not (folder / "index.html").is_file():
                raise OSError("the video could not be copied to its result")
            _name_videos(folder / "moments.json")
            self.quota.check(visitor)
        except BaseException:
            self.results.remove(name)
            raise
        return name

    def _resolve_inputs(
        self, visitor: str, upload: str | None, srt: str | None, sample: str | None, folder: Path
    ) -> tuple[Path, Path]:
        """Return the video file and its captions, which may not exist; uploads are linked into `folder`."""
        if not upload:
            if sample in self.samples:
                video = self.samples[sample].video
                return video, video.with_suffix(".srt")
            raise SearchError("no video", "upload one, or choose a sample")
        video = self.uploads.find(upload, visitor, frozenset(VIDEO_SUFFIXES))
        captions = self.uploads.find(srt, visitor, frozenset(CAPTION_SUFFIXES)) if srt else None
        # Hard links: the cleanup may remove the upload during the search, and the visitor may search it again.
        for file in (video, captions):
            if file:
                link_or_copy(file, folder / file.name)
        return folder / video.name, folder / (captions.name if captions else "none.srt")

    def _check_limits(self, video: Path) -> None:
        if video.stat().st_size > self.limits.max_megabytes * 1e6:
            raise VideoError(video, f"it is larger than {self.limits.max_megabytes:g} MB", "compress it with ffmpeg")
        if (minutes := searchable_duration(video) / 60) > self.limits.max_minutes:
            reason = f"it lasts {minutes:.1f} minutes, the maximum is {self.limits.max_minutes:g}"
            raise VideoError(video, reason, "upload a part of it, or use `calce search`")


def _search_library(source: LibrarySource, searcher: Searcher, queries: Sequence[str]) -> list[VideoResult]:
    """Return the best moments in the videos of a library.

    Raises:
      SearchError: a query is refused, nothing was found, or the library cannot be searched; the log has the reason.
    """
    check_queries(queries)
    try:
        with Library(source.path) as library:
            found = search_library(library, searcher, source.ranker, queries, top=MAX_MOMENTS)
    except QueryError:
        raise
    except UserError as error:
        logging.error("the library cannot be searched: %s", error)
        raise SearchError("the library cannot be searched", "its owner finds the reason in the log") from error
    for failure in found.failures:
        logging.warning("%s of the library: %s", failure.video, failure.reason)
    if not found.results:
        raise SearchError("nothing was found in the library", "describe it in other words")
    return found.results


def _preview_html(video: Path) -> str:
    """Return pictures of a video, in a row."""
    seconds = np.linspace(0.0, searchable_duration(video), NUM_PREVIEWS, endpoint=False).tolist()
    encoded = (base64.b64encode(jpeg).decode() for jpeg in thumbnails_at(video, seconds, PREVIEW_HEIGHT))
    pictures = "".join(
        f'<img src="data:image/jpeg;base64,{jpeg}" alt="" style="border-radius: 4px">' for jpeg in encoded
    )
    return f'<div style="display: flex; gap: 4px; overflow: hidden">{pictures}</div>'


def _form(search: SearchHandler, samples: Sequence[Sample], description: str, limits: Limits) -> gr.Blocks:
    def show_sample(name: str | None) -> tuple[Any, str]:
        if name == LIBRARY and search.library is not None:
            return gr.skip(), ""
        if name not in search.samples:
            return "", ""
        return search.samples[name].queries[0], _preview_html(search.samples[name].video)

    with gr.Blocks(title=TITLE, analytics_enabled=False) as form:
        gr.Markdown(f"# {TITLE}\n\n{description}")
        with gr.Row():
            with gr.Column():
                upload = gr.File(
                    label=f"Video: up to {limits.max_minutes:g} minutes and {limits.max_megabytes:g} MB",
                    file_types=list(VIDEO_SUFFIXES),
                    elem_id="upload",
                )
                srt = gr.File(
                    label=f"Captions ({', '.join(CAPTION_SUFFIXES)}), optional",
                    file_types=list(CAPTION_SUFFIXES),
                    height=150,
                    elem_id="captions",
                )
            with gr.Column():
                sample = gr.Dropdown(
                    [*([LIBRARY] if search.library else []), *(item.name for item in samples)],
                    value=None,
                    label="Or the library, or a sample video" if search.library else "Or a sample video",
                    elem_id="sample",
                )
                preview = gr.HTML(elem_id="preview")
                query = gr.Textbox(
                    label="Query: one sentence per line",
                    lines=2,
                    max_lines=6,
                    max_length=MAX_TEXT_CHARACTERS,
                    elem_id="query",
                )
                button = gr.Button("Search", variant="primary", elem_id="search")
        result = gr.HTML(elem_id="result")
        gr.Markdown(
            f"Searches run one at a time. Only this browser can open your results. Uploads and results are deleted "
            f"after {limits.retention_minutes:g} minutes."
        )
        sample.change(show_sample, sample, [query, preview], api_visibility="private", show_progress="hidden")
        # A file component as an input would make Gradio open any file of the server that a request names. So the
        # inputs are text fields with the ids of the uploads; `Gate` rejects requests with other types.
        ids = []
        for file in (upload, srt):
            ids.append(gr.Textbox(visible="hidden"))
            file.change(None, file, ids[-1], js="file => file ? file.path : ''", api_visibility="private")
        inputs = [*ids, sample, query]
        for event in (button.click, query.submit):
            event(
                search,
                inputs,
                result,
                js=CLOSE_ERRORS,
                api_visibility="private",
                concurrency_id="search",
                trigger_mode="once",
            )
    return form


def _captions(video: Path, srt: Path) -> list[Caption]:
    """Return the captions of a video: of the given file if it exists, else those inside the video, if any.

    Raises:
      SearchError: the file cannot be read; the message names it without its folder.
    """
    try:
        return load_captions(video, srt if srt.is_file() else "auto")
    except CaptionError as error:
        raise SearchError(str(error).replace(str(srt), srt.name)) from error


def _message(error: Exception) -> str:
    """Return the message for the visitor, without paths; other errors than the visitor's are logged."""
    match error:
        case VideoError():
            return f"{error.path.name}: {error.reason}; {error.remedy}"
        case SearchError() | QuotaError():
            return str(error)
    logging.error("a search failed", exc_info=error)
    return INTERNAL_ERROR


def _name_videos(moments: Path) -> None:
    """Replace paths of the server in moments.json by file names."""
    entries = json.loads(moments.read_text(encoding="utf-8"))
    for entry in entries:
        entry["video"] = Path(entry["video"]).name
    write_atomic(moments, json.dumps(entries, indent=2, ensure_ascii=False) + "\n")


def _user_error(message: str) -> gr.Error:
    """Return an error that is shown until the visitor closes it, and is not logged."""
    return gr.Error(message, duration=None, print_exception=False)


def _result_html(address: str) -> str:
    escaped = html.escape(address, quote=True)
    return (
        f'<p><a href="{escaped}/index.html" target="_blank">open the result in a new tab</a> · '
        f'<a href="{escaped}/moments.json" download>moments.json</a></p>'
        f'<iframe src="{escaped}/index.html" title="result" '
        f'style="width: 100%; height: {IFRAME_HEIGHT}; border: 0; border-radius: 10px"></iframe>'
    )


def check_port(host: str, port: int) -> None:
    """Check that a port is free, before the models are loaded.

    Raises:
      WebError: the port is in use, or may not be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise WebError(f"port {port} of {host}: {error.strerror}", "choose another with --port") from error
