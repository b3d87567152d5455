"""The setting of --verify: whether what is read is compared with the checksums that were stored with it.

It belongs to the process, as JAX's settings do: files are opened deep inside the library, by every command.
"""

_enabled = True


def set_verification(enabled: bool) -> None:
    """Compare stored checksums from now on, or leave it out."""
    global _enabled  # noqa: PLW0603  (a setting of the process)
    _enabled = enabled


def verification_enabled() -> bool:
    """Return whether stored checksums are compared."""
    return _enabled
