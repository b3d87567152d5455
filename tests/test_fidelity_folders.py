"""The comparison with another folder of recordings: other sizes, ties, files that recordings name, groups left out."""

import json
import shutil

import numpy as np
import pytest

from tests.fidelity import __main__ as fidelity
from tests.fidelity import scores, selection, text, training
from tests.fidelity.folder import RecordingFolder
from tests.helpers.recordings import write_json

THRESHOLDS = [f"{0.5 + 0.05 * i:.2f}".rstrip("0") for i in range(10)]


def rows_of(comparison, folder, shared=None):
    groups = list(comparison(RecordingFolder(folder, shared)))
    return {row.group: row for row in (group.row() for group in groups)}


@pytest.fixture(scope="module")
def tiny_counts(shared):
    """Parameter counts of the recorded tiny model, from its state dict."""
    with np.load(shared / "golden" / "13_e2e_state_dict.npz") as arrays:
        sizes = {name: arrays[name].size for name in arrays if not name.endswith("position_ids")}

    def total(*prefixes, lora=False):
        return sum(size for name, size in sizes.items() if name.startswith(prefixes) and ("lora_" in name) == lora)

    adapters = total("t5_model.", lora=True)
    return {
        "visual_encoder": total("visual_encoder."),
        "vit_mlp_hidden": 139,
        "ln_vision": total("ln_vision."),
        "Qformer.cls": total("Qformer.cls."),
        "Qformer.bert": total("Qformer.bert."),
        "query_tokens": total("query_tokens"),
        "query_proj": total("query_proj."),
        "t5_proj": total("t5_proj."),
        "t5_model": total("t5_model."),
        "lora_trainable": adapters,
        "lora_modules": sum("lora_A" in name for name in sizes),
        "trainable_total": adapters + total("ln_vision.", "query_proj.", "t5_proj."),
        "total": sum(sizes.values()),
    }


@pytest.mark.slow
def test_parameters_are_counted_at_the_sizes_of_the_folder(shared, tiny_counts, tmp_path):
    write_json(tmp_path, "14_param_counts", tiny_counts)
    sizes = json.loads((shared / "golden/config.json").read_text())["13_e2e"]
    write_json(tmp_path, "config", {"14": sizes})
    row = rows_of(training.counts, tmp_path)["14_param_counts"]
    assert row.ok, row.note
    assert row.cases == len(tiny_counts) - 1, "all but the head, which is added to the total"
    sizes["vit"]["depth"] += 1
    sizes["t5"]["dec"] += 1
    write_json(tmp_path, "config", {"14": sizes})
    row = rows_of(training.counts, tmp_path)["14_param_counts"]
    assert row.cases - row.equal == 6, "the vision transformer, T5, three counts of adapters or trained, the total"
    sizes["vit"]["width_of_patches"] = 3
    write_json(tmp_path, "config", {"14": sizes})
    with pytest.raises(KeyError, match=r"config\.json: vit has no size width_of_patches; known are depth, dim"):
        rows_of(training.counts, tmp_path)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], True),
        ([0, 1, 2, 3, 4, 5, 6, 7, 7], False),  # eight clusters have votes, the ninth has none
        ([0, 0, 1, 1, 2, 2, 3, 4, 5, 6, 7, 3], False),
        ([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8], False),  # the ninth has fewer votes
        ([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 8], True),
    ],
)
def test_ties_of_votes(names, expected):
    """Clusters of the frames in the window; the frame at its end is not in it."""
    case = {
        "cluster": [[[*names, 9, 9]]],
        "timestamps": [list(range(len(names) + 2))],
        "stage1_result": [f"[[0, {len(names)}]]"],
        "num_clusters": 10,
        "error": None,
    }
    assert selection.votes_tie(case) is expected
    assert not selection.votes_tie({**case, "error": "IndexError"})


@pytest.mark.slow
def test_plans_decided_by_votes_are_counted_apart(shared, tmp_path):
    recorded = json.loads((shared / "golden/06_keyframes_stage2.json").read_text())
    shutil.copy(shared / "golden/06_keyframes_stage2.npz", tmp_path)
    tied = [case for case in recorded["cases"] if selection.votes_tie(case)]
    sure = [case for case in recorded["cases"] if not case["error"] and case["feat"] == tied[0]["feat"]]
    sure = [case for case in sure if not selection.votes_tie(case) and case["num_clusters"] == 12]
    tied[0]["key_frame_idx"][0] = [0]
    cases = [*tied[:2], sure[0]]
    write_json(tmp_path, "06_keyframes_stage2", {"cases": cases, "compress_mask": recorded["compress_mask"][:1]})
    row = rows_of(selection.second_stage, tmp_path)["06_keyframes_stage2/plans"]
    assert (row.cases, row.equal, row.ok) == (1, 1, True)
    assert row.note == "apart: 2 cases decided by ties, 1 of them equal"


def perfect_scores():
    recall = dict.fromkeys(THRESHOLDS, 100.0)
    full = {"R1": recall, "mAP": {**recall, "average": 100.0}, "mIoU": 1.0, "R1-avg": 100.0, "invalid_pred_num": 0}
    return {"mr": {"full": full}, "brief": {"MR-full-mAP@0.5": 100.0, "MR-full-R1@0.7": 100.0, "MR-full-mIoU": 1.0}}


ROW = {"qid": "q0", "relevant_windows": [[0, 10]], "stage1_result": [[0, 10]]}


def test_scores_of_files_that_recordings_name(tmp_path):
    """Annotations and predictions, by any name, in the folder or beside it, or in the recording itself."""
    beside, folder = tmp_path / "beside", tmp_path / "golden"
    for path in (folder, beside / "annotations/calce/new_set", beside / "annotations/qvhighlights"):
        path.mkdir(parents=True)
    write_json(beside / "annotations/calce/new_set", "early_test_stage2", [ROW])
    write_json(folder, "10_own", [ROW])
    (beside / "annotations/qvhighlights/guesses.jsonl").write_text(
        '{"qid": "q0", "pred_relevant_windows": [[0, 10]]}\n'
    )
    scored = perfect_scores()
    recorded = {
        "new_set_early_test_stage1": scored,
        "new_set/early_test_stage2.json": scored,
        "a": {**scored, "annotations": "10_own.json"},
        "b": {**scored, "predictions": [{"qid": "q0", "pred_relevant_windows": [[0, 10]]}], "ground_truth": [ROW]},
        "c": {
            **scored,
            "predictions": "guesses.jsonl",
            "annotations": "elsewhere/lavis/new_set/early_test_stage2.json",
        },
        "remark": "nothing to compare",
    }
    write_json(folder, "10_metrics_annotations", recorded)
    rows = {row.group: row for row in fidelity.compare(RecordingFolder(folder, beside), "10_metrics_annotations")}
    row = rows["10_metrics_annotations"]
    assert (row.cases, row.equal, row.note) == (5, 5, "not compared: remark")

    scored["brief"]["MR-full-R1@0.7"] = 99.0
    write_json(folder, "10_metrics_annotations", {**recorded, "b": {**recorded["b"], "predictions": "no.json"}})
    row = rows_of(scores.published, folder, beside)["10_metrics_annotations"]
    assert row.equal == 0
    assert "MR-full-R1@0.7 100.0, recorded 99.0" in row.note

    scores_by_range = {"MR-mAP": {**dict.fromkeys(THRESHOLDS, 100.0), "average": 100.0}}
    scores_by_range["MR-R1"] = dict.fromkeys(THRESHOLDS, 100.0)
    standalone = {
        "note": "of two files",
        "equal": {"full": [True, True]},
        "new_set_early_test_stage1": {"full": scores_by_range, "short": scores_by_range},
        "guesses": {"predictions": "guesses.jsonl", "ground_truth": "10_own.json", "full": scores_by_range},
    }
    write_json(folder, "10_metrics_standalone", standalone)
    row = rows_of(scores.standalone, folder, beside)["10_metrics_standalone"]
    assert (row.cases, row.equal) == (2, 2), row.note


@pytest.mark.slow
def test_tokens_of_annotations_that_recordings_name(shared, tmp_path):
    recorded = json.loads((shared / "golden/07_tokenizer_stats.json").read_text())["stats"][
        "qvh/test_dummy_stage2.json"
    ]
    annotations = json.loads((shared / "annotations/calce/qvh/test_dummy_stage2.json").read_text())
    write_json(tmp_path, "07_own", annotations[:3])
    stats = {**recorded, "annotations": "07_own.json", "rows": 3, "text_prompt_tokens_max": 1000}
    write_json(tmp_path, "07_tokenizer_stats", {"stats": {"own": stats}})
    row = rows_of(text.tokenizer_statistics, tmp_path, shared)["07_tokenizer_stats"]
    assert (row.cases, row.equal) == (1, 0)
    assert "'rows': 3" in row.note
    assert "1000" in row.note


def test_a_folder_with_one_group_passes(tmp_path, capsys):
    write_json(tmp_path, "10_metrics_annotations", {"own": {**perfect_scores(), "predictions": [ROW]}})
    assert fidelity.main([f"--golden={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert f"1 rows, all ok; {len(fidelity.COMPARISONS) - 1} absent" in out
    assert "absent: the folder has no 01_vit.npz or 01_vit.json or 01_vit_meta.json" in out
    (tmp_path / "13_e2e_meta.json").write_text("{}")
    assert fidelity.main([f"--golden={tmp_path}"]) == 1, "a group that lacks one of its files has failed"
    assert "13_e2e.npz: no such file" in capsys.readouterr().out
