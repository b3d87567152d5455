"""The flags of commands that run on several hosts.

Every host runs the same command with `--coordinator=HOST0:PORT --hosts=2 --host=0`, and `--host=1` on the other; or
with `--coordinator=auto` on a cluster that JAX detects. The environment variables CALCE_COORDINATOR, CALCE_HOSTS and
CALCE_HOST set the same values.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from absl import flags

from calce_jax.errors import UserError


class HostFlags:
    """--coordinator, --hosts and --host of a command."""

    def __init__(self, flag_values: flags.FlagValues) -> None:
        self._coordinator = flags.DEFINE_string(
            "coordinator",
            os.environ.get("CALCE_COORDINATOR", ""),
            "HOST:PORT of the first host, or auto to detect it; a single host if empty",
            flag_values=flag_values,
        )
        self._hosts = flags.DEFINE_integer(
            "hosts", None, "number of hosts that run this command", lower_bound=1, flag_values=flag_values
        )
        self._host = flags.DEFINE_integer(
            "host", None, "index of this host, from 0", lower_bound=0, flag_values=flag_values
        )

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Initialise JAX for the hosts that the flags or the environment name; a single host if neither does.

        Raises:
          UserError: a value is missing or not a whole number, or the hosts did not connect in time.
          LostHostError: another host has ended while the context lasts.
          OneHostError: this host has an error, and others may wait for it.
        """
        from calce_jax.distributed.multihost import host_errors, initialize_distributed

        hosts, host = _number(self._hosts, "CALCE_HOSTS"), _number(self._host, "CALCE_HOST")
        initialize_distributed(str(self._coordinator.value), hosts, host)
        with host_errors():
            yield


def _number(flag: flags.FlagHolder, variable: str) -> int | None:
    if flag.value is not None:
        return int(flag.value)
    text = os.environ.get(variable, "")
    if text and not text.isdecimal():
        raise UserError(f"{variable}={text} is not a whole number", "correct the environment variable")
    return int(text) if text else None
