"""Write the videos of the benchmark, their tables, and their features, once for all rows."""

from collections.abc import Mapping
from pathlib import Path

from calce_jax.input_pipeline.neighbourhood import RATE
from data.shapes.bench.write import SIZES, SplitSize, write_bench
from data.shapes.demo_pipeline import prepare_shapes, store_features

REHEARSAL_SIZES = {
    split: SplitSize(
        {style: max(count // 20, 2) for style, count in size.videos.items()},
        {kind: max(count // 20, 1) for kind, count in size.queries.items()},
    )
    for split, size in SIZES.items()
}


def prepare_world(out: Path, sizes: Mapping[str, SplitSize]) -> None:
    """Write what is missing, by the steps of the demo.

    Args:
      out: the folder of the benchmark: gets `shapes`, `prepared` and `features`.
      sizes: of the splits.

    Raises:
      UserError: a video cannot be prepared, or the folder holds another dataset.
    """
    annotations = write_bench(out / "shapes", sizes)
    prepare_shapes(out, annotations, RATE)  # twice the frames, for the row that looks again
    store_features(out, RATE)
