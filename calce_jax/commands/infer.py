"""Predict the moments of every query of a split: `calce infer --workdir=DIR --split=train|val|test --out=FILE.jsonl`.

Run the same command again to continue an interrupted run. If the checkpoint, the split, the prepared tables or a flag
that affects predictions has changed, it starts over and logs what changed. Several hosts can share the work, see
--coordinator.
"""

from pathlib import Path
from typing import Literal, cast

from absl import flags

from calce_jax.commands.flags.hosts import HostFlags
from calce_jax.commands.flags.paths import check_folder, check_output_file
from calce_jax.commands.flags.profile import define_profile
from calce_jax.commands.flags.verify import VerifyFlag
from calce_jax.commands.runner import no_arguments
from calce_jax.distributed.meshes import MESHES

FLAGS = flags.FlagValues()
WORKDIR = flags.DEFINE_string("workdir", None, "workdir of the trained run", flag_values=FLAGS)
SPLIT = flags.DEFINE_enum("split", None, ["train", "val", "test"], "split of the queries", flag_values=FLAGS)
OUT = flags.DEFINE_string("out", None, "output file, JSONL", flag_values=FLAGS)
CHECKPOINT = flags.DEFINE_enum("checkpoint", "best", ["best", "latest"], "checkpoint of the run", flag_values=FLAGS)
DATA = flags.DEFINE_string("data", None, "prepared folder; that of the run's config unless given", flag_values=FLAGS)
FEATURES = flags.DEFINE_string(
    "features",
    None,
    "folder of `calce cache_features`, or empty to read frames; that of the run's config unless given",
    flag_values=FLAGS,
)
MESH = flags.DEFINE_enum(
    "mesh", None, list(MESHES), "name of a mesh; that of the run's config unless given", flag_values=FLAGS
)
CAPTIONS = flags.DEFINE_bool(
    "captions",
    None,
    "--nocaptions leaves captions out of the prompt; as in the run's config unless given",
    flag_values=FLAGS,
)
BATCH = flags.DEFINE_integer(
    "batch",
    None,
    "queries of a batch; that of the run's config unless given. Lower it where memory is short",
    lower_bound=1,
    flag_values=FLAGS,
)
GROUP = flags.DEFINE_integer(
    "group",
    None,
    "batches that are sorted by prompt length, whose frames stay on the device; that of the run's config unless given",
    lower_bound=1,
    flag_values=FLAGS,
)
LOOK_AGAIN = flags.DEFINE_bool(
    "look_again",
    False,
    "answer once more about the neighbourhood of each best window, at twice the rate of frames, and pool the beams; "
    "needs tables with twice the frames (`calce prepare --frames`), takes up to twice the time",
    flag_values=FLAGS,
)
PROFILE = define_profile(FLAGS)
HOST_FLAGS = HostFlags(FLAGS)
VERIFY_FLAG = VerifyFlag(FLAGS)
flags.mark_flags_as_required(["workdir", "split", "out"], flag_values=FLAGS)


def main(argv: list[str]) -> None:
    """Load the run, predict, and print the number of predictions."""
    no_arguments(argv)
    VERIFY_FLAG.apply()
    check_folder("--workdir=", str(WORKDIR.value))
    from calce_jax.config import read_config

    workdir = Path(str(WORKDIR.value))
    inputs = {
        "the run's config": workdir / "config.json",
        "the run's checkpoints": workdir / "checkpoints",
        "the prepared data": DATA.value or read_config(workdir).data.directory,
        "--features": FEATURES.value,
    }
    check_output_file("--out=", str(OUT.value), inputs)
    with HOST_FLAGS.joined():
        from calce_jax.distributed.multihost import is_primary
        from calce_jax.distributed.profiling import StepProfiler
        from calce_jax.inference.look_again import predict_split_twice
        from calce_jax.inference.predict_split import predict_split
        from calce_jax.inference.trained_run import load_trained_model
        from calce_jax.input_pipeline.buffer_pool import retain_freed_memory

        retain_freed_memory()
        trained = load_trained_model(
            str(WORKDIR.value),
            checkpoint=cast(Literal["best", "latest"], CHECKPOINT.value),
            data_dir=DATA.value,
            mesh=MESH.value,
            use_captions=CAPTIONS.value,
            features=FEATURES.value,
            batch=BATCH.value,
            group=GROUP.value,
        )
        profiler = StepProfiler(workdir / "profile", int(PROFILE.value), "infer")
        predict = predict_split_twice if LOOK_AGAIN.value else predict_split
        predictions = predict(trained, str(SPLIT.value), str(OUT.value), profiler)
        if not is_primary():
            return
        malformed = sum(prediction.malformed for prediction in predictions)
        print(f"{len(predictions)} queries answered, {malformed} answers malformed; wrote {OUT.value}")
