"""Scores of a split, vectorised, against a loop over queries: `python -m benchmarks.metrics`.

The official protocol of QVHighlights, with 1,550 queries, the size of its validation split. The loop computes it query
by query and threshold by threshold, in Python with numpy for sums.
"""

from collections.abc import Sequence

import numpy as np

from benchmarks.paired import BenchmarkSettings, ComparisonRow, compare, parse_args, report
from calce_jax.moments.metrics import PROTOCOLS, EvalCase
from calce_jax.moments.metrics.average_precision import IOU_THRESHOLDS
from calce_jax.moments.metrics.protocols import LENGTH_RANGES, MAX_WINDOWS

Window = Sequence[int | float]


def main() -> None:
    """Run the benchmark and write its report."""
    settings, args = parse_args(__doc__, queries={"type": int, "default": 1550})
    report(settings, "metrics", [compare_metrics(settings, args.queries)])


def compare_metrics(settings: BenchmarkSettings, queries: int) -> ComparisonRow:
    """Compare the scores of random predictions."""
    cases = random_cases(queries)
    return compare(
        settings,
        f"official protocol, {queries} queries",
        lambda: flatten_scores(PROTOCOLS["official"](cases)),
        lambda: scores_by_loop(cases),
        other="a loop",
        agreement=lambda a, b: f"maximal difference of scores {np.abs(np.subtract(a, b)).max():.2f}",
    )


def random_cases(queries: int) -> list[EvalCase]:
    """Return queries with one to four true and one to twelve predicted windows, in whole seconds."""
    rng = np.random.default_rng(0)

    def windows(count: int) -> list[list[float]]:
        start = rng.integers(0, 140, count)
        return np.stack([start, np.minimum(start + rng.integers(2, 60, count), 150)], axis=1).tolist()

    return [
        EvalCase(number, windows(int(rng.integers(1, 13))), windows(int(rng.integers(1, 5))))
        for number in range(queries)
    ]


def flatten_scores(scores: dict) -> list[float]:
    """Return R1, mIoU and mAP, then R1@0.5 and mAP of each range of lengths."""
    values = [scores["R1@0.5"], scores["R1@0.7"], scores["mIoU"], scores["mAP"]]
    for name in LENGTH_RANGES:
        range_scores = scores["detail"]["ranges"][name]
        values += [range_scores["R1"]["0.5"], range_scores["mAP"]["average"]]
    return values


def scores_by_loop(cases: Sequence[EvalCase]) -> list[float]:
    """Return the scores of `flatten_scores`, computed query by query."""
    first = [overlap_of_first(case.predicted_windows[0], case.true_windows) for case in cases]
    values = [np.mean([value >= threshold for value in first]) for threshold in (0.5, 0.7)]
    values += [np.mean(first), mean_precision([(case.predicted_windows, case.true_windows) for case in cases])]
    for above, up_to in LENGTH_RANGES.values():
        cases_in_range = [
            (c.predicted_windows, [w for w in c.true_windows if above < w[1] - w[0] <= up_to]) for c in cases
        ]
        cases_in_range = [(predicted, truth) for predicted, truth in cases_in_range if truth]
        hits = [overlap_of_first(predicted[0], truth) >= 0.5 for predicted, truth in cases_in_range]
        values += [np.mean(hits), mean_precision(cases_in_range)]
    return [100 * float(value) for value in values]


def overlap(a: Window, b: Window) -> float:
    """Return intersection over union."""
    shared = max(min(a[1], b[1]) - max(a[0], b[0]), 0)
    union = (a[1] - a[0]) + (b[1] - b[0]) - shared
    return shared / union if union else 0.0


def overlap_of_first(window: Window, truth: Sequence[Window]) -> float:
    """Return the intersection with the nearest true window over the hull of both."""
    nearest = max(truth, key=lambda true: overlap(window, true))
    shared = max(min(window[1], nearest[1]) - max(window[0], nearest[0]), 0)
    return shared / (max(window[1], nearest[1]) - min(window[0], nearest[0]))


def mean_precision(pairs: Sequence[tuple[Sequence[Window], Sequence[Window]]]) -> float:
    """Return the mean over queries and thresholds of the average precision of the first `MAX_WINDOWS` windows."""
    return float(
        np.mean([precision(p[:MAX_WINDOWS], truth, threshold) for p, truth in pairs for threshold in IOU_THRESHOLDS])
    )


def precision(predicted: Sequence[Window], truth: Sequence[Window], threshold: float) -> float:
    """Return the interpolated average precision of one query at one threshold."""
    free, hits = list(range(len(truth))), []
    for window in predicted:
        near = [(overlap(window, truth[number]), number) for number in free]
        near = [pair for pair in near if pair[0] >= threshold]
        if near:
            free.remove(max(near)[1])
        hits.append(bool(near))
    exact = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(np.sum(np.maximum.accumulate(exact[::-1])[::-1] * hits) / len(truth))


if __name__ == "__main__":
    main()
