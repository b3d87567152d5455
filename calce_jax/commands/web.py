"""Search in a browser: `calce web --checkpoint=runs/demo [--port=7860]`; needs the extra `[web]`.

Listens on 127.0.0.1; --host=0.0.0.0 lets other machines connect. Without --checkpoint it uses the tiny model of the
package, which was trained on the shapes dataset alone; the form offers sample videos of it.
"""

import os
import tempfile
from pathlib import Path

import click

from calce_jax.commands.command import Command, switch
from calce_jax.commands.flags.cache import cache_options, open_cache
from calce_jax.commands.flags.library import library_option, library_path
from calce_jax.commands.flags.model import ModelOptions, batch_option, find_checkpoint, model_options
from calce_jax.commands.flags.verify import apply_verify, verify_option
from calce_jax.errors import UserError
from calce_jax.search.paths import SearchError, check_host
from calce_jax.storage.extras import extra_remedy

TINY_MODEL_NOTICE = (
    "This is the **tiny model** of the demo. It was trained on videos of four coloured shapes and speech about 24 "
    "things; its results for other videos are meaningless."
)
TRAINED_MODEL_NOTICE = (
    "The model in `{}`. It returns moments also for a query that does not happen in the video: check the score."
)

NON_NEGATIVE = click.FloatRange(min=0)


@click.command("web", cls=Command, help=__doc__)
@model_options
@batch_option
@switch("library", help="every visitor may also search the videos of `calce index --picture`, and see them")
@library_option
@click.option(
    "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 accepts connections from other machines"
)
@click.option("--port", type=click.IntRange(1, 65535), default=7860, help="port to listen on")
@click.option("--max_mb", type=NON_NEGATIVE, default=500.0, help="maximum size of a video, MB")
@click.option("--max_minutes", type=NON_NEGATIVE, default=10.0, help="maximum length of a video, minutes")
@click.option(
    "--keep_minutes", type=NON_NEGATIVE, default=60.0, help="minutes after which uploads and results are deleted"
)
@click.option(
    "--visitor_mb", type=NON_NEGATIVE, default=2000.0, help="maximum size of the uploads and results of a visitor, MB"
)
@click.option(
    "--visitor_uploads", type=click.IntRange(min=1), default=20, help="maximum number of uploads of a visitor"
)
@click.option(
    "--total_mb",
    type=NON_NEGATIVE,
    default=20_000.0,
    help="maximum size of the uploads and results of all visitors, MB",
)
@click.option("--allow_host", multiple=True, help="another host name that browsers may use")
@cache_options
@verify_option
def command(
    *,
    checkpoint: str | None,
    yes: bool,
    models_dir: str | None,
    keep_downloads: bool,
    batch: int | None,
    library: bool,
    library_file: str | None,
    host: str,
    port: int,
    max_mb: float,
    max_minutes: float,
    keep_minutes: float,
    visitor_mb: float,
    visitor_uploads: int,
    total_mb: float,
    allow_host: tuple[str, ...],
    cache: str | None,
    cache_gb: float,
    verify: str,
) -> None:
    """Load the models, then serve until interrupted."""
    apply_verify(verify)
    folder_of_stages = find_checkpoint(ModelOptions(checkpoint, yes, models_dir, keep_downloads))
    check_host(host)
    library_of_videos = check_library(library_path(library_file)) if library else None
    # Read when gradio is imported and when an app is made: no usage statistics, and no look-up of new versions.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import uvicorn

        from calce_jax.search.web.app import LibrarySource, check_port, make_app
        from calce_jax.search.web.quota import Limits
    except ImportError as error:
        raise UserError(f"{error.name} is not installed", extra_remedy("web")) from None
    from calce_jax.search.load_searcher import enable_compilation_cache, load_searcher
    from calce_jax.search.picture_ranker import open_ranker
    from calce_jax.search.samples import load_samples
    from calce_jax.storage.program_cache import ProgramCache

    check_port(host, port)
    disk_cache = open_cache(cache, cache_gb)
    enable_compilation_cache(disk_cache.folder)
    searcher = load_searcher(folder_of_stages, cache=disk_cache, batch=batch, programs=ProgramCache(disk_cache))
    ranker = open_ranker(searcher, folder_of_stages) if library else None
    limits = Limits(
        max_megabytes=max_mb,
        max_minutes=max_minutes,
        retention_minutes=keep_minutes,
        max_visitor_megabytes=visitor_mb,
        max_visitor_uploads=visitor_uploads,
        max_total_megabytes=total_mb,
    )
    with tempfile.TemporaryDirectory(prefix="calce_web_") as folder:
        # Gradio creates a folder here for every component; uploads go elsewhere, see `calce_jax.search.web.uploads`.
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "gradio")
        # The name alone: visitors must not see paths of this machine.
        name = folder_of_stages.resolve().name if folder_of_stages else None
        notice = TRAINED_MODEL_NOTICE.format(name) if name else TINY_MODEL_NOTICE
        source = LibrarySource(library_of_videos, ranker) if library_of_videos and ranker else None
        web_app = make_app(
            searcher, Path(folder), load_samples(), notice, limits, host=host, names=list(allow_host), library=source
        )
        print(f"open http://{host}:{port}", flush=True)
        uvicorn.run(web_app, host=host, port=port, log_level="warning")


def check_library(path: Path) -> Path:
    """Check that the model has looked at the videos of a library.

    Raises:
      LibraryError: there is none, or it is damaged.
      SearchError: it has not.
    """
    from calce_jax.search.library import Library

    with Library(path) as library:
        if not library.has_pictures():
            raise SearchError(f"{path}: no model has looked at its videos", "run `calce index --picture` first")
    return path
