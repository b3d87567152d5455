"""Search in a browser: `calce web --checkpoint=runs/demo [--port=7860]`; needs the extra `[web]`.

Listens on 127.0.0.1; --host=0.0.0.0 lets other machines connect. Without --checkpoint it uses the tiny model of the
package, which was trained on the shapes dataset alone; the form offers sample videos of it.
"""

import os
import tempfile
from pathlib import Path

from absl import flags

from calce_jax.commands.flags.cache import CacheFlags
from calce_jax.commands.flags.model import ModelFlags
from calce_jax.commands.flags.verify import VerifyFlag
from calce_jax.commands.runner import no_arguments
from calce_jax.errors import UserError
from calce_jax.search.paths import check_host

FLAGS = flags.FlagValues()
CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "folder with the workdirs stage1 and stage2, or a published model such as calce-qvh (`calce models`); the tiny "
    "model unless given",
    flag_values=FLAGS,
)
MODEL_FLAGS = ModelFlags(FLAGS)
HOST = flags.DEFINE_string(
    "host", "127.0.0.1", "address to listen on; 0.0.0.0 accepts connections from other machines", flag_values=FLAGS
)
PORT = flags.DEFINE_integer("port", 7860, "port to listen on", lower_bound=1, upper_bound=65535, flag_values=FLAGS)
MAX_MEGABYTES = flags.DEFINE_float("max_mb", 500.0, "maximum size of a video, MB", lower_bound=0.0, flag_values=FLAGS)
MAX_MINUTES = flags.DEFINE_float(
    "max_minutes", 10.0, "maximum length of a video, minutes", lower_bound=0.0, flag_values=FLAGS
)
KEEP_MINUTES = flags.DEFINE_float(
    "keep_minutes", 60.0, "minutes after which uploads and results are deleted", lower_bound=0.0, flag_values=FLAGS
)
VISITOR_MB = flags.DEFINE_float(
    "visitor_mb", 2000.0, "maximum size of the uploads and results of a visitor, MB", lower_bound=0.0, flag_values=FLAGS
)
UPLOADS = flags.DEFINE_integer(
    "visitor_uploads", 20, "maximum number of uploads of a visitor", lower_bound=1, flag_values=FLAGS
)
TOTAL_MB = flags.DEFINE_float(
    "total_mb",
    20_000.0,
    "maximum size of the uploads and results of all visitors, MB",
    lower_bound=0.0,
    flag_values=FLAGS,
)
NAMES = flags.DEFINE_multi_string("allow_host", [], "another host name that browsers may use", flag_values=FLAGS)
CACHE_FLAGS = CacheFlags(FLAGS)
VERIFY_FLAG = VerifyFlag(FLAGS)

TINY_MODEL_NOTICE = (
    "This is the **tiny model** of the demo. It was trained on videos of four coloured shapes and speech about 24 "
    "things; its results for other videos are meaningless."
)
TRAINED_MODEL_NOTICE = (
    "The model in `{}`. It returns moments also for a query that does not happen in the video: check the score."
)


def main(argv: list[str]) -> None:
    """Load the models, then serve until interrupted."""
    no_arguments(argv)
    VERIFY_FLAG.apply()
    checkpoint = MODEL_FLAGS.find_checkpoint(CHECKPOINT.value)
    check_host(str(HOST.value))
    # Read when gradio is imported and when an app is made: no usage statistics, and no look-up of new versions.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import uvicorn

        from calce_jax.search.web.app import check_port, make_app
        from calce_jax.search.web.quota import Limits
    except ImportError as error:
        raise UserError(str(error), "install the extra: pip install 'calce_jax[web]'") from None
    from calce_jax.search.samples import load_samples
    from calce_jax.search.searcher import enable_compilation_cache, load_searcher

    host, port = str(HOST.value), int(PORT.value or 0)
    check_port(host, port)
    cache = CACHE_FLAGS.open()
    enable_compilation_cache(cache.folder)
    searcher = load_searcher(checkpoint, cache=cache)
    limits = Limits(
        max_megabytes=float(MAX_MEGABYTES.value or 0),
        max_minutes=float(MAX_MINUTES.value or 0),
        retention_minutes=float(KEEP_MINUTES.value or 0),
        max_visitor_megabytes=float(VISITOR_MB.value or 0),
        max_visitor_uploads=int(UPLOADS.value or 0),
        max_total_megabytes=float(TOTAL_MB.value or 0),
    )
    with tempfile.TemporaryDirectory(prefix="calce_web_") as folder:
        # Gradio creates a folder here for every component; uploads go elsewhere, see `calce_jax.search.web.uploads`.
        os.environ["GRADIO_TEMP_DIR"] = str(Path(folder) / "gradio")
        # The name alone: visitors must not see paths of this machine.
        notice = TRAINED_MODEL_NOTICE.format(checkpoint.resolve().name) if checkpoint else TINY_MODEL_NOTICE
        web_app = make_app(searcher, Path(folder), load_samples(), notice, limits, host=host, names=NAMES.value or [])
        print(f"open http://{host}:{port}", flush=True)
        uvicorn.run(web_app, host=host, port=port, log_level="warning")
