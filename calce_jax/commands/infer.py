"""Ask every query of a split: `launch/infer.py --workdir=DIR --split=train|val|test --out=FILE.jsonl`.

The same command goes on where an interrupted one stopped. Several hosts can share the work, see `calce_jax.commands.flags.hosts`.
"""

from typing import Literal, cast

from absl import app, flags, logging

from calce_jax.checkpoints.manager import CheckpointError
from calce_jax.commands.flags.hosts import join_from_flags
from calce_jax.distributed.multihost import is_first
from calce_jax.inference.predict_split import answer_split
from calce_jax.inference.trained_run import open_trained

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
