"""Measure from which score on a query happens in a video: `calce calibrate --checkpoint=runs/demo`.

Asks the models about queries of the evaluation split, in their own videos and in others, and writes calibration.json
beside the workdirs: a threshold that 95 % of the queries reach in their own video, and a curve from scores to
probabilities. `calce search` then says "probably not in this video" of a query whose best moment has a lower score, and
how probably a moment is right. The file is written at the end: a run that was interrupted starts again, but reads the
videos that it has encoded from the cache.
"""

from pathlib import Path

from absl import flags

from calce_jax.commands.flags.paths import check_output_file
from calce_jax.commands.flags.verify import VerifyFlag
from calce_jax.commands.runner import no_arguments
from calce_jax.errors import UsageError
from calce_jax.search.paths import find_stages

FLAGS = flags.FlagValues()
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "folder with the workdirs stage1 and stage2; the tiny model unless given", flag_values=FLAGS
)
DATA = flags.DEFINE_string(
    "data", None, "what `calce prepare` wrote; that of the run of stage 2 unless given", flag_values=FLAGS
)
OUT = flags.DEFINE_string("out", None, "the file; CHECKPOINT/calibration.json unless given", flag_values=FLAGS)
QUERIES = flags.DEFINE_integer("queries", 400, "maximum number of queries, drawn", lower_bound=1, flag_values=FLAGS)
SEED = flags.DEFINE_integer("seed", 42, "of the draws", lower_bound=0, flag_values=FLAGS)
VERIFY_FLAG = VerifyFlag(FLAGS)


def main(argv: list[str]) -> None:
    """Measure, write the file, print the threshold and what it does."""
    no_arguments(argv)
    VERIFY_FLAG.apply()
    if CHECKPOINT.value is None and (DATA.value is None or OUT.value is None):
        raise UsageError("calibrating the tiny model needs --data and --out; or give --checkpoint")
    if CHECKPOINT.value is not None:
        find_stages(CHECKPOINT.value)
    if OUT.value is not None:
        check_output_file("--out=", OUT.value, {})

    from calce_jax.input_pipeline.dataset import open_dataset
    from calce_jax.search.calibration import calibration_path, write_calibration
    from calce_jax.search.fit_calibration import fit_calibration
    from calce_jax.search.load_searcher import open_stages
    from calce_jax.search.measure_scores import measure_scores
    from calce_jax.search.searcher import Searcher
    from calce_jax.storage.disk_cache import DiskCache, default_cache_dir

    # Without the calibration that is there, which may be damaged.
    searcher = Searcher(open_stages(CHECKPOINT.value), DiskCache(default_cache_dir()))
    data = searcher.predictors["stage 2"].model.config.data
    dataset = open_dataset(DATA.value or data.directory, data.eval_split)
    measured = measure_scores(searcher, dataset, max_queries=int(QUERIES.value or 1), seed=int(SEED.value or 0))
    calibration = fit_calibration(measured.present, measured.absent, measured.is_right)
    out = Path(OUT.value) if OUT.value is not None else calibration_path(CHECKPOINT.value)
    write_calibration(out, calibration)
    kept, wrongly = 100 * calibration.kept, 100 * (1 - calibration.rejected)
    print(
        f"a best score of {calibration.threshold:.3f} or more: {kept:.1f} % of the queries about their own video, "
        f"{wrongly:.1f} % of those about another (AUROC {calibration.auroc:.3f}); wrote {out}"
    )
