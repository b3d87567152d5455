"""The `calce` commands, one module each, listed in `calce_jax.commands.cli.COMMANDS`."""
