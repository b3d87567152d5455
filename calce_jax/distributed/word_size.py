"""JAX's numbers have 32 bits here, also in a process of somebody else's that may have set it to 64."""

import jax.numpy as jnp

from calce_jax.errors import UserError


def check_word_size() -> None:
    """Check that JAX makes numbers of 32 bits where a dtype is not given, as the programs of this package take them.

    Raises:
      UserError: it makes 64.
    """
    if jnp.result_type(int) != jnp.int32:
        raise UserError(
            "JAX is set to numbers of 64 bits (jax_enable_x64), and the models here compute with 32",
            "unset JAX_ENABLE_X64, or call this inside `with jax.enable_x64(False):`",
        )
