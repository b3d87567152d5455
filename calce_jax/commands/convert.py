"""Convert weights: `calce convert --source=hf:DIR,bert:DIR --target=base:weights/full.safetensors`.

docs/conversion.md has the commands for every published format.
"""

from absl import flags

from calce_jax.checkpoints.convert.formats import (
    DTYPES,
    EXPORT_FORMATS,
    FILE_FORMATS,
    SOURCE_FORMATS,
    parse_sources,
    parse_target,
)
from calce_jax.commands.flags.paths import check_folder, check_output_file
from calce_jax.commands.flags.verify import VerifyFlag
from calce_jax.commands.runner import no_arguments, warn_deprecated
from calce_jax.config import ConfigError
from calce_jax.errors import UsageError
from calce_jax.presets.runs import current_name, get_preset
from calce_jax.presets.sizes import SIZES

FLAGS = flags.FlagValues()
SOURCE = flags.DEFINE_string(
    "source",
    None,
    "FORMAT:PATH[,FORMAT:PATH...]; a weight of a later source replaces that of an earlier one. "
    + "; ".join(f"{name}: {about}" for name, about in SOURCE_FORMATS.items()),
    flag_values=FLAGS,
)
TARGET = flags.DEFINE_string(
    "target",
    None,
    "FORMAT:PATH. " + "; ".join(f"{name}: {about}" for name, about in EXPORT_FORMATS.items()),
    flag_values=FLAGS,
)
SIZE = flags.DEFINE_enum(
    "size",
    "full",
    list(SIZES),
    "size of the model; ignored for the source orbax:DIR, which records its own",
    flag_values=FLAGS,
)
RUN = flags.DEFINE_string(
    "run",
    "qvhighlights",
    "preset of the run that the model is for, such as charades_sta,stage=2",
    flag_values=FLAGS,
)
DTYPE = flags.DEFINE_enum(
    "dtype", "as stored", list(DTYPES), "dtype of the frozen weights in the target", flag_values=FLAGS
)
VERIFY_FLAG = VerifyFlag(FLAGS)
flags.mark_flags_as_required(["source", "target"], flag_values=FLAGS)


def main(argv: list[str]) -> None:
    """Convert the weights, and print a summary of the written files."""
    no_arguments(argv)
    VERIFY_FLAG.apply()
    export_format, _ = parse_target(str(TARGET.value))
    path = str(TARGET.value).partition(":")[2]
    check_output = check_output_file if export_format in FILE_FORMATS else check_folder
    for source_format, source in parse_sources(str(SOURCE.value)):
        check_output(f"--target={export_format}:", path, {f"--source={source_format}:{source}": source})
    try:
        preset = get_preset(f"{RUN.value},size={SIZE.value}", "--run")
    except ConfigError as error:
        raise UsageError(error.reason, error.remedy) from None
    if (name := current_name(str(RUN.value))) != RUN.value:
        warn_deprecated(f"--run={RUN.value}", f"--run={name}")

    from calce_jax.checkpoints.convert.convert import convert

    print(convert(str(SOURCE.value), str(TARGET.value), preset, dtype=str(DTYPE.value)))
