"""10: metrics of published, synthetic and official predictions."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from calce_jax.moments.metrics import EvalCase as Query
from calce_jax.moments.metrics.protocols import official_scores, reference_scores
from tests.fidelity.folder import RecordingFolder
from tests.fidelity.report import Case, Group

# mIoU is a mean of up to thousands of float64 in another order; all other scores are rounded and must be identical.
MEAN_TOLERANCE = 1e-13
# Fields in which a recording names files, or holds their rows itself; and fields of a row with predicted windows.
PREDICTIONS, TRUTH = ("predictions", "submission", "annotations", "file"), ("ground_truth", "annotations")
PREDICTED_WINDOWS = ("pred_relevant_windows", "stage1_result")
# Files of cases of these names that name none.
UNNAMED = {
    "sample_val_preds": {"predictions": "sample_val_preds.jsonl", "ground_truth": "highlight_val_release.jsonl"},
    "stage1_result": {"annotations": "qvh/val_stage2.json"},
}


def published(folder: RecordingFolder) -> Iterator[Group]:
    """Compare the scores of predictions in files: of those that a case names, or of its annotations' stage 1."""
    group = Group("10_metrics_annotations", MEAN_TOLERANCE)
    yield group
    for name, expected in folder.json("10_metrics_annotations").items():
        if not isinstance(expected, dict):
            group.add_note(f"not compared: {name}")
            continue
        with group.case(name) as case:
            result = reference_scores(_queries(folder, name, expected), behaviour="reference")
            _compare(case, result, expected["mr"]["full"])
            _compare_brief(case, result, expected.get("brief", {}))


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
                case.same(type(error).__name__, (expected.get("error") or "none").split(":")[0], "error")
                continue
            if expected.get("error"):
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
        if not (isinstance(expected, dict) and any(_is_range(scores) for scores in expected.values())):
            continue  # remarks
        with group.case(name) as case:
            result = official_scores(_queries(folder, name, expected), behaviour="reference")
            _compare_ranges(case, result, expected)


def _queries(folder: RecordingFolder, name: str, expected: Mapping[str, Any]) -> list[Query]:
    """Return the predictions that a case was scored with.

    The case may name their files, or hold their rows, in the fields `PREDICTIONS` and `TRUTH`; otherwise its own name
    says which they are.
    """
    files = expected if _names(expected, PREDICTIONS) else _files_of(folder, name)
    predictions = folder.rows(_first(files, PREDICTIONS))
    truth: dict[str, Any] = {}
    if any("relevant_windows" not in row for row in predictions):
        truth = {row["qid"]: row["relevant_windows"] for row in folder.rows(_first(files, TRUTH))}
    # The scorer joins rows of one query, so each has its own windows.
    return [
        Query(
            row["qid"],
            _first(row, PREDICTED_WINDOWS),
            row["relevant_windows"] if "relevant_windows" in row else truth[row["qid"]],
        )
        for row in predictions
    ]


def _files_of(folder: RecordingFolder, name: str) -> Mapping[str, str]:
    """Return the files of a case that names none in its fields: "qvh_val_stage1", or "qvh/val_stage2.json"."""
    for prefix, files in UNNAMED.items():
        if name.startswith(prefix):
            return files
    if name.endswith((".json", ".jsonl")):
        return {"annotations": name}
    dataset, *split = name.removesuffix("_stage1").split("_")
    for words in range(len(split)):
        file = f"{'_'.join([dataset, *split[:words]])}/{'_'.join(split[words:])}_stage2.json"
        if folder.has_named(file):
            return {"annotations": file}
    raise FileNotFoundError(f"{name}: names no file, and there are no annotations DATASET/SPLIT_stage2.json of it")


def _names(recorded: Mapping[str, Any], fields: Sequence[str]) -> bool:
    return any(field in recorded for field in fields)


def _first(row: Mapping[str, Any], fields: Sequence[str]) -> Any:
    for field in fields:
        if field in row:
            return row[field]
    raise KeyError(f"no field {' or '.join(fields)}, only {', '.join(row)}")


def _is_range(scores: Any) -> bool:
    return isinstance(scores, dict) and "MR-mAP" in scores


def _compare(case: Case, result: dict[str, Any], expected: dict[str, Any]) -> None:
    for name in ("R1", "mAP"):
        case.same(result["detail"][name], expected[name], name)
    case.close(result["detail"]["mIoU"], expected["mIoU"], "mIoU")
    case.same(
        [result["R1_avg"], result["invalid"]], [expected["R1-avg"], expected["invalid_pred_num"]], "R1-avg, invalid"
    )


def _compare_brief(case: Case, result: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compare the scores at one threshold, named "MR-full-mAP@0.5"."""
    for name, score in expected.items():
        measure, _, threshold = name.removeprefix("MR-full-").partition("@")
        if name.startswith("MR-full-") and threshold:
            case.same(result["detail"][measure][threshold], score, name)


def _compare_ranges(case: Case, result: dict[str, Any], expected: dict[str, Any]) -> None:
    ranges = {"full": result["detail"], **result["detail"]["ranges"]}
    for name, scores in expected.items():
        if _is_range(scores):
            case.same({"MR-mAP": ranges[name]["mAP"], "MR-R1": ranges[name]["R1"]}, scores, name)
