"""The flags of commands that several hosts run together.

Every host gives the same command: `--coordinator=HOST0:PORT --hosts=2 --host=0`, and `--host=1` on the other; or
`--coordinator=auto` where the cluster knows. The environment variables CALCE_COORDINATOR, CALCE_HOSTS and CALCE_HOST do
the same.
"""

import os

from absl import flags

from calce_jax.errors import UserError


class HostFlags:
    """--coordinator, --hosts and --host of a command."""

    def __init__(self, flag_values: flags.FlagValues) -> None:
        self._coordinator = flags.DEFINE_string(
            "coordinator",
            os.environ.get("CALCE_COORDINATOR", ""),
            "HOST:PORT of the first host, or auto; alone if empty",
            flag_values=flag_values,
        )
        self._hosts = flags.DEFINE_integer(
            "hosts", None, "how many hosts run this command", lower_bound=1, flag_values=flag_values
        )
        self._host = flags.DEFINE_integer(
            "host", None, "which of them this is, from 0", lower_bound=0, flag_values=flag_values
        )

    def join(self) -> None:
        """Join the hosts that the flags, or else the environment, name; do nothing where neither does.

        Raises:
          UserError: the description is incomplete or no number.
          RuntimeError: the other hosts do not come.
        """
        from calce_jax.distributed.multihost import initialize_distributed  # noqa: PLC0415  imports jax

        hosts, host = _number(self._hosts, "CALCE_HOSTS"), _number(self._host, "CALCE_HOST")
        initialize_distributed(str(self._coordinator.value), hosts, host)


def _number(flag: flags.FlagHolder, variable: str) -> int | None:
    if flag.value is not None:
        return int(flag.value)
    text = os.environ.get(variable, "")
    if text and not text.isdecimal():
        raise UserError(f"{variable}={text}", "it must be a whole number")
    return int(text) if text else None
