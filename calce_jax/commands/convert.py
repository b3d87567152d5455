"""Convert weights: `launch/convert.py --source=hf:DIR,bert:DIR --target=base:weights/full.safetensors`.

More of it, command by command, is in docs/conversion.md.
"""

from absl import app, flags, logging

from calce_jax.checkpoints.convert.convert import DTYPES, convert
from calce_jax.checkpoints.convert.sources import kinds_with_help
from calce_jax.checkpoints.convert.targets import TARGETS
from calce_jax.checkpoints.manager import CheckpointError
from calce_jax.presets.sizes import SIZES
from configs.calce import get_config

SOURCE = flags.DEFINE_string(
    "source",
    None,
    "KIND:PATH[,KIND:PATH...], of which later ones take the place of earlier ones. "
    + "; ".join(f"{kind}: {about}" for kind, about in kinds_with_help().items()),
)
TARGET = flags.DEFINE_string(
    "target", None, "KIND:PATH. " + "; ".join(f"{kind}: {target.about}" for kind, target in TARGETS.items())
)
SIZE = flags.DEFINE_enum("size", "full", list(SIZES), "of the model; with orbax:DIR as a source, its own")
RUN = flags.DEFINE_string(
    "run", "qvh", "what the model is for, in the words of configs/calce.py:RUN, such as charades,stage=2"
)
DTYPE = flags.DEFINE_enum("dtype", "as stored", list(DTYPES), "of the frozen weights in what is written")
flags.mark_flags_as_required(["source", "target"])


def main(argv: list[str]) -> None:
    """Convert, and say what was written."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument: {argv[1]}")
    try:
        run = get_config(f"{RUN.value},size={SIZE.value}")
        print(convert(str(SOURCE.value), str(TARGET.value), run, dtype=str(DTYPE.value)))
    except (OSError, ValueError, CheckpointError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None


if __name__ == "__main__":
    # Orbax tells of every step it takes; --verbosity=0 shows that.
    logging.set_verbosity(logging.WARNING)
    app.run(main)
