"""The scores of the demo: of each stage on held-out videos, of what any answer scores, and what they say."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from calce_jax.moments.annotations import Annotation
from calce_jax.moments.metrics import EvalCase, evaluate_cases, format_table
from calce_jax.moments.metrics.evaluate import evaluate_predictions
from calce_jax.moments.predictions import Prediction
from calce_jax.report.page import SummaryTable

QUERY_KINDS = ("visual", "caption", "several")
HEADLINE_METRICS = ("R1@0.5", "R1@0.7", "R1_avg", "mIoU", "mAP@0.5", "mAP@0.75", "mAP")
METRICS_NOTE = (
    "IoU is the length that two windows share, divided by the length from the earlier start to the later end. R1@0.5: "
    "of how many queries the first window has an IoU of at least 0.5 with a true one; R1_avg: the same, over "
    "thresholds of 0.5 to 0.95; mIoU: the mean IoU of first windows; mAP: the average precision of all windows. Random "
    "windows have the lengths of true ones, and are drawn without looking at the video."
)

Scores = dict[str, float]


def compute_scores(
    annotations: Sequence[Annotation],
    untrained: Sequence[Prediction],
    stage1: Sequence[Prediction],
    stage2: Sequence[Prediction],
    without_captions: Sequence[Prediction],
) -> dict[str, Any]:
    """Return held-out scores in percent, by the protocol "reference"; `untrained` are predictions of the base model."""
    stages = {"base": untrained, "stage1": stage1, "stage2": stage2, "stage2_captions_withheld": without_captions}
    results: dict[str, Any] = {name: _scores(predictions, annotations) for name, predictions in stages.items()}
    results["baselines"] = baselines(annotations)
    results["by_kind"] = {
        kind: {name: _scores(predictions, kind_rows) for name, predictions in stages.items()}
        for kind in QUERY_KINDS
        if (kind_rows := [row for row in annotations if row.kind == kind])
    }
    results["rank"] = {
        order: _headline_metrics(evaluate_predictions(stage2, annotations, order).scores["reference"])
        for order in ("given", "longest", "score")
    }
    results["queries"] = len(annotations)
    results["malformed"] = sum(prediction.malformed for prediction in stage2)
    return results


def _scores(predictions: Sequence[Prediction], annotations: Sequence[Annotation]) -> Scores:
    return _headline_metrics(evaluate_predictions(predictions, annotations).scores["reference"])


def baselines(annotations: Sequence[Annotation], draws: int = 20, seed: int = 0) -> dict[str, Scores]:
    """Return the scores of predicting the whole video, and of random windows with the lengths of true ones."""
    lengths = np.array([end - start for row in annotations for start, end in row.windows or ()])
    rng = np.random.default_rng(seed)

    def random_window(row: Annotation) -> list[float]:
        length = min(float(rng.choice(lengths)), float(row.duration or 0))
        start = float(rng.uniform(0, float(row.duration or 0) - length))
        return [start, start + length]

    def scores(window: Any) -> Scores:
        return _headline_metrics(
            evaluate_cases([EvalCase(row.qid, [window(row)], row.windows) for row in annotations if row.windows])[
                "reference"
            ]
        )

    random = [scores(random_window) for _ in range(draws)]
    return {
        "whole_video": scores(lambda row: [0.0, float(row.duration)]),
        "random": {name: round(float(np.mean([draw[name] for draw in random])), 2) for name in HEADLINE_METRICS},
    }


def _headline_metrics(scores: Mapping[str, Any]) -> Scores:
    return {name: round(float(scores[name]), 2) for name in HEADLINE_METRICS}


def format_results(results: Mapping[str, Any]) -> str:
    """Return the results as a table for the terminal."""
    rows = {"base": results["base"], "stage 1": results["stage1"], "stage 2": results["stage2"]}
    rows |= {f"stage 2, {kind}": scores["stage2"] for kind, scores in results["by_kind"].items()}
    if "caption" in results["by_kind"]:
        rows["stage 2, caption, captions withheld"] = results["by_kind"]["caption"]["stage2_captions_withheld"]
    rows |= {name.replace("_", " "): scores for name, scores in results["baselines"].items()}
    return "\n".join(filter(None, (format_table(rows), name_untaught(results))))


def name_untaught(results: Mapping[str, Any]) -> str:
    """Return a sentence about the stages that random windows equal, by mean IoU; "" if there is none."""
    chance = results["baselines"]["random"]["mIoU"]
    untaught = [f"stage {number}" for number in (1, 2) if results[f"stage{number}"]["mIoU"] <= chance]
    if not untaught:
        return ""
    verb = "is" if len(untaught) == 1 else "are"
    return (
        f"{' and '.join(untaught).capitalize()} {verb} no better than random windows; "
        "train on more videos (--train_videos)."
    )


def summary_tables(results: Mapping[str, Any]) -> list[SummaryTable]:
    """Return the tables at the top of the report."""
    stages = (("base, before training", "base"), ("stage 1", "stage1"), ("stage 2", "stage2"))
    rows = {name: results[key] for name, key in stages}
    rows |= {name.replace("_", " "): scores for name, scores in results["baselines"].items()}
    return [
        SummaryTable(
            "Held-out videos, percent",
            HEADLINE_METRICS,
            [(name, [scores[metric] for metric in HEADLINE_METRICS]) for name, scores in rows.items()],
            f"{name_untaught(results)} {METRICS_NOTE}".strip(),
        ),
        SummaryTable(
            "R1@0.5 by kind of query",
            ("stage 1", "stage 2", "stage 2, captions withheld"),
            [
                (kind, [scores[name]["R1@0.5"] for name in ("stage1", "stage2", "stage2_captions_withheld")])
                for kind, scores in results["by_kind"].items()
            ],
            "Caption queries can only be answered from captions.",
        ),
    ]
