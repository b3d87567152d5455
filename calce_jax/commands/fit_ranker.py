"""Fit the ranker that chooses the segments of a library: `calce fit_ranker --checkpoint=runs/demo`.

Encodes the videos of the training split that stage 2 was trained on, fits two linear layers to its windows, and writes
ranker.safetensors beside the workdirs. Then `calce index --picture --checkpoint=DIR` and `calce search --library
--checkpoint=DIR` use it. Prints how often the video of a query is among the best of the validation split.
"""

from pathlib import Path

from absl import flags

from calce_jax.commands.flags.paths import check_output_file
from calce_jax.commands.flags.verify import VerifyFlag
from calce_jax.commands.runner import no_arguments
from calce_jax.errors import UsageError
from calce_jax.search.paths import find_stages, ranker_path

FLAGS = flags.FlagValues()
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "folder with the workdirs stage1 and stage2; the tiny model unless given", flag_values=FLAGS
)
DATA = flags.DEFINE_string(
    "data", None, "what `calce prepare` wrote; that of the run of stage 2 unless given", flag_values=FLAGS
)
OUT = flags.DEFINE_string("out", None, "the file; CHECKPOINT/ranker.safetensors unless given", flag_values=FLAGS)
STEPS = flags.DEFINE_integer("steps", 1000, "steps of 64 pairs", lower_bound=1, flag_values=FLAGS)
SEED = flags.DEFINE_integer("seed", 42, "of the first weights and the order of the pairs", flag_values=FLAGS)
VERIFY_FLAG = VerifyFlag(FLAGS)
COUNTS = (1, 10, 100)


def main(argv: list[str]) -> None:
    """Fit the ranker, write it, print its recall."""
    no_arguments(argv)
    VERIFY_FLAG.apply()
    if CHECKPOINT.value is None and (DATA.value is None or OUT.value is None):
        raise UsageError("the ranker of the tiny model needs --data and --out; or give --checkpoint")
    stages = find_stages(CHECKPOINT.value) if CHECKPOINT.value is not None else []
    if OUT.value is not None:
        check_output_file("--out=", OUT.value, {})

    from calce_jax.checkpoints.params_file import save_params
    from calce_jax.inference.predictor import Predictor
    from calce_jax.inference.trained_run import load_base_model, load_trained_model
    from calce_jax.input_pipeline.dataset import open_dataset
    from calce_jax.presets.tiny import tiny_config
    from calce_jax.search.searcher import TRAINED_DURATION
    from calce_jax.training.fit_ranker import fit_ranker, read_ranker_data, recall_of_own_video

    model = load_trained_model(stages[1], mesh="single") if stages else load_base_model(tiny_config(2))
    data = model.config.data
    folder = DATA.value or data.directory
    predictor = Predictor(model, TRAINED_DURATION[data.dataset])
    training, validation = (
        read_ranker_data(open_dataset(folder, split), predictor) for split in (data.train_split, data.eval_split)
    )
    ranker = fit_ranker(training, seed=int(SEED.value or 0), steps=int(STEPS.value or 1))
    recall = recall_of_own_video(ranker, validation, COUNTS)
    counts = ", ".join(f"{count}: {share:.1f} %" for count, share in recall.items())
    told = (
        f"the video of a query is among so many best of {len(validation.pooled)} of split {data.eval_split}: {counts}"
    )
    out = Path(OUT.value) if OUT.value is not None else ranker_path(CHECKPOINT.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_params(out, ranker, {"recall": told})
    print(f"fitted to {len(training)} queries about {len(training.pooled)} videos; {told}; wrote {out}")
