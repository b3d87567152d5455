"""Score predictions: `launch/evaluate.py --predictions=FILE --annotations=FILE --out=FILE.json`.

Prints a table, and names annotated queries without a prediction and predictions for queries that are not annotated.
"""

import json
from typing import cast

from absl import app, flags

from calce_jax.moments.metrics import table
from calce_jax.moments.metrics.evaluate import evaluate_files
from calce_jax.moments.predictions import Split, write_submission
from calce_jax.moments.windows import RankBy
from calce_jax.storage.atomic_files import write_output

PREDICTIONS = flags.DEFINE_string("predictions", None, "ours or the official JSONL, or JSON with stage1_result")
ANNOTATIONS = flags.DEFINE_string("annotations", None, "the queries with their true windows, in either format")
OUT = flags.DEFINE_string("out", None, 'where {"reference": {...}, "official": {...}} goes, in percent')
RANK = flags.DEFINE_enum("rank", "given", ["given", "longest", "score"], "which window is first; see docs/ranking.md")
SUBMISSION = flags.DEFINE_string("submission", None, "also write this zip for the QVHighlights server")
SPLIT = flags.DEFINE_enum("split", "val", ["val", "test"], "which of the submission's splits the predictions are")
flags.mark_flags_as_required(["predictions", "annotations", "out"])


def main(argv: list[str]) -> None:
    """Score, print, write."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument: {argv[1]}")
    try:
        evaluation = evaluate_files(str(PREDICTIONS.value), str(ANNOTATIONS.value), cast(RankBy, RANK.value))
        if evaluation.scores:
            write_output(str(OUT.value), json.dumps(evaluation.scores, indent=2, allow_nan=False) + "\n")
            print(table(evaluation.scores))
        else:
            print(f"{ANNOTATIONS.value} has no true windows: nothing is scored, and {OUT.value} is not written")
        for note in evaluation.notes():
            print(note)
        if SUBMISSION.value:
            write_submission(SUBMISSION.value, evaluation.predictions, cast(Split, SPLIT.value))
            print(f"{SUBMISSION.value} holds the {SPLIT.value} split")
    except (OSError, ValueError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None


if __name__ == "__main__":
    app.run(main)
