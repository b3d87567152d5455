"""Score predictions: `calce evaluate --predictions=FILE --annotations=FILE --out=FILE.json`.

Prints a table, and names annotated queries without a prediction and predictions for queries that are not annotated.
"""

import json
from typing import cast

from absl import flags

from calce_jax.commands.runner import no_arguments

FLAGS = flags.FlagValues()
PREDICTIONS = flags.DEFINE_string(
    "predictions", None, "ours or the official JSONL, or JSON with stage1_result", flag_values=FLAGS
)
ANNOTATIONS = flags.DEFINE_string(
    "annotations", None, "the queries with their true windows, in either format", flag_values=FLAGS
)
OUT = flags.DEFINE_string(
    "out", None, 'where {"reference": {...}, "official": {...}} goes, in percent', flag_values=FLAGS
)
RANK = flags.DEFINE_enum(
    "rank", "given", ["given", "longest", "score"], "which window is first; see docs/ranking.md", flag_values=FLAGS
)
SUBMISSION = flags.DEFINE_string(
    "submission", None, "also write this zip for the QVHighlights server", flag_values=FLAGS
)
SPLIT = flags.DEFINE_enum(
    "split", "val", ["val", "test"], "which of the submission's splits the predictions are", flag_values=FLAGS
)
flags.mark_flags_as_required(["predictions", "annotations", "out"], flag_values=FLAGS)


def main(argv: list[str]) -> None:
    """Score, print, write."""
    no_arguments(argv)

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
        print(f"{SUBMISSION.value} holds the {SPLIT.value} split")
