"""The devices of this process; JAX without any fails by an assertion, or in a traceback of many lines."""

import os
from typing import Any

import jax

from calce_jax.errors import UserError


def find_devices(*, local: bool = False) -> list[Any]:
    """Return the devices of all hosts, or of this one alone.

    Raises:
      UserError: those of JAX_PLATFORMS are not here, or JAX cannot use them.
    """
    try:
        return list(jax.local_devices() if local else jax.devices())
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0] or "JAX has no software for them"
        raise UserError(
            f"JAX finds no devices ({reason}); JAX_PLATFORMS is {os.environ.get('JAX_PLATFORMS', '')!r}",
            "set it to a platform that is installed, such as cpu",
        ) from error
