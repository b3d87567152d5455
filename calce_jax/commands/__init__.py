"""The `calce` commands, one module each; `cli` finds them by name."""
