"""Run the demo at the tiny size: `launch/demo.py --out=runs/demo`.

Makes videos, trains both stages, scores them on held-out videos, and writes OUT/metrics.json and OUT/report.html. Run
the same command again to continue.
"""

import os
import sys
from pathlib import Path

# Before jax is imported: a power of two of simulated devices, up to one for each core, so that the cores share a batch.
# And programs that are optimised less: on a CPU they compile in two thirds of the time, and run as fast. Both have no
# effect on accelerators.
CORES = min(os.cpu_count() or 1, 8)
DEVICES = 1 << (CORES.bit_length() - 1)
os.environ.setdefault(
    "XLA_FLAGS", f"--xla_force_host_platform_device_count={DEVICES} --xla_backend_optimization_level=1"
)

# Of transformers only tokenizers are used: no advice to install PyTorch. Read when transformers is imported.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

# The shapes world is in this checkout, not in the installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import flags

from calce_jax.commands.flags.command import run_module
from calce_jax.commands.flags.paths import check_folder
from calce_jax.commands.runner import end_abruptly, no_arguments
from calce_jax.distributed.freed_memory import keep_freed_memory
from data.shapes import VIDEOS_PER_SPLIT

FLAGS = flags.FlagValues()
OUT = flags.DEFINE_string("out", "runs/demo", "output folder", flag_values=FLAGS)
TRAIN, VAL, TEST = (
    flags.DEFINE_integer(
        f"{split}_videos", number, f"number of videos of the {split} split", lower_bound=2, flag_values=FLAGS
    )
    for split, number in VIDEOS_PER_SPLIT.items()
)
SEED = flags.DEFINE_integer("seed", 0, "seed of the videos", lower_bound=0, flag_values=FLAGS)


def main(argv: list[str]) -> None:
    """Run the demo and print its scores."""
    no_arguments(argv)
    check_folder("--out=", str(OUT.value))
    keep_freed_memory()

    import jax

    from data.shapes.demo_pipeline import run_demo
    from data.shapes.demo_scores import format_results

    # Training, inference and a second run of the demo share compiled programs.
    jax.config.update("jax_compilation_cache_dir", str((Path(str(OUT.value)) / "compiled").absolute()))
    videos = {"train": TRAIN.value, "val": VAL.value, "test": TEST.value}
    results = run_demo(Path(str(OUT.value)), videos, SEED.value)
    print(format_results(results))
    print(f"{results['seconds']:.0f} s; open {OUT.value}/report.html, or `tensorboard --logdir={OUT.value}`")


if __name__ == "__main__":
    with end_abruptly():
        run_module(sys.modules[__name__], sys.argv[1:], sys.argv[0], "python launch/demo.py --out=runs/demo")
