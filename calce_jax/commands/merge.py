"""Add stage 1's windows to annotations: `calce merge --predictions=FILE --annotations=FILE --out=FILE.jsonl`.

Prints every query for which stage 1 predicted no window; stage 2 uses the whole video for it.
"""

import json
from pathlib import Path

from absl import flags

from calce_jax.commands.flags.paths import check_output_file
from calce_jax.commands.runner import no_arguments

FLAGS = flags.FlagValues()
PREDICTIONS = flags.DEFINE_string("predictions", None, "predictions of stage 1, from `calce infer`", flag_values=FLAGS)
ANNOTATIONS = flags.DEFINE_string(
    "annotations", None, "annotations of the same split, in any supported format", flag_values=FLAGS
)
DURATIONS = flags.DEFINE_string(
    "durations",
    None,
    "CSV of Charades with the columns id and length; needed for its annotations in text",
    flag_values=FLAGS,
)
OUT = flags.DEFINE_string("out", None, "output file: the annotations with stage1_windows, JSONL", flag_values=FLAGS)
flags.mark_flags_as_required(["predictions", "annotations", "out"], flag_values=FLAGS)


def main(argv: list[str]) -> None:
    """Merge and write the annotations; print queries without a prediction and predictions without a query."""
    no_arguments(argv)
    inputs = {"--predictions": PREDICTIONS.value, "--annotations": ANNOTATIONS.value, "--durations": DURATIONS.value}
    check_output_file("--out=", str(OUT.value), inputs)

    from calce_jax.moments.annotations import read_annotations, write_annotations
    from calce_jax.moments.json_rows import MAX_NAMED_QIDS, name_queries
    from calce_jax.moments.merge import merge_stage1
    from calce_jax.moments.predictions import read_predictions
    from calce_jax.storage.atomic_files import write_atomic

    annotations = read_annotations(str(ANNOTATIONS.value), durations=DURATIONS.value)
    merged = merge_stage1(annotations, read_predictions(str(PREDICTIONS.value)))
    write_annotations(str(OUT.value), merged.annotations)
    unmatched = {
        "queries have no window of stage 1; stage 2 will use the whole video": merged.missing_stage1,
        "predictions are for queries that are not annotated, and are left out": merged.unknown_predictions,
    }
    rest = Path(str(OUT.value)).with_suffix(".unmatched.json")
    is_listed = any(len(qids) > MAX_NAMED_QIDS for qids in unmatched.values())
    if is_listed:
        write_atomic(rest, json.dumps(unmatched, indent=2) + "\n")
    else:
        rest.unlink(missing_ok=True)
    for note, qids in unmatched.items():
        if qids:
            print(name_queries(note, qids))
    if is_listed:
        print(f"{rest} lists all of them")
    queries = len(merged.annotations)
    print(f"{OUT.value}: {queries} queries, {queries - len(merged.missing_stage1)} with windows of stage 1")
