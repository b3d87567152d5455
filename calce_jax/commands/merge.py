"""Put stage 1's windows into stage 2's data: `calce merge --predictions=FILE --annotations=FILE --out=FILE.jsonl`.

Names every query for which stage 1 has no window; stage 2 looks at the whole video there.
"""

from absl import flags

from calce_jax.commands.runner import no_arguments

FLAGS = flags.FlagValues()
PREDICTIONS = flags.DEFINE_string(
    "predictions", None, "stage 1's predictions, as `calce infer` writes them", flag_values=FLAGS
)
ANNOTATIONS = flags.DEFINE_string(
    "annotations", None, "the queries of the same split, in either format", flag_values=FLAGS
)
DURATIONS = flags.DEFINE_string(
    "durations", None, "the CSV with id and length that Charades comes with, for its lines", flag_values=FLAGS
)
OUT = flags.DEFINE_string(
    "out", None, "where the annotations with stage1_windows go, one JSON line a query", flag_values=FLAGS
)
flags.mark_flags_as_required(["predictions", "annotations", "out"], flag_values=FLAGS)


def main(argv: list[str]) -> None:
    """Merge, write, name what is missing."""
    no_arguments(argv)

    from calce_jax.moments.annotations import read_annotations, write_annotations
    from calce_jax.moments.merge import merge_stage1
    from calce_jax.moments.predictions import read_predictions

    annotations = read_annotations(str(ANNOTATIONS.value), durations=DURATIONS.value)
    merged = merge_stage1(annotations, read_predictions(str(PREDICTIONS.value)))
    write_annotations(str(OUT.value), merged.annotations)
    for qid in merged.missing_stage1:
        print(f"no result for {qid}: stage 2 will look at the whole video")
    for qid in merged.unknown_predictions:
        print(f"result for {qid}, which is not annotated: left out")
    queries = len(merged.annotations)
    print(f"{OUT.value}: {queries} queries, {queries - len(merged.missing_stage1)} with windows of stage 1")
