"""The flags of commands that several hosts run together.

Every host gives the same command: `--coordinator=HOST0:PORT --hosts=2 --host=0`, and `--host=1` on the other; or
`--coordinator=auto` where the cluster knows. The environment variables CALCE_COORDINATOR, CALCE_HOSTS and CALCE_HOST do
the same.
"""

import os

from absl import flags

from calce_jax.distributed.multihost import HostError, join_hosts

COORDINATOR = flags.DEFINE_string(
    "coordinator", os.environ.get("CALCE_COORDINATOR", ""), "HOST:PORT of the first host, or auto; alone if empty"
)
HOSTS = flags.DEFINE_integer("hosts", None, "how many hosts run this command", lower_bound=1)
HOST = flags.DEFINE_integer("host", None, "which of them this is, from 0", lower_bound=0)


def join_from_flags() -> None:
    """Join the hosts that the flags, or else the environment, speak of; do nothing where neither does.

    Raises:
      HostError: the description is incomplete or no number.
      RuntimeError: the other hosts do not come.
    """
    join_hosts(str(COORDINATOR.value), _given(HOSTS, "CALCE_HOSTS"), _given(HOST, "CALCE_HOST"))


def _given(flag: flags.FlagHolder, variable: str) -> int | None:
    if flag.value is not None:
        return int(flag.value)
    text = os.environ.get(variable, "")
    if text and not text.isdecimal():
        raise HostError(f"{variable}={text}: should be a whole number")
    return int(text) if text else None
