"""Write the videos of the benchmark, their tables, and their features, once for all rows."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from benchmarks.shapes.rows import ROWS, row_config
from calce_jax.datasets.prepare import prepare_dataset
from calce_jax.datasets.prepared_video import PrepareSettings
from calce_jax.errors import UserError
from calce_jax.inference.extract_features import VideoDataset, extract_features
from calce_jax.inference.trained_run import load_base_model
from data.shapes.bench.write import SIZES, SplitSize, write_bench

REHEARSAL_SIZES = {
    split: SplitSize(
        {style: max(count // 20, 2) for style, count in size.videos.items()},
        {kind: max(count // 20, 1) for kind, count in size.queries.items()},
    )
    for split, size in SIZES.items()
}


def prepare_world(out: Path, sizes: Mapping[str, SplitSize]) -> None:
    """Write what is missing.

    Args:
      out: the folder of the benchmark: gets `shapes`, `prepared` and `features`.
      sizes: of the splits.

    Raises:
      UserError: a video cannot be prepared, or the folder holds another dataset.
    """
    annotations = write_bench(out / "shapes", sizes)
    config = row_config(replace(ROWS[0], preset="shapes,stage=2"), out, 0, {"data.directory": str(out / "prepared")})
    result = prepare_dataset(
        "shapes",
        dict(annotations),
        videos=str(out / "shapes" / "videos"),
        srts=str(out / "shapes" / "srts"),
        out=str(out / "prepared"),
        settings=PrepareSettings(config.data.frames, image_size=56),
    )
    if result.failures:
        raise UserError(f"{len(result.failures)} videos could not be prepared", f"see {out}/prepared/failures.jsonl")
    model = load_base_model(replace(config, data=replace(config.data, features="")))
    extract_features(model, VideoDataset(str(out / "prepared")), out / "features", storage_dtype="float32")
