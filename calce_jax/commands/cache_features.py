"""Store features of every video: `calce cache_features --config=qvhighlights,stage=2 --out=DIR`.

The vision encoder is frozen, so its tokens of a frame can be stored; or the Q-Former's output, a thirteenth of that
(`--of=qformer`), for runs with `--config.model.ln_vision=frozen`. Runs the encoder over every video of the prepared
folder that the config names (`--config.data.directory`), and writes what `calce train --config.data.features=DIR` reads
in place of frames; docs/features.md says how much that is, what it saves and what it costs. One folder serves both
stages if it is made with the config of stage 2, which has the most frames. The same command goes on where it stopped.
Failures are listed at the end and in DIR/failures-of-host-0.jsonl; the exit code is 1 only if nothing worked.
"""

from typing import cast

from absl import flags

from calce_jax.commands.flags.config import define_config, parse_config
from calce_jax.commands.runner import no_arguments

FLAGS = flags.FlagValues()
CONFIG = define_config(FLAGS)
OUT = flags.DEFINE_string("out", None, "folder of the features", flag_values=FLAGS)
STORAGE_DTYPE = flags.DEFINE_enum(
    "store",
    "bfloat16",
    ["float32", "bfloat16", "int8"],
    "dtype on disk; int8 takes half the room of bfloat16",
    flag_values=FLAGS,
)
SOURCE = flags.DEFINE_enum(
    "of",
    "vit",
    ["vit", "qformer"],
    "the vision encoder's tokens, or the Q-Former's output if ln_vision is frozen",
    flag_values=FLAGS,
)
SPLITS = flags.DEFINE_list(
    "splits", [], "whose videos: train,val for instance; of all splits unless given", flag_values=FLAGS
)
HOST = flags.DEFINE_integer("host", 0, "which of several machines this is, from 0", lower_bound=0, flag_values=FLAGS)
HOSTS = flags.DEFINE_integer(
    "hosts", 1, "how many machines share the videos, and DIR", lower_bound=1, flag_values=FLAGS
)
flags.mark_flags_as_required(["config", "out"], flag_values=FLAGS)
parse = parse_config


def main(argv: list[str]) -> None:
    """Extract the features, and print what was stored, how exactly, and what failed."""
    no_arguments(argv, "fields are set with --config.FIELD=VALUE")

    from calce_jax.config import validate
    from calce_jax.inference.extract_features import VideoDataset, extract_features
    from calce_jax.inference.trained_run import load_base_model
    from calce_jax.models.feature_codec import FeatureSource, StorageDtype
    from calce_jax.storage.failures import failure_table

    config = validate(CONFIG.value)
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
        f"{result.num_extracted} videos seen now ({result.num_frames} frames of {result.bytes_per_frame:,} bytes), {result.num_existing} were there, "
        f"{len(result.failures)} failed"
    )
    exact, reader = (
        ("the encoder's tokens", "ln_vision") if SOURCE.value == "vit" else ("the Q-Former's output", "t5_proj")
    )
    print(
        f"{STORAGE_DTYPE.value} differs from {exact} by {100 * result.error:.3g} %, after {reader} by "
        f"{100 * result.projected_error:.3g} % (relative L2)"
    )
