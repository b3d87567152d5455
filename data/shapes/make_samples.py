"""Write the sample videos of the package: `python -m data.shapes.make_samples`."""

import argparse
import shutil
import tempfile
from pathlib import Path

from data.shapes.write import write_shapes

SEED = 31  # no model was trained on its scenes
COUNT = 2
SAMPLES = Path(__file__).parents[2] / "calce_jax" / "assets" / "tiny" / "samples"


def make_samples(out: Path) -> None:
    """Write videos, their captions and annotations.jsonl to a folder."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        write_shapes(folder, {"test": COUNT}, seed=SEED)
        for path in [*Path(folder).glob("videos/*.mp4"), *Path(folder).glob("srts/*.srt")]:
            shutil.copy(path, out / path.name)
        shutil.copy(Path(folder) / "test.jsonl", out / "annotations.jsonl")


def main() -> None:
    """Parse the command line and write the samples."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=SAMPLES, help="output folder")
    make_samples(parser.parse_args().out)


if __name__ == "__main__":
    main()
