"""The app: a form of Gradio's, a search at a time, and the page of the result in a frame below it."""

import html
import os
import shutil
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calce_jax.video.files import VIDEO_SUFFIXES

# Before Gradio is imported: nothing is told to anybody.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, Response
from gradio.themes import Base

from calce_jax.errors import UserError
from calce_jax.search.inputs import SearchError, captions_of
from calce_jax.search.results import told_apart, write_findings
from calce_jax.search.samples import Sample
from calce_jax.search.searcher import MOST_MOMENTS, Searcher
from calce_jax.search.segments import length_of
from calce_jax.search.web.visitors import COOKIE, KnowVisitors, Results, visitor_of
from calce_jax.video.decode import VideoError

TITLE = "Moments in videos"
WAITING = 20  # searches at most
CLEAR_EVERY_S = 60.0
FRAME_HEIGHT = "max(70vh, 44rem)"


class WebError(UserError):
    """The app cannot be started; the message says why and the remedy."""


@dataclass(frozen=True)
class Limits:
    """What a visitor may ask for: megabytes and minutes of a video, and minutes that results are kept."""

    megabytes: float = 500.0
    minutes: float = 10.0
    keep_minutes: float = 60.0


def make_app(searcher: Searcher, folder: Path, samples: Sequence[Sample], about: str, limits: Limits) -> FastAPI:
    """Make the app.

    Args:
      searcher: with the models.
      folder: for uploads and results; nobody else's.
      samples: to pick from.
      about: what the model can and cannot do, a paragraph.
      limits: what a visitor may ask for.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
    results = Results(folder / "results", limits.keep_minutes * 60)
    results.clear_every(CLEAR_EVERY_S)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/found/{name}/{path:path}")
    def found(name: str, path: str, request: Request) -> Response:
        file = results.find(name, path, request.cookies.get(COOKIE, ""))
        return FileResponse(file, headers={"cache-control": "private"}) if file else Response("not found", 404)

    form = _form(_Search(searcher, results, {each.name: each for each in samples}, limits), samples, about, limits)
    form.queue(max_size=WAITING, default_concurrency_limit=1, api_open=False)
    mounted = gr.mount_gradio_app(
        app,
        form,
        path="/",
        max_file_size=int(limits.megabytes * 1e6),
        footer_links=[],
        run_history=False,
        show_error=True,
        ssr_mode=False,
        theme=Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    )
    mounted.add_middleware(KnowVisitors)
    return mounted


class _Search:
    """What the button does."""

    def __init__(self, searcher: Searcher, results: Results, samples: dict[str, Sample], limits: Limits):
        self.searcher, self.results, self.samples, self.limits = searcher, results, samples, limits

    def __call__(  # noqa: PLR0917  one argument a field, in their order
        self,
        upload: str | None,
        srt: str | None,
        sample: str | None,
        query: str,
        request: gr.Request,
        progress: Any = gr.Progress(track_tqdm=True),  # noqa: B008  Gradio finds it by its default
    ) -> str:
        """Search, and return what shows the result.

        Raises:
          gr.Error: whatever the visitor can do something about.
        """
        visitor = visitor_of(request.headers.get("cookie", ""))
        if not visitor:
            raise _told("this page needs its cookie to show your results to you alone; allow it, and reload")
        name, folder = self.results.make(visitor)
        try:
            video = self._video(upload, sample, folder)
            self._check(video)
            captions = captions_of(video, srt if srt and upload else "auto")
            queries = [line for line in query.splitlines() if line.strip()]
            searched = self.searcher.search(video, queries, captions)
            write_findings(folder, told_apart([searched]), top=MOST_MOMENTS, clips=True)
        except VideoError as error:
            raise _told(f"{error.path.name}: {error.reason}; {error.remedy}") from error
        except (OSError, ValueError) as error:
            raise _told(str(error).replace(f"{folder}/", "")) from error
        return _frame(f"/found/{name}")

    def _video(self, upload: str | None, sample: str | None, folder: Path) -> Path:
        if upload:
            # Out of Gradio's folder, so that it goes when the result goes.
            return Path(shutil.move(upload, folder / Path(upload).name))
        if sample in self.samples:
            return self.samples[sample].video
        raise SearchError("no video", "upload one, or pick one of ours")

    def _check(self, video: Path) -> None:
        if video.stat().st_size > self.limits.megabytes * 1e6:
            raise VideoError(video, f"it is larger than {self.limits.megabytes:g} MB", "make it smaller with ffmpeg")
        if (minutes := length_of(video) / 60) > self.limits.minutes:
            reason = f"it lasts {minutes:.1f} minutes, and {self.limits.minutes:g} are searched here"
            raise VideoError(video, reason, "upload a part of it, or use `calce search`")


def _form(search: _Search, samples: Sequence[Sample], about: str, limits: Limits) -> gr.Blocks:
    def picked(name: str | None) -> str:
        return search.samples[name].queries[0] if name in search.samples else ""

    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(300, int(limits.keep_minutes * 60))) as form:
        gr.Markdown(f"# {TITLE}\n\n{about}")
        with gr.Row():
            with gr.Column():
                upload = gr.File(
                    label=f"Video: up to {limits.minutes:g} minutes and {limits.megabytes:g} MB",
                    file_types=list(VIDEO_SUFFIXES),
                    elem_id="upload",
                )
                srt = gr.File(label="Its captions (.srt), if there are any", file_types=[".srt"], height=150)
            with gr.Column():
                sample = gr.Dropdown(
                    [each.name for each in samples], value=None, label="Or one of ours", elem_id="sample"
                )
                query = gr.Textbox(
                    label="What to look for: a sentence, or one a line", lines=2, max_lines=6, elem_id="query"
                )
                button = gr.Button("Search", variant="primary", elem_id="search")
        result = gr.HTML(elem_id="result")
        gr.Markdown(
            f"Searches run one at a time. Only this browser can open your results, and what you upload and what is "
            f"found are removed after {limits.keep_minutes:g} minutes."
        )
        sample.change(picked, sample, query, api_visibility="private", show_progress="hidden")
        asked = [upload, srt, sample, query]
        for event in (button.click, query.submit):
            event(search, asked, result, api_visibility="private", concurrency_id="search", trigger_mode="once")
    return form


def _told(message: str) -> gr.Error:
    """Return what is shown until the visitor closes it; the program's own log is not for a visitor's mistakes."""
    return gr.Error(message, duration=None, print_exception=False)


def _frame(address: str) -> str:
    safe = html.escape(address, quote=True)
    return (
        f'<p><a href="{safe}/index.html" target="_blank">open the result in a tab of its own</a> · '
        f'<a href="{safe}/moments.json" download>moments.json</a></p>'
        f'<iframe src="{safe}/index.html" title="result" '
        f'style="width: 100%; height: {FRAME_HEIGHT}; border: 0; border-radius: 10px"></iframe>'
    )


def check_port(host: str, port: int) -> None:
    """Refuse a port that cannot be listened on, before the models are opened.

    Raises:
      WebError: it is in use, or not ours to use.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((host, port))
        except OSError as error:
            raise WebError(f"port {port} of {host}: {error.strerror}", "choose another with --port") from error
