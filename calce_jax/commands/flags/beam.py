"""The flag of scripts whose work an Apache Beam pipeline can do: `--runner=NAME -- BEAM'S OWN FLAGS`."""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from absl import app, flags

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

RUNNER = flags.DEFINE_string(
    "runner", None, "Apache Beam's name of a runner (DirectRunner, FlinkRunner, ...) that does it; its flags after --"
)


def pipeline_options(argv: list[str]) -> "PipelineOptions | None":
    """Return the options of a pipeline, or None where this machine is to do the work.

    Args:
      argv: the script's name, and what is no flag of it.

    Raises:
      UsageError: there are arguments, and no runner to take them.
      SystemExit: Beam is not installed.
    """
    if not RUNNER.value:
        if len(argv) > 1:
            raise app.UsageError(f"unknown argument: {argv[1]}")
        return None
    return beam().beam_options(RUNNER.value, argv[1:])


def beam() -> ModuleType:
    """Return `calce_jax.datasets.beam`, which alone needs Apache Beam.

    Raises:
      SystemExit: Beam is not installed.
    """
    try:
        return import_module("calce_jax.datasets.beam")
    except ModuleNotFoundError as error:
        if error.name != "apache_beam":
            raise
        raise SystemExit(
            f"--runner={RUNNER.value}: Apache Beam is not installed; `make beam` makes an environment that has it"
        ) from None
