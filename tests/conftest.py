"""Settings of all tests (CPU, four simulated devices, float32, no silent promotion), and fixtures of several rooms."""

import gc
import os
import signal
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the time goes to compiling programs that run for a moment: so they are optimised little, compiled by the older
# emitter where there still is one, in half the time, and kept.
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=4",
        "--xla_backend_optimization_level=0",
        "--xla_cpu_parallel_codegen_split_count=1",
        # One thing after the other: hosts that exchange two things at once may each begin with another one.
        "--xla_cpu_enable_concurrency_optimized_scheduler=false",
        # A device that waits for the others ends the process, after half a minute; a busy machine takes longer.
        "--xla_cpu_collective_call_terminate_timeout_seconds=600",
        "--xla_cpu_collective_timeout_seconds=600",
        "--xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else "",
    )
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache/xla"))
# Every program, however small: two workers compile much the same ones.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest

from calce_jax.distributed.freed_memory import keep_freed_memory
from tests.helpers.pipeline import PipelineRun, run_pipeline

keep_freed_memory()
# Traced programs are many small objects that live long: the default looks through all of them every 700 new ones.
gc.set_threshold(100_000, 20, 50)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "float32")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of recorded numbers, annotations and media; tests that need it skip, and say so, without it."""
    folder = Path(os.environ.get("CALCE_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no shared folder at {folder}; set CALCE_SHARED")
    return folder


@pytest.fixture(scope="session")
def pipeline_run(tmp_path_factory: pytest.TempPathFactory) -> PipelineRun:
    """The output of all commands, with both stages trained for a few steps.

    pytest-xdist makes it once in each worker that needs it; so its tests are in one file, commands/test_pipeline.py.
    """
    return run_pipeline(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture
def signals_heard() -> Iterator[None]:
    """SIGINT and SIGTERM as in a process in the foreground; in the background a shell lets SIGINT be ignored."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


# Half a minute and more each.
LONGEST = ("test_pipeline.py", "test_run.py", "test_mesh_parity.py", "test_loop.py", "test_whisper.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long files first, so that no worker begins one when the other is done."""
    slow = {item.path for item in items if item.get_closest_marker("slow") or item.path.name in LONGEST}
    rank = {path: LONGEST.index(path.name) for path in slow if path.name in LONGEST}
    items.sort(key=lambda item: (item.path not in slow, rank.get(item.path, len(LONGEST)), item.path))
