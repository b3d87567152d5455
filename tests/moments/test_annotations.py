"""Annotations: every format, and faults reported together."""

import dataclasses
import json

import pytest
from absl import logging

from calce_jax.moments.annotations import (
    Annotation,
    AnnotationError,
    parse_annotations,
    read_annotations,
    write_annotations,
)

ROW = {"qid": 1, "query": "A dog runs.", "vid": "v", "duration": 150, "relevant_windows": [[0, 10], [20, 30]]}


@pytest.fixture
def write(tmp_path):
    def write(*rows: dict | str, name: str = "rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return write


def test_official_release(write):
    test_row = {"qid": 2, "query": "A cat.", "vid": "w", "duration": 149.5, "saliency_scores": [[1, 2, 3]]}
    first, second = read_annotations(write(ROW, test_row))
    assert first == Annotation(1, "v", "A dog runs.", [], 150, [[0, 10], [20, 30]])
    assert second == Annotation(2, "w", "A cat.", [], 149.5, None)


def test_charades_lines(write, tmp_path):
    path = write("AO8RW 0.0 6.9##a person is putting a book on a shelf.", name="charades_sta_train.txt")
    unknown = Annotation(
        "charades_sta_train_1", "AO8RW", "a person is putting a book on a shelf.", [], None, [[0.0, 6.9]]
    )
    assert read_annotations(path) == [unknown]
    known = dataclasses.replace(unknown, duration=33.67)
    assert read_annotations(path, durations={"AO8RW": 33.67}) == [known]
    table = tmp_path / "Charades_v1_train.csv"
    table.write_text("id,subject,length\nAO8RW,X,33.67\n")
    assert read_annotations(path, durations=table) == [known]


HALF = r"the text holds '\\ud800', which is half of a character; fix the text"


@pytest.mark.parametrize("field", ["qid", "vid", "query", "items"])
def test_half_of_a_character_is_a_fault_of_its_row(write, tmp_path, field):
    row = ROW | {field: ["\ud800"] if field == "items" else "x\ud800"}
    with pytest.raises(AnnotationError, match=rf"rows.jsonl, line 2: {HALF}$"):
        read_annotations(write(ROW, row))
    whole = ROW | {"qid": 2, "query": "\N{ROCKET}"}  # two halves in JSON
    path = tmp_path / "list.json"
    path.write_text(json.dumps([whole, row]))
    with pytest.raises(AnnotationError, match=rf"list.json, row 2: {HALF}$"):
        read_annotations(path)
    assert [annotation.query for annotation in read_annotations(write(whole))] == ["\N{ROCKET}"]
    items = tmp_path / "items.json"
    items.write_text(json.dumps({"1": {"query": "x", "items": ["\ud800"]}}))
    with pytest.raises(AnnotationError, match=r"items.json: .*half of a character"):
        read_annotations(write(ROW), items=items)


def test_items_are_found_by_id_or_by_sentence(write, tmp_path):
    items = tmp_path / "items.json"
    items.write_text(
        json.dumps({"1": {"query": "other", "items": ["dog"]}, "Q_9": {"query": "A cat.", "items": ["cat"]}})
    )
    rows = read_annotations(write(ROW, {**ROW, "qid": 2, "query": "A cat."}, {**ROW, "qid": 3}), items=items)
    assert [row.items for row in rows] == [["dog"], ["cat"], []]


def test_own_format_reads_back(write, tmp_path):
    rows = [
        Annotation("a", "v", "A dog.", ["dog"], 30, [[1, 4.5]], [[0, 5]], "visual"),
        Annotation(2, "v", "A cat.", [], 30, []),
        Annotation(4, "v", "A cow.", [], 30, [], fact="cow", facts=["cat", "dog"]),
        Annotation(3, "v", "A bird.", [], 30, None),
    ]
    write_annotations(tmp_path / "own.jsonl", rows)
    assert read_annotations(tmp_path / "own.jsonl") == rows
    assert [path.name for path in tmp_path.iterdir()] == ["own.jsonl"]


def test_an_empty_list_of_windows_says_that_it_does_not_happen(write):
    rows = [{**ROW, "qid": n, "relevant_windows": windows} for n, windows in enumerate(([], None, [[0, 10]]))]
    assert [row.is_absent for row in read_annotations(write(*rows))] == [True, False, False]
    (line,) = read_annotations(write("v>>>A cow.>>>[]"))
    assert (line.windows, line.is_absent) == ([], True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fact": ""}, r"fact: expected what the query asks for, got ''; fix it"),
        ({"fact": 3}, r"fact: expected what the query asks for, got 3"),
        ({"facts": "dog"}, r"facts: expected a list of all that happens in the video, got 'dog'"),
        ({"fact": "cat", "facts": ["dog"]}, r"facts: 'cat' is not one of them, but the query has windows; correct the"),
        (
            {"fact": "dog", "facts": ["dog"], "relevant_windows": []},
            r"facts: 'dog' is one of them, but the query has an empty list of windows",
        ),
    ],
)
def test_facts_that_cannot_be_are_named(write, fields, message):
    with pytest.raises(AnnotationError, match=message):
        read_annotations(write(ROW | fields))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "split", "count"),
    [("qvh", "val", 1550), ("charades", "test", 3720), pytest.param("qvh", "train", 7218, marks=pytest.mark.release)],
)
def test_the_originals_files(shared, dataset, split, count):
    folder = shared / "annotations" / "calce" / dataset
    rows = read_annotations(folder / f"{split}_stage2.json")
    assert len(rows) == count
    assert all(row.items and row.windows and row.stage1_windows for row in rows)
    assert len([row for row in rows if row.clipped_windows != row.windows]) == (278 if dataset == "charades" else 0)
    bare = read_annotations(folder / f"{split}.json")
    assert [dataclasses.replace(row, stage1_windows=None) for row in rows] == bare


@pytest.mark.slow
def test_official_files_agree_with_the_originals(shared):
    official = read_annotations(
        shared / "annotations/qvhighlights/highlight_val_release.jsonl",
        items=shared / "annotations/calce/qvh/items/val.json",
    )
    original = read_annotations(shared / "annotations/calce/qvh/val.json")
    # The original's files have no ratings of clips.
    changes = [{"qid": f"QVHighlight_{row.qid}", "clip_ratings": None} for row in official]
    assert [dataclasses.replace(row, **change) for row, change in zip(official, changes, strict=True)] == original


def test_windows_beyond_the_video_are_kept_reported_and_cut(write, monkeypatch):
    warnings = []
    monkeypatch.setattr(logging, "warning", lambda message, *values: warnings.append(message % values))
    (row,) = read_annotations(write({**ROW, "duration": 25}))
    assert row.windows == [[0, 10], [20, 30]]
    assert row.clipped_windows == [[0, 10], [20, 25]]
    assert "windows of 1 of 1 queries reach beyond" in warnings[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qid": None}, "line 1, qid: expected the query's id"),
        ({"query": "  "}, "line 1, query: expected a sentence"),
        ({"vid": 7}, "line 1, vid: expected the video's id"),
        ({"duration": 0}, "line 1, duration: .*positive seconds"),
        ({"duration": float("nan")}, "line 1, duration"),
        ({"items": "dog"}, "line 1, items: expected a list of noun phrases"),
        ({"kind": 3}, "line 1, kind"),
        ({"relevant_windows": [[10, 0]]}, r"relevant_windows: \[10, 0\] ends before it begins; swap"),
        ({"relevant_windows": [[0, float("nan")]]}, r"relevant_windows: expected \[start, end\]"),
        ({"relevant_windows": [[1]]}, r"relevant_windows: expected \[start, end\]"),
        ({"relevant_windows": [[150, 160]]}, "outside the video, which lasts 150 s"),
        ({"relevant_windows": [[-3, 10]]}, "outside the video"),
        ({"stage1_windows": [[5, 1]]}, "stage1_windows: .*ends before"),
    ],
)
def test_faults_name_file_line_field_and_remedy(write, change, message):
    with pytest.raises(AnnotationError, match=message) as caught:
        read_annotations(write({**ROW, **change}))
    assert str(caught.value).count("rows.jsonl, line 1") == 1


@pytest.mark.parametrize("field", ["qid", "query", "vid", "duration"])
def test_a_missing_field_is_named(write, field):
    row = {name: value for name, value in ROW.items() if name != field}
    with pytest.raises(AnnotationError, match=f"line 1, {field}: .*which is missing; add the field"):
        read_annotations(write(row))


def test_all_faults_are_listed_together(write):
    rows = [
        {**ROW, "qid": 7},
        {**ROW, "qid": 7},
        "{broken",
        "no moment here",
        {**ROW, "query": None, "duration": -1},
        "3",
    ]
    with pytest.raises(AnnotationError) as caught:
        read_annotations(write(*rows))
    lines = str(caught.value).splitlines()
    assert [line.split(", ", 1)[1].split(":")[0] for line in lines] == [
        "line 3",
        "line 4",
        "line 6",
        "line 5, query",
        "line 5, duration",
        "qid",
    ]


@pytest.mark.parametrize("ids", [(7, "7"), (7, "QVHighlight_7"), ("QVHighlight_7", "7")])
def test_ids_that_mean_the_same_query_repeat(write, ids):
    with pytest.raises(AnnotationError, match="qid: 7 is given to 2 queries; keep one"):
        read_annotations(write(*[{**ROW, "qid": qid} for qid in ids]))


def test_line_separators_inside_strings_and_byte_order_marks_are_read(write, tmp_path):
    queries = ["a\u2028b", "c\u0085d"]
    rows = [json.dumps({**ROW, "qid": i, "query": query}, ensure_ascii=False) for i, query in enumerate(queries)]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).encode())
    assert [row.query for row in read_annotations(path)] == queries
    lines = tmp_path / "charades.txt"
    lines.write_bytes(b"\xef\xbb\xbfAO8RW 0.0 6.9##a person\xe2\x80\xa8 sits.\r\n")
    assert [(row.video, row.query) for row in read_annotations(lines)] == [("AO8RW", "a person\u2028 sits.")]


def test_files_that_are_not_utf8_are_named(write, tmp_path):
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"AO8RW 0.0 6.9##caf\xe9\n")
    message = r"latin\.txt: not UTF-8 at byte 18; save it as UTF-8"
    with pytest.raises(AnnotationError, match=message):
        read_annotations(latin)
    with pytest.raises(AnnotationError, match=message):
        read_annotations(write(ROW), items=latin)
    with pytest.raises(AnnotationError, match=message):
        read_annotations(write(ROW), durations=latin)


@pytest.mark.parametrize("length", ["nan", "-3", "0", "inf", "", "long"])
def test_durations_must_be_positive_seconds(write, tmp_path, length):
    table = tmp_path / "durations.csv"
    table.write_text(f"id,length\na,3\nv,{length}\n")
    with pytest.raises(AnnotationError, match=r"durations\.csv, line 3, length: expected positive seconds, got"):
        read_annotations(write(ROW), durations=table)


def test_a_number_of_too_many_digits_is_a_fault(write):
    with pytest.raises(AnnotationError, match=r"line 1, relevant_windows: expected \[start, end\]"):
        read_annotations(write({**ROW, "relevant_windows": [[0, 10**400]]}))
    with pytest.raises(AnnotationError, match="line 1: a number has too many digits"):
        read_annotations(write(json.dumps(ROW).replace("150", "1" * 5000)))


def test_at_most_twenty_faults_are_listed(write):
    with pytest.raises(AnnotationError, match=r"rows\.jsonl: and 20 more$") as caught:
        read_annotations(write(*[{**ROW, "qid": n, "query": 0} for n in range(40)]))
    assert len(str(caught.value).splitlines()) == 21


@pytest.mark.parametrize(
    ("field", "meant"),
    [
        ("relevent_windows", "relevant_windows"),
        ("Relevant-Windows", "relevant_windows"),
        ("windows", "relevant_windows"),
        ("item", "items"),
        ("kinds", "kind"),
        ("stage1_window", "stage1_windows"),
    ],
)
def test_a_misspelt_field_is_a_fault(write, field, meant):
    row = {name: value for name, value in ROW.items() if name != meant}
    message = rf"rows\.jsonl, line 2, {field}: there is no such field; did you mean {meant}\? Rename it$"
    with pytest.raises(AnnotationError, match=message):
        read_annotations(write(ROW, {**row, "qid": 2, field: None}))


def test_other_fields_pass(write):
    others = {"relevant_clip_ids": [1], "saliency_scores": [[1, 2, 3]], "note": "x", "windows": 2, "video_id": "u"}
    (row,) = read_annotations(write({**ROW, **others}))
    assert row == Annotation(1, "v", "A dog runs.", [], 150, [[0, 10], [20, 30]], clip_ratings={1: [1, 2, 3]})
    submission = {name: value for name, value in ROW.items() if name != "relevant_windows"}
    (row,) = read_annotations(write({**submission, "pred_relevant_windows": [[0, 1, 0.5]], "pred_saliency_scores": []}))
    assert not row.windows
    stage2 = {name: value for name, value in ROW.items() if name != "vid"}
    # Either name of a field will do: neither is then missing.
    names = {"video": "v", "video_id": "u", "stage1_result": [[0, 4]], "stage1_window": 1}
    (row,) = read_annotations(write({**stage2, **names}))
    assert row.stage1_windows == [[0, 4]]
    assert row.location.endswith("rows.jsonl, line 1")


@pytest.mark.slow
@pytest.mark.parametrize(
    "file",
    [
        pytest.param("qvhighlights/highlight_train_release.jsonl", marks=pytest.mark.release),
        "qvhighlights/highlight_test_release.jsonl",
        "calce/qvh/test_dummy_stage2.json",
        pytest.param("calce/charades/train_stage2.json", marks=pytest.mark.release),
    ],
)
def test_published_files_have_no_fault(shared, file):
    annotations, faults = parse_annotations(shared / "annotations" / file)
    assert not faults
    assert len(annotations) > 1500


def test_missing_files_are_named(write, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl: no such file of annotations"):
        read_annotations(tmp_path / "none.jsonl")
    with pytest.raises(FileNotFoundError, match="no such file of items"):
        read_annotations(write(ROW), items=tmp_path / "none.json")
    (tmp_path / "durations.csv").write_text("a,b\n1,2\n")
    with pytest.raises(AnnotationError, match="no columns"):
        read_annotations(write(ROW), durations=tmp_path / "durations.csv")
