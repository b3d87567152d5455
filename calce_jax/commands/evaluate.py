"""Score predictions: `calce evaluate --predictions=FILE --annotations=FILE --out=FILE.json`.

Prints the metrics as a table, annotated queries without a prediction, and predictions for unknown queries. Annotated
queries with an empty list of windows do not happen in their video: they count in a table of their own.
"""

import json
from typing import cast

import click

from calce_jax.commands.command import FILE, Command, switch
from calce_jax.commands.flags.paths import check_output_file


@click.command("evaluate", cls=Command, help=__doc__)
@click.option(
    "--predictions",
    type=FILE,
    required=True,
    help="JSONL of `calce infer` or of QVHighlights, or JSON with stage1_result",
)
@click.option(
    "--annotations", type=FILE, required=True, help="the queries with their true windows, in any supported format"
)
@click.option(
    "--out", type=FILE, required=True, help='output file: {"reference": {...}, "official": {...}}, in percent'
)
@click.option(
    "--rank",
    type=click.Choice(["given", "longest", "score"]),
    default="given",
    help="order of the windows of a prediction; see docs/ranking.md",
)
@switch("only_predicted", help="leave queries without a prediction out, instead of counting them as misses")
@click.option("--submission", type=FILE, help="also write this zip file, a QVHighlights submission")
@click.option(
    "--split",
    type=click.Choice(["val", "test"]),
    default="val",
    help="split of the predictions in the submission",
)
def command(
    *,
    predictions: str,
    annotations: str,
    out: str,
    rank: str,
    only_predicted: bool,
    submission: str | None,
    split: str,
) -> None:
    """Compute the metrics, print and write them."""
    inputs = {"--predictions": predictions, "--annotations": annotations}
    check_output_file("--out=", out, inputs)
    if submission:
        check_output_file("--submission=", submission, inputs | {"--out": out})

    from calce_jax.moments.metrics import PROTOCOLS, format_table
    from calce_jax.moments.metrics.evaluate import evaluate_files
    from calce_jax.moments.metrics.highlights import format_highlights
    from calce_jax.moments.metrics.multi_moment import format_multi_moment
    from calce_jax.moments.metrics.presence import format_presence
    from calce_jax.moments.predictions import SubmissionSplit, write_submission
    from calce_jax.moments.windows import WindowOrder
    from calce_jax.storage.atomic_files import write_atomic

    evaluation = evaluate_files(predictions, annotations, cast(WindowOrder, rank), only_predicted=only_predicted)
    scores = evaluation.scores
    # Both files before a line is printed, whose reader may have ended.
    if scores:
        write_atomic(out, json.dumps(scores, indent=2, allow_nan=False) + "\n")
    if submission:
        write_submission(submission, evaluation.predictions, cast(SubmissionSplit, split))
    if scores:
        if protocols := {name: result for name, result in scores.items() if name in PROTOCOLS}:
            print(format_table(protocols))
        if highlights := scores.get("official", {}).get("highlights"):
            print(format_highlights(highlights))
        if "multi_moment" in scores:
            print(format_multi_moment(scores["multi_moment"]))
        if "presence" in scores:
            print(format_presence(scores["presence"]))
    else:
        print(f"{annotations} has no true windows: nothing is scored, and {out} is not written")
    for note in evaluation.warnings():
        print(note)
    if submission:
        print(f"wrote {submission} with {len(evaluation.predictions)} predictions as the {split} split")
