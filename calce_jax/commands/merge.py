"""Put stage 1's windows into stage 2's data: `launch/merge.py --predictions=FILE --annotations=FILE --out=FILE.jsonl`.

Names every query for which stage 1 has no window; stage 2 looks at the whole video there.
"""

from absl import app, flags

from calce_jax.moments.annotations import read_annotations, write_annotations
from calce_jax.moments.merge import merge
from calce_jax.moments.predictions import read_predictions

PREDICTIONS = flags.DEFINE_string("predictions", None, "stage 1's predictions, as launch/infer.py writes them")
ANNOTATIONS = flags.DEFINE_string("annotations", None, "the queries of the same split, in either format")
DURATIONS = flags.DEFINE_string("durations", None, "the CSV with id and length that Charades comes with, for its lines")
OUT = flags.DEFINE_string("out", None, "where the annotations with stage1_windows go, one JSON line a query")
flags.mark_flags_as_required(["predictions", "annotations", "out"])


def main(argv: list[str]) -> None:
    """Merge, write, name what is missing."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument: {argv[1]}")
    try:
        annotations = read_annotations(str(ANNOTATIONS.value), durations=DURATIONS.value)
        merged = merge(annotations, read_predictions(str(PREDICTIONS.value)))
        write_annotations(str(OUT.value), merged.annotations)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from None
    for qid in merged.without_result:
        print(f"no result for {qid}: stage 2 will look at the whole video")
    for qid in merged.unknown:
        print(f"result for {qid}, which is not annotated: left out")
    queries = len(merged.annotations)
    print(f"{OUT.value}: {queries} queries, {queries - len(merged.without_result)} with windows of stage 1")


if __name__ == "__main__":
    app.run(main)
