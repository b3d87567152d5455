"""Score predictions: `calce evaluate --predictions=FILE --annotations=FILE --out=FILE.json`.

Prints the metrics as a table, annotated queries without a prediction, and predictions for unknown queries.
"""

import json
from typing import cast

from absl import flags

from calce_jax.commands.flags.paths import check_output_file
from calce_jax.commands.runner import no_arguments

FLAGS = flags.FlagValues()
PREDICTIONS = flags.DEFINE_string(
    "predictions", None, "JSONL of `calce infer` or of QVHighlights, or JSON with stage1_result", flag_values=FLAGS
)
ANNOTATIONS = flags.DEFINE_string(
    "annotations", None, "the queries with their true windows, in any supported format", flag_values=FLAGS
)
OUT = flags.DEFINE_string(
    "out", None, 'output file: {"reference": {...}, "official": {...}}, in percent', flag_values=FLAGS
)
RANK = flags.DEFINE_enum(
    "rank",
    "given",
    ["given", "longest", "score"],
    "order of the windows of a prediction; see docs/ranking.md",
    flag_values=FLAGS,
)
SUBMISSION = flags.DEFINE_string(
    "submission", None, "also write this zip file for the QVHighlights server", flag_values=FLAGS
)
SPLIT = flags.DEFINE_enum(
    "split", "val", ["val", "test"], "split of the predictions in the submission", flag_values=FLAGS
)
flags.mark_flags_as_required(["predictions", "annotations", "out"], flag_values=FLAGS)


def main(argv: list[str]) -> None:
    """Compute the metrics, print and write them."""
    no_arguments(argv)
    inputs = {"--predictions": PREDICTIONS.value, "--annotations": ANNOTATIONS.value}
    check_output_file("--out=", str(OUT.value), inputs)
    if SUBMISSION.value:
        check_output_file("--submission=", SUBMISSION.value, inputs | {"--out": OUT.value})

    from calce_jax.moments.metrics import format_table
    from calce_jax.moments.metrics.evaluate import evaluate_files
    from calce_jax.moments.predictions import SubmissionSplit, write_submission
    from calce_jax.moments.windows import WindowOrder
    from calce_jax.storage.atomic_files import write_atomic

    evaluation = evaluate_files(str(PREDICTIONS.value), str(ANNOTATIONS.value), cast(WindowOrder, RANK.value))
    if evaluation.scores:
        write_atomic(str(OUT.value), json.dumps(evaluation.scores, indent=2, allow_nan=False) + "\n")
        print(format_table(evaluation.scores))
    else:
        print(f"{ANNOTATIONS.value} has no true windows: nothing is scored, and {OUT.value} is not written")
    for note in evaluation.warnings():
        print(note)
    if SUBMISSION.value:
        write_submission(SUBMISSION.value, evaluation.predictions, cast(SubmissionSplit, SPLIT.value))
        print(f"wrote {SUBMISSION.value} with the {SPLIT.value} split")
