"""Ask every query of a split: `launch/infer.py --workdir=DIR --split=train|val|test --out=FILE.jsonl`.

The same command goes on where an interrupted one stopped, unless the checkpoint, the split, the prepared tables or a flag
that changes answers differ: then it starts anew, and logs in what. Several hosts can share the work, see `launch.hosts`.
"""

from typing import Literal, cast

from absl import app, flags, logging

from calce_jax.answering import answer_split
from calce_jax.checkpoints import CheckpointError
from calce_jax.hosts import is_first
from calce_jax.trained import open_trained
from launch.hosts import join_from_flags

WORKDIR = flags.DEFINE_string("workdir", None, "of the trained run")
SPLIT = flags.DEFINE_enum("split", None, ["train", "val", "test"], "whose queries are asked")
OUT = flags.DEFINE_string("out", None, "the JSONL file of predictions")
CHECKPOINT = flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "of the run")
DATA = flags.DEFINE_string("data", None, "prepared folder, in place of the one in the run's config")
FEATURES = flags.DEFINE_string(
    "features", None, "folder of launch/cache_features.py, or empty for frames; in place of the one in the run's config"
)
MESH = flags.DEFINE_string("mesh", None, "in place of the one in the run's config")
CAPTIONS = flags.DEFINE_bool(
    "captions", None, "--nocaptions withholds what is said; as in the run's config unless given"
)
flags.mark_flags_as_required(["workdir", "split", "out"])


def main(argv: list[str]) -> None:
    """Open the run, ask, say where the answers are."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument: {argv[1]}")
    try:
        join_from_flags()
        trained = open_trained(
            str(WORKDIR.value),
            which=cast(Literal["best", "latest"], CHECKPOINT.value),
            directory=DATA.value,
            mesh=MESH.value,
            use_captions=CAPTIONS.value,
            features=FEATURES.value,
        )
        predictions = answer_split(trained, str(SPLIT.value), str(OUT.value))
    except (CheckpointError, OSError, ValueError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
    if not is_first():
        return
    malformed = sum(prediction.malformed for prediction in predictions)
    print(f"{len(predictions)} queries answered, {malformed} answers malformed; wrote {OUT.value}")


if __name__ == "__main__":
    # Orbax tells of every step it takes; --verbosity=0 shows that.
    logging.set_verbosity(logging.WARNING)
    app.run(main)
