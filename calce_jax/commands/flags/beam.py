"""The flag of commands that can run as an Apache Beam pipeline: `--runner=NAME -- FLAGS OF BEAM`."""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from absl import flags

from calce_jax.commands.runner import no_arguments
from calce_jax.errors import UserError

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions


class BeamFlags:
    """--runner of a command."""

    def __init__(self, flag_values: flags.FlagValues) -> None:
        self._runner = flags.DEFINE_string(
            "runner",
            None,
            "run as an Apache Beam pipeline on this runner (DirectRunner, FlinkRunner, ...); its flags follow after --",
            flag_values=flag_values,
        )

    def pipeline_options(self, argv: list[str]) -> "PipelineOptions | None":
        """Return the options of the Beam pipeline, or None without --runner.

        Args:
          argv: the program's name, and the arguments that are not flags of the command.

        Raises:
          UsageError: there are arguments without --runner.
          UserError: Beam is not installed.
        """
        if not self._runner.value:
            no_arguments(argv)
            return None
        return self.module().beam_options(self._runner.value, argv[1:])

    def module(self) -> ModuleType:
        """Import `calce_jax.datasets.beam`, the only module that needs Apache Beam.

        Raises:
          UserError: Beam is not installed.
        """
        try:
            return import_module("calce_jax.datasets.beam")
        except ModuleNotFoundError as error:
            if error.name != "apache_beam":
                raise
            raise UserError(f"--runner={self._runner.value}: {error}") from None
