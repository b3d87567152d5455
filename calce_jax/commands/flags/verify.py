"""The flag of commands that open weights: `--verify=on|off`."""

from absl import flags


class VerifyFlag:
    """--verify of a command."""

    def __init__(self, flag_values: flags.FlagValues) -> None:
        self._verify = flags.DEFINE_enum(
            "verify",
            "on",
            ["on", "off"],
            "compare weights and checkpoints with their checksums when they are opened; off also opens damaged ones",
            flag_values=flag_values,
        )

    def apply(self) -> None:
        """Set it for this process."""
        from calce_jax.storage.verification import set_verification

        set_verification(self._verify.value == "on")
