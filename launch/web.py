"""Search in a browser: `launch/web.py --checkpoint=runs/demo [--port=7860]`; needs the extra `[web]`.

It listens on this machine alone unless told otherwise with --host. Without --checkpoint it uses the tiny model that
comes with the package, which knows nothing but the world of shapes; videos of it are there to try.
"""

import signal
import sys
import tempfile
from pathlib import Path

from absl import app, flags, logging

from calce_jax.cache import LIMIT_GB, Cache, default_folder
from calce_jax.checkpoints import CheckpointError
from calce_jax.search import Searcher, keep_programs, open_stages
from calce_jax.web.samples import draw_samples

try:
    import uvicorn

    from calce_jax.web.app import Limits, check_port, make_app
except ImportError as error:
    raise SystemExit(f"{error}; install the extra: pip install 'calce_jax[web]'") from None

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "folder that holds the workdirs stage1 and stage2 of trained runs")
HOST = flags.DEFINE_string("host", "127.0.0.1", "address to listen on; 0.0.0.0 lets everybody in who reaches it")
PORT = flags.DEFINE_integer("port", 7860, "port to listen on", 1, 65535)
MEGABYTES = flags.DEFINE_float("max_mb", 500.0, "size of a video at most", lower_bound=0.0)
MINUTES = flags.DEFINE_float("max_minutes", 10.0, "length of a video at most", lower_bound=0.0)
KEEP = flags.DEFINE_float("keep_minutes", 60.0, "after so long, uploads and results are removed", lower_bound=0.0)
VISITOR_MB = flags.DEFINE_float("visitor_mb", 2000.0, "what a visitor may keep: uploads and results", lower_bound=0.0)
UPLOADS = flags.DEFINE_integer("visitor_uploads", 20, "uploads that a visitor may keep", lower_bound=1)
TOTAL_MB = flags.DEFINE_float("total_mb", 20_000.0, "what all visitors together may keep", lower_bound=0.0)
NAMES = flags.DEFINE_multi_string("allow_host", [], "another name under which browsers may ask for it")
CACHE = flags.DEFINE_string("cache", None, "folder for what a second search uses again; safe to delete")
CACHE_GB = flags.DEFINE_float("cache_gb", LIMIT_GB, "what that folder may hold", lower_bound=0.0)

TINY = (
    "This is the **tiny model** of the demo. It knows four coloured shapes that come, move and go, and 24 things that "
    "are talked about. It runs on any video, and what it says of others means nothing."
)
TRAINED = "The model in `{}`. It answers also when what is asked for does not happen: look at the score."


def main(argv: list[str]) -> None:
    """Open the models, then listen until interrupted."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument: {argv[1]}")
    try:
        host, port = str(HOST.value), int(PORT.value or 0)
        check_port(host, port)
        cache = Cache(CACHE.value or default_folder(), int((CACHE_GB.value or 0.0) * 1e9))
        keep_programs(cache.folder)
        searcher = Searcher(open_stages(CHECKPOINT.value), cache)
        megabytes, minutes, keep, own, total = (
            float(each.value or 0) for each in (MEGABYTES, MINUTES, KEEP, VISITOR_MB, TOTAL_MB)
        )
        limits = Limits(megabytes, minutes, keep, own, int(UPLOADS.value or 0), total)
        with tempfile.TemporaryDirectory(prefix="calce_web_") as folder:
            # By its name: visitors are told no path of this machine.
            about = TRAINED.format(Path(CHECKPOINT.value).resolve().name) if CHECKPOINT.value else TINY
            samples = draw_samples(Path(folder) / "samples")
            served = make_app(searcher, Path(folder), samples, about, limits, host=host, names=NAMES.value or [])
            # Uvicorn shuts down and then passes the signal on; the folder is to go all the same.
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
            print(f"open http://{host}:{port}", flush=True)
            uvicorn.run(served, host=host, port=port, log_level="warning")
    except (CheckpointError, OSError, ValueError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None


if __name__ == "__main__":
    logging.set_verbosity(logging.WARNING)
    app.run(main)
