"""The flag of commands that can run as an Apache Beam pipeline: `--runner=NAME -- FLAGS OF BEAM`."""

from collections.abc import Callable, Sequence
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click
from absl import flags

from calce_jax.errors import UsageError, UserError

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

HELP = "run as an Apache Beam pipeline on this runner (DirectRunner, FlinkRunner, ...); its flags follow after --"


def define_runner(flag_values: flags.FlagValues) -> flags.FlagHolder:
    """Define --runner of a script for runs."""
    return flags.DEFINE_string("runner", None, HELP, flag_values=flag_values)


def runner_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --runner to a command for people, as its parameters `runner` and `beam_flags`."""
    arguments = click.argument("beam_flags", nargs=-1, type=click.UNPROCESSED, metavar="[-- FLAGS OF BEAM]")
    return click.option("--runner", help=HELP)(arguments(command))


def pipeline_options(runner: str | None, arguments: Sequence[str]) -> "PipelineOptions | None":
    """Return the options of the Beam pipeline, or None without --runner.

    Args:
      runner: the value of --runner.
      arguments: those that are not flags of the command.

    Raises:
      UsageError: there are arguments without --runner.
      UserError: Beam is not installed.
    """
    if runner:
        return beam_module(runner).beam_options(runner, list(arguments))
    if arguments:
        raise UsageError(f"unknown argument: {arguments[0]}")
    return None


def beam_module(runner: str | None) -> ModuleType:
    """Import `calce_jax.datasets.beam`, the only module that needs Apache Beam.

    Raises:
      UserError: Beam is not installed.
    """
    try:
        return import_module("calce_jax.datasets.beam")
    except ModuleNotFoundError as error:
        if error.name != "apache_beam":
            raise
        raise UserError(f"--runner={runner}: {error}") from None
