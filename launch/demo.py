"""The whole road at the tiny size: `launch/demo.py --out=runs/demo`.

Makes videos, trains both stages, scores them on held-out videos, writes OUT/metrics.json and OUT/report.html. The same
command goes on where it was stopped.
"""

import os
import sys
from pathlib import Path

# Before jax is imported: a simulated device for each core, in a power of two, so that a batch is shared by the cores.
# Accelerators do not mind.
CORES = min(os.cpu_count() or 1, 8)
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count={1 << (CORES.bit_length() - 1)}")

# The shapes world lies in this checkout and is no part of the installed package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import flags

from calce_jax.commands.runner import no_arguments, run_main
from data.shapes.demo_pipeline import VIDEOS_PER_SPLIT, format_results, run_demo

OUT = flags.DEFINE_string("out", "runs/demo", "folder of the run")
TRAIN, VAL, TEST = (
    flags.DEFINE_integer(f"{split}_videos", number, f"videos of the {split} split", lower_bound=2)
    for split, number in VIDEOS_PER_SPLIT.items()
)
SEED = flags.DEFINE_integer("seed", 0, "of the videos", lower_bound=0)


def main(argv: list[str]) -> None:
    """Run, print the table."""
    no_arguments(argv)
    videos = {"train": TRAIN.value, "val": VAL.value, "test": TEST.value}
    results = run_demo(Path(str(OUT.value)), videos, SEED.value)
    print(format_results(results))
    print(f"{results['seconds']:.0f} s; open {OUT.value}/report.html, or `tensorboard --logdir={OUT.value}`")


if __name__ == "__main__":
    run_main(main, sys.argv, flags.FLAGS)
