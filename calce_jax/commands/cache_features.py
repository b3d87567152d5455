"""See every video once: `launch/cache_features.py --config=configs/calce.py:qvh,stage=2 --out=DIR`.

The vision tower is frozen, so what it gives of a frame can be kept; or a thirteenth of that, what the Q-Former says of
it (`--of=qformer`), for runs with `--config.model.ln_vision=frozen`. Runs it over every video of the prepared folder
that the config names (`--config.data.directory`), and writes what `launch/train.py --config.data.features=DIR` reads in
place of frames; docs/features.md says how much that is, what it saves and what it costs. One folder serves both stages
if it is made with the config of stage 2, which has the most frames. The same command goes on where it stopped. What
cannot be seen is listed at the end and in DIR/failures-of-host-0.jsonl; the exit code is 1 only if nothing worked.
"""

from typing import cast

from absl import app, flags, logging
from ml_collections import config_flags

from calce_jax.checkpoints.manager import CheckpointError
from calce_jax.commands.flags.config import parse
from calce_jax.config import validate
from calce_jax.inference.extract_features import Footage, keep_features
from calce_jax.inference.trained_run import open_base
from calce_jax.models.feature_codec import Of, Store
from calce_jax.storage.failures import failure_table

CONFIG = config_flags.DEFINE_config_file("config", None, "configs/calce.py:DATASET,stage=1|2", lock_config=True)
OUT = flags.DEFINE_string("out", None, "folder of the features")
STORE = flags.DEFINE_enum(
    "store", "bfloat16", ["float32", "bfloat16", "int8"], "in which numbers; int8 takes half the room of bfloat16"
)
OF = flags.DEFINE_enum(
    "of",
    "vit",
    ["vit", "qformer"],
    "the vision tower's tokens, or what the Q-Former says of them if ln_vision is frozen",
)
SPLITS = flags.DEFINE_list("splits", [], "whose videos: train,val for instance; of all splits unless given")
HOST = flags.DEFINE_integer("host", 0, "which of several machines this is, from 0", lower_bound=0)
HOSTS = flags.DEFINE_integer("hosts", 1, "how many machines share the videos, and DIR", lower_bound=1)
flags.mark_flags_as_required(["config", "out"])


def main(argv: list[str]) -> None:
    """See the videos, and say what it took and what was lost."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument: {argv[1]}; fields are set with --config.FIELD=VALUE")
    try:
        config = validate(CONFIG.value)
        footage = Footage(config.data.directory, SPLITS.value or ())
        kept = keep_features(
            open_base(config),
            footage,
            str(OUT.value),
            store=cast(Store, STORE.value),
            of=cast(Of, OF.value),
            host=int(HOST.value or 0),
            hosts=int(HOSTS.value or 1),
        )
    except (CheckpointError, OSError, ValueError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
    if kept.failures:
        print(failure_table(kept.failures))
    print(
        f"{kept.seen} videos seen now ({kept.frames} frames of {kept.bytes_a_frame:,} bytes), {kept.there} were there, "
        f"{len(kept.failures)} failed"
    )
    told, read = ("the tower gives", "ln_vision") if OF.value == "vit" else ("the Q-Former says", "t5_proj")
    print(
        f"{STORE.value} is {100 * kept.error:.3g} % off what {told}, {100 * kept.read_error:.3g} % after {read} "
        "(relative L2)"
    )


if __name__ == "__main__":
    # TFDS tells of every file it reads; --verbosity=0 shows that.
    logging.set_verbosity(logging.WARNING)
    app.run(main, flags_parser=parse)
