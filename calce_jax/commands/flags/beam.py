"""The flag of commands whose work an Apache Beam pipeline can do: `--runner=NAME -- BEAM'S OWN FLAGS`."""

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
            "Apache Beam's name of a runner (DirectRunner, FlinkRunner, ...) that does it; its flags after --",
            flag_values=flag_values,
        )

    def pipeline_options(self, argv: list[str]) -> "PipelineOptions | None":
        """Return the options of a pipeline, or None where this machine is to do the work.

        Args:
          argv: the command's name, and what is no flag of it.

        Raises:
          UsageError: there are arguments, and no runner to take them.
          UserError: Beam is not installed.
        """
        if not self._runner.value:
            no_arguments(argv)
            return None
        return self.module().beam_options(self._runner.value, argv[1:])

    def module(self) -> ModuleType:
        """Return `calce_jax.datasets.beam`, which alone needs Apache Beam.

        Raises:
          UserError: Beam is not installed.
        """
        try:
            return import_module("calce_jax.datasets.beam")
        except ModuleNotFoundError as error:
            if error.name != "apache_beam":
                raise
            raise UserError(
                f"--runner={self._runner.value}: Apache Beam is not installed",
                "`make beam` makes an environment that has it",
            ) from None
