"""The flag `--profile` of `train` and `infer`."""

from absl import flags


def define_profile(flag_values: flags.FlagValues) -> "flags.FlagHolder[int]":
    """Define it; its value is a number of steps, 0 for none."""
    return flags.DEFINE_integer(
        "profile",
        0,
        "number of steps to trace, after the first three, to WORKDIR/profile; XProf and TensorBoard open it",
        lower_bound=0,
        flag_values=flag_values,
    )
