"""The comparison with recordings: it works with other folders, and reports every difference and error."""

import json
import shutil

import numpy as np
import pytest

from tests.fidelity import __main__ as fidelity
from tests.fidelity import vision
from tests.fidelity.folder import RecordingFolder
from tests.fidelity.report import END, START, Group, ReportRow, as_markdown, as_text, write_page
from tests.helpers.recordings import BEAM_SEARCHES, VIT_CONFIG, make_recordings, write_json

ONLY = "01|02|03|08|09|10_metrics_synthetic|12"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """A folder recorded with PyTorch at other sizes, depths, batches, LoRA ranks and beam searches."""
    pytest.importorskip("torch")
    return make_recordings(tmp_path_factory.mktemp("recordings") / "golden")


@pytest.fixture
def copy(recordings, tmp_path):
    return shutil.copytree(recordings, tmp_path / "golden")


def rows_of(folder, only) -> dict[str, ReportRow]:
    return {row.group: row for row in fidelity.compare(RecordingFolder(folder), only)}


def change(folder, file, **arrays):
    """Replace arrays of a file, or remove those that are None."""
    with np.load(folder / f"{file}.npz") as loaded:
        changed = {**loaded, **arrays}
    np.savez(folder / f"{file}.npz", **{name: array for name, array in changed.items() if array is not None})


@pytest.mark.release
def test_other_recordings_are_equal_in_every_group(recordings, tmp_path, capsys):
    path = tmp_path / "rows.json"
    status = fidelity.main([f"--golden={recordings}", f"--json={path}", f"--only={ONLY}", f"--beside={tmp_path}"])
    rows = {row["group"]: row for row in json.loads(path.read_text())}
    assert status == 0, capsys.readouterr().out
    assert set(rows["01_vit/blocks"]) == set(ReportRow.__dataclass_fields__)
    assert all(row["ok"] and row["cases"] == row["equal"] > 0 for row in rows.values())
    for row in rows.values():
        assert row["worst_abs" if row["is_absolute"] else "worst_rel"] <= row["tolerance"], row
    cases = {name: row["cases"] for name, row in rows.items()}
    assert cases["01_vit/blocks"] == 1 + VIT_CONFIG.depth
    assert cases["01_vit/final"] == 3
    assert cases["02_qformer/visual"] == 1 + 4 + 1
    assert cases["03_t5/encoder"] == 2 * 4
    assert cases["03_t5/answers"] == 2 * len(BEAM_SEARCHES)
    assert sum(count for name, count in cases.items() if name.startswith("03_t5_beam6/")) == 6
    assert cases["12_lr_optim/groups"] == 2
    assert "all ok" in capsys.readouterr().out


@pytest.mark.parametrize(
    "deviation",
    [0.01, pytest.param(np.nan, marks=pytest.mark.release), pytest.param(np.inf, marks=pytest.mark.release)],
)
def test_one_wrong_number_is_reported(copy, deviation, tmp_path, capsys):
    with np.load(copy / "01_vit.npz") as arrays:
        block = arrays["block1_out"]
    block[1, 2, 3] += deviation * np.abs(block).max()
    change(copy, "01_vit", block1_out=block)
    path = tmp_path / "rows.json"
    assert fidelity.main([f"--golden={copy}", f"--json={path}", "--only=01"]) == 1
    rows = {row["group"]: row for row in json.loads(path.read_text())}
    assert not rows["01_vit/blocks"]["ok"]
    assert rows["01_vit/blocks"]["equal"] == rows["01_vit/blocks"]["cases"] - 1
    assert "block 1" in rows["01_vit/blocks"]["note"]
    assert rows["01_vit/positions"]["ok"]
    assert "1 not ok" in capsys.readouterr().out


def test_wrong_tokens_and_scores_are_reported(copy):
    content = json.loads((copy / "09_postprocess.json").read_text())
    content["cases"][0]["post_process_150"] = {"out": [[1, 2], [7, 10]]}
    content["cases"][2]["post_process_150"] = {"error": "TypeError"}
    write_json(copy, "09_postprocess", content)
    content = json.loads((copy / "10_metrics_synthetic.json").read_text())
    content[0]["result"]["full"]["R1"]["0.7"] = 99.99
    write_json(copy, "10_metrics_synthetic", content)
    content = json.loads((copy / "12_lr_optim.json").read_text())
    content["lr"]["first"]["sampled_first3epochs"][3][2] *= 1 + 1e-12
    content["optim"]["lora"]["no_decay"].append("query_proj.weight")
    write_json(copy, "12_lr_optim", content)
    rows = rows_of(copy, "09|10_metrics_synthetic|12")
    assert (rows["09_postprocess/mended"].cases, rows["09_postprocess/mended"].equal) == (4, 2)
    assert (rows["10_metrics_synthetic"].cases, rows["10_metrics_synthetic"].equal) == (2, 1)
    assert not rows["12_lr_optim/rates"].ok
    assert "query_proj.weight decays" in rows["12_lr_optim/groups"].note


def test_missing_and_damaged_recordings_fail(copy):
    change(copy, "01_vit", block0_out=None)
    (copy / "02_qformer.npz").write_bytes(b"no zip")
    (copy / "09_postprocess.json").unlink()
    (copy / "08_subtitles.npz").unlink()
    rows = rows_of(copy, "01|02|08|09")
    assert not rows["01_vit/blocks"].ok
    assert "01_vit.npz holds no 'block0_out'" in rows["01_vit/blocks"].note
    assert rows["01_vit/final"].ok, "the other groups are still compared"
    assert (rows["02_qformer"].cases, rows["02_qformer"].ok) == (0, False)
    assert (rows["09_postprocess"].ok, rows["09_postprocess"].is_absent) == (True, True)
    assert rows["09_postprocess"].note == "absent: the folder has no " + " or ".join(
        f"09_postprocess{end}" for end in (".npz", ".json", "_meta.json")
    )
    assert rows["08_subtitles/files"].ok
    assert not rows["08_subtitles/choice"].ok
    assert "08_subtitles.npz: no such file" in rows["08_subtitles"].note


def test_missing_settings_are_named(copy):
    write_json(copy, "config", {})
    assert "config.json has no '01_vit'" in rows_of(copy, "01")["01_vit"].note


def test_unknown_recordings_are_reported(copy, monkeypatch):
    monkeypatch.setattr(fidelity, "COMPARISONS", {"01_vit": vision.vit})
    for file in copy.glob("[01]*"):
        if file.is_file() and not file.name.startswith("01"):
            file.unlink()
    change(copy, "01_vit", surprise=np.zeros(3))
    rows = rows_of(copy, "")
    assert all(row.ok for row in rows.values())
    assert "not compared: surprise" in rows["01_vit/positions"].note
    np.savez(copy / "77_new.npz", a=np.zeros(1))
    rows = rows_of(copy, "")
    assert not rows["77_new.npz"].ok
    assert "no comparison" in rows["77_new.npz"].note


def test_every_group_of_an_empty_folder_is_absent(tmp_path, capsys):
    rows = rows_of(tmp_path, "")
    assert fidelity.COMPARISONS.keys() == rows.keys()
    assert all(row.is_absent for row in rows.values())
    assert fidelity.main([f"--golden={tmp_path}"]) == 1, "nothing was compared"
    assert f"0 rows, all ok; {len(rows)} absent" in capsys.readouterr().out
    with pytest.raises(NotADirectoryError, match="no such folder of recordings"):
        RecordingFolder(tmp_path / "none")


def test_ties_are_counted_apart():
    group = Group("x")
    with group.case("sure") as case:
        case.same([1, 2], np.array([1, 2]))
    with group.case("unsure", tied=True) as case:
        case.same([1, 2], [2, 1])
    row = group.row()
    assert (row.cases, row.equal, row.ok) == (1, 1, True)
    assert row.note == "apart: 1 cases decided by ties, 0 of them equal"
    assert not Group("nothing").row().ok


def test_deviations_are_relative_to_the_largest_number():
    group = Group("x", 1e-3)
    for name, values in (("near", [100.05, 1.0]), ("far", [100.0, 1.2]), ("shape", [100.0]), ("nan", [np.nan, 1.0])):
        with group.case(name) as case:
            case.close(np.array(values), np.array([100.0, 1.0]))
    row = group.row()
    assert (row.cases, row.equal, row.worst_abs, row.worst_rel) == (4, 1, None, None)
    assert "far: deviates by 2.0e-03" in row.note
    assert "shape: has the shape (1,)" in row.note.replace("shape:  has", "shape: has")


def test_scores_deviate_absolutely():
    """A score near 0, of an answer that is almost certain, deviates by as much as others."""
    group = Group("x", 1e-4, is_absolute=True)
    for score in (-1e-4 - 3e-5, -2e-4 - 3e-5):
        with group.case(str(score)) as case:
            case.close(score, -1e-4)
    row = group.row()
    assert (row.cases, row.equal, row.worst_rel) == (2, 1, pytest.approx(1.3))
    assert "deviates by 1.3e-04" in row.note
    assert "| 0.0001 abs |" in as_markdown([row])


def test_page_keeps_the_text_around_the_table(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{START}\nold\n{END}\nafter\n")
    rows = [ReportRow("a/b", 2, 2, 0.0, 1e-6, 1e-5, is_absolute=False, ok=True, is_absent=False, note="a | b")]
    write_page(page, rows)
    text = page.read_text()
    assert text.startswith(f"before\n{START}\n| group |")
    assert text.endswith(f"{END}\nafter\n")
    assert "| a/b | 2 | 2 | 0 | 1.0e-06 | 1e-05 | yes | a \\| b |" in text
    assert "old" not in text
    assert "1 rows, all ok" in as_text(rows)
    page.write_text("no place")
    with pytest.raises(ValueError, match=r"page\.md: has no markers for the table"):
        write_page(page, rows)


@pytest.mark.slow
def test_recordings_of_fewer_cases(shared, tmp_path):
    """The original's recordings with fewer cases, in another order, and one of them changed."""
    source, folder = shared / "golden", tmp_path / "golden"
    folder.mkdir()
    shutil.copy(source / "04_cluster.npz", folder)
    shutil.copy(source / "05_keyframes_stage1.npz", folder)
    clusters = json.loads((source / "04_cluster_meta.json").read_text())
    write_json(folder, "04_cluster_meta", [case for case in clusters if case["case"].startswith(("c1_", "c7_"))])
    frames = json.loads((source / "05_keyframes_stage1.json").read_text())
    selected = [case for case in frames["cases"] if case["t"] == 20][::-6]
    selected[0]["key_frame_idx"][0] = [1]
    write_json(folder, "05_keyframes_stage1", {**frames, "cases": selected})
    prompts = json.loads((source / "07_prompts.json").read_text())
    write_json(folder, "07_prompts", {**prompts, "cases": [prompts["cases"][i] for i in (40, 2)]})
    rows = {row.group: row for row in fidelity.compare(RecordingFolder(folder, shared), "04|05|07_prompts")}
    assert rows["04_cluster"].ok
    assert "apart: 6 cases decided by ties" in rows["04_cluster"].note
    assert rows["05_keyframes_stage1/plans"].equal == len(selected) - 1
    assert rows["07_prompts/positions"].ok
    assert rows["07_prompts/numbers"].ok
