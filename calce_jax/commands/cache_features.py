"""Store features of every video: `calce cache_features --config=qvhighlights,stage=2 --out=DIR`.

Runs the frozen vision encoder on the key frames of every video of the prepared folder (`--config.data.directory`) and
stores its tokens; `calce train --config.data.features=DIR` then reads these in place of frames. `--of=qformer` stores
the output of the Q-Former instead, a thirteenth of the size, for runs with `--config.model.ln_vision=frozen`.
docs/features.md gives sizes, times and accuracy. Features made with the config of stage 2, which has more frames, serve
both stages. Run the same command again to continue. Failures are listed at the end and in
DIR/failures-of-host-0.jsonl; the exit code is 1 only if every video failed.
"""

from typing import cast

from absl import flags

from calce_jax.commands.flags.config import define_config, parse_config, validate_config
from calce_jax.commands.flags.paths import check_folder
from calce_jax.commands.flags.verify import VerifyFlag
from calce_jax.commands.runner import no_arguments

FLAGS = flags.FlagValues()
CONFIG = define_config(FLAGS)
OUT = flags.DEFINE_string("out", None, "output folder", flag_values=FLAGS)
STORAGE_DTYPE = flags.DEFINE_enum(
    "store",
    "bfloat16",
    ["float32", "bfloat16", "int8"],
    "dtype on disk; int8 takes half the space of bfloat16",
    flag_values=FLAGS,
)
SOURCE = flags.DEFINE_enum(
    "of",
    "vit",
    ["vit", "qformer"],
    "what to store: tokens of the vision encoder, or the output of the Q-Former (needs ln_vision=frozen)",
    flag_values=FLAGS,
)
SPLITS = flags.DEFINE_list(
    "splits", [], "splits whose videos are encoded, such as train,val; all unless given", flag_values=FLAGS
)
HOST = flags.DEFINE_integer("host", 0, "index of this host, from 0", lower_bound=0, flag_values=FLAGS)
HOSTS = flags.DEFINE_integer(
    "hosts", 1, "number of hosts that share the videos and the output folder", lower_bound=1, flag_values=FLAGS
)
VERIFY_FLAG = VerifyFlag(FLAGS)
flags.mark_flags_as_required(["config", "out"], flag_values=FLAGS)
parse = parse_config


def main(argv: list[str]) -> None:
    """Extract the features; print the numbers of videos and frames, the quantization error and the failures."""
    no_arguments(argv, "set fields of the config with --config.FIELD=VALUE")
    VERIFY_FLAG.apply()
    check_folder("--out=", str(OUT.value))

    from calce_jax.inference.extract_features import VideoDataset, extract_features
    from calce_jax.inference.trained_run import load_base_model
    from calce_jax.models.feature_codec import FeatureSource, StorageDtype
    from calce_jax.storage.failures import failure_table

    config = validate_config(CONFIG)
    videos = VideoDataset(config.data.directory, SPLITS.value or ())
    result = extract_features(
        load_base_model(config),
        videos,
        str(OUT.value),
        storage_dtype=cast(StorageDtype, STORAGE_DTYPE.value),
        source=cast(FeatureSource, SOURCE.value),
        host=int(HOST.value or 0),
        num_hosts=int(HOSTS.value or 1),
    )
    if result.failures:
        print(failure_table(result.failures))
    print(
        f"{result.num_extracted} videos encoded ({result.num_frames} frames of {result.bytes_per_frame:,} bytes), "
        f"{result.num_existing} existed already, {len(result.failures)} failed"
    )
    tensor, next_layer = (
        ("the encoder's tokens", "ln_vision") if SOURCE.value == "vit" else ("the Q-Former's output", "t5_proj")
    )
    print(
        f"relative L2 error of {STORAGE_DTYPE.value}: {100 * result.error:.3g} % of {tensor}, "
        f"{100 * result.projected_error:.3g} % after {next_layer}"
    )
