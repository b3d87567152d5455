"""The flags of commands that cache results on disk: `--cache=DIR --cache_gb=10`."""

from typing import TYPE_CHECKING

from absl import flags

if TYPE_CHECKING:
    from calce_jax.storage.disk_cache import DiskCache


class CacheFlags:
    """--cache and --cache_gb of a command."""

    def __init__(self, flag_values: flags.FlagValues) -> None:
        self._folder = flags.DEFINE_string(
            "cache",
            None,
            "folder of key frames and features for later searches; safe to delete; ~/.cache/calce unless given",
            flag_values=flag_values,
        )
        self._gigabytes = flags.DEFINE_float(
            "cache_gb", 10.0, "maximum size of that folder, GB", lower_bound=0.0, flag_values=flag_values
        )

    def open(self) -> "DiskCache":
        """Return the cache; its folder is created at the first write."""
        from calce_jax.storage.disk_cache import DiskCache, default_cache_dir

        return DiskCache(self._folder.value or default_cache_dir(), int((self._gigabytes.value or 0.0) * 1e9))
