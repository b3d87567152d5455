"""Search in a browser: `calce web --checkpoint=runs/demo [--port=7860]`; needs the extra `[web]`.

It listens on this machine alone unless told otherwise with --host. Without --checkpoint it uses the tiny model that
comes with the package, which was trained on the shapes world alone; sample videos are there to try.
"""

import signal
import sys
import tempfile
from pathlib import Path

from absl import flags

from calce_jax.commands.runner import no_arguments
from calce_jax.errors import UserError

FLAGS = flags.FlagValues()
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "folder that holds the workdirs stage1 and stage2 of trained runs", flag_values=FLAGS
)
HOST = flags.DEFINE_string(
    "host", "127.0.0.1", "address to listen on; 0.0.0.0 lets everybody in who reaches it", flag_values=FLAGS
)
PORT = flags.DEFINE_integer("port", 7860, "port to listen on", 1, 65535, flag_values=FLAGS)
MAX_MEGABYTES = flags.DEFINE_float("max_mb", 500.0, "size of a video at most", lower_bound=0.0, flag_values=FLAGS)
MAX_MINUTES = flags.DEFINE_float("max_minutes", 10.0, "length of a video at most", lower_bound=0.0, flag_values=FLAGS)
KEEP_MINUTES = flags.DEFINE_float(
    "keep_minutes", 60.0, "after so long, uploads and results are removed", lower_bound=0.0, flag_values=FLAGS
)
VISITOR_MB = flags.DEFINE_float(
    "visitor_mb", 2000.0, "size of all uploads and results of a visitor at most", lower_bound=0.0, flag_values=FLAGS
)
UPLOADS = flags.DEFINE_integer(
    "visitor_uploads", 20, "uploads that a visitor may keep", lower_bound=1, flag_values=FLAGS
)
TOTAL_MB = flags.DEFINE_float(
    "total_mb", 20_000.0, "size of the uploads and results of all visitors at most", lower_bound=0.0, flag_values=FLAGS
)
NAMES = flags.DEFINE_multi_string(
    "allow_host", [], "another host name under which browsers may open it", flag_values=FLAGS
)
CACHE = flags.DEFINE_string(
    "cache", None, "folder for what a second search uses again; safe to delete", flag_values=FLAGS
)
CACHE_GB = flags.DEFINE_float("cache_gb", 10.0, "what that folder may hold", lower_bound=0.0, flag_values=FLAGS)

TINY_MODEL_NOTICE = (
    "This is the **tiny model** of the demo. It knows four coloured shapes that come, move and go, and 24 things that "
    "are talked about. It runs on any video, and what it says of others means nothing."
)
TRAINED_MODEL_NOTICE = "The model in `{}`. It answers also when what is asked for does not happen: look at the score."


def main(argv: list[str]) -> None:
    """Open the models, then listen until interrupted."""
    no_arguments(argv)
    try:
        import uvicorn

        from calce_jax.search.web.app import check_port, make_app
        from calce_jax.search.web.quota import Limits
    except ImportError as error:
        raise UserError(str(error), "install the extra: pip install 'calce_jax[web]'") from None
    from calce_jax.search.samples import load_samples
    from calce_jax.search.searcher import Searcher, enable_compilation_cache, open_stages
    from calce_jax.storage.disk_cache import DiskCache, default_cache_dir

    host, port = str(HOST.value), int(PORT.value or 0)
    check_port(host, port)
    cache = DiskCache(CACHE.value or default_cache_dir(), int((CACHE_GB.value or 0.0) * 1e9))
    enable_compilation_cache(cache.folder)
    searcher = Searcher(open_stages(CHECKPOINT.value), cache)
    megabytes, minutes, keep, own, total = (
        float(flag.value or 0) for flag in (MAX_MEGABYTES, MAX_MINUTES, KEEP_MINUTES, VISITOR_MB, TOTAL_MB)
    )
    limits = Limits(megabytes, minutes, keep, own, int(UPLOADS.value or 0), total)
    with tempfile.TemporaryDirectory(prefix="calce_web_") as folder:
        # By its name: visitors are shown no path of this machine.
        about = (
            TRAINED_MODEL_NOTICE.format(Path(CHECKPOINT.value).resolve().name)
            if CHECKPOINT.value
            else TINY_MODEL_NOTICE
        )
        web_app = make_app(searcher, Path(folder), load_samples(), about, limits, host=host, names=NAMES.value or [])
        # Uvicorn shuts down and then passes the signal on; the folder is to go all the same.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        print(f"open http://{host}:{port}", flush=True)
        uvicorn.run(web_app, host=host, port=port, log_level="warning")
