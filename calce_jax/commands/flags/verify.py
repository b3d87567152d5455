"""The flag of commands that open weights: `--verify=on|off`."""

from collections.abc import Callable
from typing import Any

import click
from absl import flags

CHOICES = ["on", "off"]
HELP = "compare weights and checkpoints with their checksums when they are opened; off also opens damaged ones"


class VerifyFlag:
    """--verify of a script for runs."""

    def __init__(self, flag_values: flags.FlagValues) -> None:
        self._verify = flags.DEFINE_enum("verify", "on", CHOICES, HELP, flag_values=flag_values)

    def apply(self) -> None:
        """Set it for this process."""
        apply_verify(str(self._verify.value))


def verify_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --verify to a command for people, as its parameter `verify`."""
    return click.option("--verify", type=click.Choice(CHOICES), default="on", help=HELP)(command)


def apply_verify(verify: str) -> None:
    """Set "on" or "off" for this process."""
    from calce_jax.storage.verification import set_verification

    set_verification(verify == "on")
