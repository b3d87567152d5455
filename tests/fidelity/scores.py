"""10: metrics of published, synthetic and official predictions."""

import json
import re
from collections.abc import Iterator
from typing import Any

from calce_jax.moments.metrics import EvalCase as Query
from calce_jax.moments.metrics.protocols import official_scores, reference_scores
from tests.fidelity.folder import RecordingFolder
from tests.fidelity.report import Case, Group

# mIoU is a mean of up to thousands of float64 in another order; all other scores are rounded and must be identical.
MEAN_TOLERANCE = 1e-13


def published(folder: RecordingFolder) -> Iterator[Group]:
    """Compare the scores of the stage-1 predictions in the annotations."""
    group = Group("10_metrics_annotations", MEAN_TOLERANCE)
    yield group
    for name, expected in folder.json("10_metrics_annotations").items():
        with group.case(name) as case:
            result = reference_scores(_stage1_queries(folder, name), behaviour="reference")
            _compare(case, result, expected["mr"]["full"])
            brief = {key: result["detail"]["mAP"][key.split("@")[1]] for key in ("mAP@0.5", "mAP@0.75")}
            case.same(brief, {key: expected["brief"][f"MR-full-{key}"] for key in brief})


def synthetic(folder: RecordingFolder) -> Iterator[Group]:
    """Compare the scores of synthetic edge cases, or the type of the error they raise."""
    group = Group("10_metrics_synthetic", MEAN_TOLERANCE)
    yield group
    num_skipped = 0
    for expected in folder.json("10_metrics_synthetic"):
        num_skipped += "metrics_own_r1_and_mIoU" in expected
        with group.case(expected["name"]) as case:
            queries = [
                Query(row["qid"], row["pred_relevant_windows"], row["relevant_windows"])
                for row in expected["submission"]
            ]
            try:
                result = reference_scores(queries, behaviour="reference")
            except TypeError as error:
                case.same(type(error).__name__, (expected["error"] or "none").split(":")[0], "error")
                continue
            if expected["error"]:
                case.fail(f"was scored; recorded {expected['error']}")
            else:
                _compare(case, result, expected["result"]["full"])
    if num_skipped:
        group.add_note(f"not compared: {num_skipped} results of a second scorer that the original's task does not call")


def standalone(folder: RecordingFolder) -> Iterator[Group]:
    """Compare the scores of the official protocol, by range of moment lengths."""
    group = Group("10_metrics_standalone")
    yield group
    for name, expected in folder.json("10_metrics_standalone").items():
        if name.startswith("sample_val_preds"):
            with group.case(name) as case:
                _compare_ranges(case, official_scores(_official_sample(folder)), expected)
        elif name.startswith("stage1_result"):
            with group.case(name) as case:
                queries = _stage1_queries(folder, "qvh_val_stage1")
                _compare_ranges(case, official_scores(queries, behaviour="reference"), expected)
        elif name not in ("note", "sample_equals_shipped"):
            with group.case(name):
                raise NotImplementedError(f"10_metrics_standalone.json: unknown predictions {name!r}")


def _stage1_queries(folder: RecordingFolder, name: str) -> list[Query]:
    """Return the stage-1 predictions of, for example, "qvh_val_stage1", from the annotations of stage 2."""
    name_match = re.fullmatch(r"([a-z]+)_([a-z_]+)_stage1", name)
    if not name_match:
        raise NotImplementedError(f"unknown annotations {name!r}")
    path = folder.find_shared("annotations", "calce", name_match[1], f"{name_match[2]}_stage2.json")
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [Query(row["qid"], row["stage1_result"], row["relevant_windows"]) for row in rows]


def _official_sample(folder: RecordingFolder) -> list[Query]:
    annotations_dir = folder.find_shared("annotations", "qvhighlights")
    sample, truth = (
        [json.loads(line) for line in (annotations_dir / name).read_text(encoding="utf-8").splitlines()]
        for name in ("sample_val_preds.jsonl", "highlight_val_release.jsonl")
    )
    windows = {row["qid"]: row["relevant_windows"] for row in truth}
    return [Query(row["qid"], row["pred_relevant_windows"], windows[row["qid"]]) for row in sample]


def _compare(case: Case, result: dict[str, Any], expected: dict[str, Any]) -> None:
    for name in ("R1", "mAP"):
        case.same(result["detail"][name], expected[name], name)
    case.close(result["detail"]["mIoU"], expected["mIoU"], "mIoU")
    case.same(
        [result["R1_avg"], result["invalid"]], [expected["R1-avg"], expected["invalid_pred_num"]], "R1-avg, invalid"
    )


def _compare_ranges(case: Case, result: dict[str, Any], expected: dict[str, Any]) -> None:
    ranges = {"full": result["detail"], **result["detail"]["ranges"]}
    for name, scores in expected.items():
        case.same({"MR-mAP": ranges[name]["mAP"], "MR-R1": ranges[name]["R1"]}, scores, name)
